"""Metrics for Prometheus: requests, transcriptions by stage, the queue, the model. Knows no HTTP.

Labels have few values whatever clients send: routes are the table's, statuses are the server's.
"""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.transcription.engine import Engine
from service.transcription.run import OUTCOMES, STAGES, Run

CONTENT_TYPE = CONTENT_TYPE_LATEST
NO_ROUTE = "none"  # label for paths without a route
REJECTED = 429
NANOSECONDS = 1e9
LIVE_OUTCOMES = ("done", "failed", "cancelled")
STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)  # seconds
FACTOR_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds of work per second of audio


class _ModelLevels:
    """Each model's current values."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called whenever Prometheus reads."""
        loaded = GaugeMetricFamily("wisp_model_loaded", "1 while the model is in memory", labels=["model"])
        help = "The model's part of WISP_MODEL_MEMORY; 0 unless loaded"
        taken = GaugeMetricFamily("wisp_model_memory_bytes", help, labels=["model"])
        for name, is_loaded, n_bytes in self._engine.models():
            loaded.add_metric([name], float(is_loaded))
            taken.add_metric([name], float(n_bytes))
        yield from (loaded, taken)


class Metrics:
    """All metrics of one server, in their own registry."""

    def __init__(self, engine: Engine, n_uploads: Callable[[], int]) -> None:
        """`n_uploads`: returns the number of uploads that hold places."""
        self._registry = CollectorRegistry()  # not the library's global one
        ProcessCollector(registry=self._registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"wisp_{name}", help, labels, registry=self._registry)

        def histogram(name: str, help: str, label: str, buckets: Sequence[float] = STAGE_BUCKETS) -> Histogram:
            return Histogram(f"wisp_{name}", help, [label], buckets=buckets, registry=self._registry)

        self._requests = counter("requests", "Requests answered", "route", "status")
        self._request_s = histogram("request_seconds", "From a request's headers to the end of its response", "route")
        self._rejected = counter("rejected", "Requests answered 429 because the queue was full")
        self._stage_s = histogram(
            "stage_seconds", "A transcription's stages: work without waiting; wait is all the waiting", "stage"
        )
        self._ended = counter("transcriptions", "Transcriptions that have ended", "model", "outcome")
        self._audio_s = counter("audio_seconds", "Audio transcribed completely", "model")
        self._tokens = counter("tokens", "Tokens of the transcripts", "model")
        self._factor = histogram(
            "real_time_factor", "Seconds of work per second of audio", "model", buckets=FACTOR_BUCKETS
        )
        self._load_s = histogram(
            "model_load_seconds", "Time to load a model; its count is the number of loads", "model"
        )
        self._unloads = counter("model_unloads", "Times that a model was unloaded", "model")
        for name, help, level in (
            ("jobs_running", "Transcriptions that are computing", engine.shared.n_running),
            ("jobs_waiting", "Transcriptions waiting for a turn or a place", engine.shared.n_waiting),
            ("uploads", "Uploads that hold a place for their transcription", n_uploads),
            ("device_memory_bytes", "GPU memory in use; 0 on the CPU", engine.device_bytes),
            ("device_failures", "GPU failures in a row; 0 once it works", engine.device_failures),
        ):
            Gauge(f"wisp_{name}", help, registry=self._registry).set_function(level)
        self._registry.register(_ModelLevels(engine))
        self._utterances = counter("live_utterances", "Live utterances that have ended", "outcome")
        self._live_delay_s = Histogram(
            "wisp_live_delay_seconds",
            "From the newest audio that a pass over live speech heard to the words that it settled",
            buckets=STAGE_BUCKETS,
            registry=self._registry,
        )
        self._live_skipped = counter("live_steps_skipped", "Passes over live speech that were left out under load")
        for outcome in LIVE_OUTCOMES:
            self._utterances.labels(outcome)
        # Series exist from the start: otherwise one without events looks like one that is gone.
        for stage in ("upload", "wait", *STAGES):
            self._stage_s.labels(stage)
        for name, _, _ in engine.models():
            self._of_model(name)

    def _of_model(self, name: str) -> None:
        for outcome in OUTCOMES:
            self._ended.labels(name, outcome)
        for metric in (self._audio_s, self._tokens, self._factor, self._load_s, self._unloads):
            metric.labels(name)

    def model_moved(self, name: str, seconds: float | None) -> None:
        """A model has been loaded, in `seconds`, or unloaded (None)."""
        self._of_model(name)
        if seconds is None:
            self._unloads.labels(name).inc()
        else:
            self._load_s.labels(name).observe(seconds)

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered. `route` is the table's path, or NO_ROUTE."""
        self._requests.labels(route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)
        if status == REJECTED:
            self._rejected.inc()

    def upload_ended(self, seconds: float) -> None:
        """A body has been read completely."""
        self._stage_s.labels("upload").observe(seconds)

    def run_ended(self, run: Run) -> None:
        """A transcription has ended, well or not."""
        self._ended.labels(run.model, run.outcome).inc()
        for stage, seconds in run.seconds.items():
            self._stage_s.labels(stage).observe(seconds)
        taken_s = (run.ended_ns - run.submitted_ns) / NANOSECONDS
        self._stage_s.labels("wait").observe(max(0.0, taken_s - run.worked_s))
        if run.outcome == "done":
            self._audio_s.labels(run.model).inc(run.audio_s)
            self._tokens.labels(run.model).inc(run.n_tokens)
            self._factor.labels(run.model).observe(run.worked_s / run.audio_s)

    def watch_live(self, n_open: Callable[[], int]) -> None:
        """`n_open`: returns the number of live sessions in progress."""
        level = Gauge("wisp_live_sessions", "Live sessions in progress", registry=self._registry)
        level.set_function(n_open)

    def words_settled(self, delay_s: float) -> None:
        """A pass over live speech has settled words, so long after its newest audio came."""
        self._live_delay_s.observe(delay_s)

    def utterance_ended(self, outcome: str, n_skipped: int) -> None:
        """A live utterance has ended; `n_skipped` of its passes were left out."""
        self._utterances.labels(outcome).inc()
        self._live_skipped.inc(n_skipped)

    def exposition(self) -> bytes:
        """All metrics, as CONTENT_TYPE says."""
        return generate_latest(self._registry)
