"""Metrics for Prometheus: requests, transcriptions by stage, the queue, the model. Knows no HTTP and no model.

Labels have few values whatever clients send: routes are the table's, statuses are the server's.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.transcription.run import OUTCOMES, STAGES, Run

CONTENT_TYPE = CONTENT_TYPE_LATEST
NO_ROUTE = "none"  # label for paths without a route
REJECTED = 429
NANOSECONDS = 1e9
LIVE_OUTCOMES = ("done", "failed", "cancelled")
STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)  # seconds
FACTOR_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds of work per second of audio


class Levels(Protocol):
    """Values read whenever Prometheus asks."""

    def n_running(self) -> int: ...

    def n_waiting(self) -> int: ...

    def device_bytes(self) -> int: ...

    def device_failures(self) -> int: ...

    def models(self) -> Iterable[tuple[str, bool, int]]: ...


class _ModelLevels:
    """What there is to say of each model at the moment."""

    def __init__(self, levels: Levels) -> None:
        self._levels = levels

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called whenever Prometheus reads."""
        loaded = GaugeMetricFamily("wisp_model_loaded", "1 while the model is in memory", labels=["model"])
        taken = GaugeMetricFamily(
            "wisp_model_memory_bytes",
            "The model's part of WISP_MODEL_MEMORY; 0 unless loaded",
            labels=["model"],
        )
        for name, is_loaded, n_bytes in self._levels.models():
            loaded.add_metric([name], float(is_loaded))
            taken.add_metric([name], float(n_bytes))
        yield from (loaded, taken)


class Metrics:
    """All metrics of one server, in their own registry."""

    def __init__(self, levels: Levels, n_uploads: Callable[[], int]) -> None:
        """`n_uploads`: returns the number of uploads that hold places."""
        self._collectors = CollectorRegistry()
        registry = self._collectors  # not the library's global one
        ProcessCollector(registry=registry)
        self._requests = Counter("wisp_requests", "Requests answered", ["route", "status"], registry=registry)
        self._request_s = Histogram(
            "wisp_request_seconds",
            "From a request's headers to the end of its response",
            ["route"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._rejected = Counter("wisp_rejected", "Requests answered 429 because the queue was full", registry=registry)
        self._stage_s = Histogram(
            "wisp_stage_seconds",
            "A transcription's stages: work without waiting; wait is all the waiting",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._ended = Counter(
            "wisp_transcriptions", "Transcriptions that have ended", ["model", "outcome"], registry=registry
        )
        self._audio_s = Counter("wisp_audio_seconds", "Audio transcribed completely", ["model"], registry=registry)
        self._tokens = Counter("wisp_tokens", "Tokens of the transcripts", ["model"], registry=registry)
        self._factor = Histogram(
            "wisp_real_time_factor",
            "Seconds of work per second of audio",
            ["model"],
            buckets=FACTOR_BUCKETS,
            registry=registry,
        )
        for name, help, level in (
            ("wisp_jobs_running", "Transcriptions that are computing", levels.n_running),
            ("wisp_jobs_waiting", "Transcriptions waiting for a turn or a place", levels.n_waiting),
            ("wisp_uploads", "Uploads that hold a place for their transcription", n_uploads),
            ("wisp_device_memory_bytes", "GPU memory in use; 0 on the CPU", levels.device_bytes),
            ("wisp_device_failures", "GPU failures in a row; 0 once it works", levels.device_failures),
        ):
            Gauge(name, help, registry=registry).set_function(level)
        self._load_s = Histogram(
            "wisp_model_load_seconds",
            "Time to load a model; its count is the number of loads",
            ["model"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._unloads = Counter("wisp_model_unloads", "Times that a model was unloaded", ["model"], registry=registry)
        self._utterances = Counter(
            "wisp_live_utterances", "Live utterances that have ended", ["outcome"], registry=registry
        )
        self._live_delay_s = Histogram(
            "wisp_live_delay_seconds",
            "From the newest audio that a pass over live speech heard to the words that it settled",
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._live_skipped = Counter(
            "wisp_live_steps_skipped", "Passes over live speech that were left out under load", registry=registry
        )
        for outcome in LIVE_OUTCOMES:
            self._utterances.labels(outcome)
        registry.register(_ModelLevels(levels))
        # A series that is not there until something happens cannot be told from one that is gone.
        for stage in ("upload", "wait", *STAGES):
            self._stage_s.labels(stage)
        for name, _, _ in levels.models():
            self._of_model(name)

    def _of_model(self, name: str) -> None:
        for outcome in OUTCOMES:
            self._ended.labels(name, outcome)
        for metric in (self._audio_s, self._tokens, self._factor, self._load_s, self._unloads):
            metric.labels(name)

    def model_moved(self, name: str, seconds: float | None) -> None:
        """A model has been loaded in so many seconds, or, with None, unloaded."""
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
        level = Gauge("wisp_live_sessions", "Live sessions in progress", registry=self._collectors)
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
        return generate_latest(self._collectors)
