"""One transcription: audio → features → guest → segments; and admission: so many run, so many may wait."""

import contextvars
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.audio import Audio, Samples
from service.errors import ClientGone, DeadlineExceeded, InternalError, QueueFull, UnsupportedValue, WispError
from service.features import log_mel_frames
from service.guest import Guest, GuestCancelled, GuestError, GuestTimeout
from service.languages import language_name
from service.models import Model

log = logging.getLogger("wisp")

RUN_AHEAD = 8  # greedy steps the guest asks for in one compute
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # openai/whisper's ladder: the next where a window fails its checks
FIRST_GUESS_S = 1.0  # how long a job takes, before any has finished: only Retry-After needs it
LONGEST_RETRY_S = 60


@dataclass(frozen=True)
class Options:
    """What a caller may ask for. `language` is Whisper's code or None to detect it.

    `temperature` as in openai/whisper: 0 is greedy; of several, the next is tried when a window fails its checks.
    `keywords` are words to expect: unlike `prompt`, which leads up to the first window, they are put before every one.
    """

    language: str | None = None
    prompt: str | None = None
    temperature: tuple[float, ...] = TEMPERATURES
    word_timestamps: bool = False
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Word:
    """One word with the space before it and its punctuation: start, end in seconds; its mean token probability."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """One segment as openai/whisper makes it: start, end in seconds, seek in frames of 10 ms, text with its space.

    `words` where they were asked for.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcription:
    """The whole answer: text without space around it, Whisper's language code, seconds of audio, segments in order."""

    text: str
    language: str
    duration: float
    segments: tuple[Segment, ...]


SegmentListener = Callable[[Segment], None]


@dataclass
class _Events:
    """Collects a guest's JSON lines."""

    on_segment: SegmentListener | None
    segments: list[Segment] = field(default_factory=list)
    done: dict[str, Any] | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "segment":
                values = {name: event[name] for name in Segment.__dataclass_fields__ if name != "words"}
                words = tuple(Word(**word) for word in event.get("words", ()))
                segment = Segment(**values | {"tokens": tuple(event["tokens"]), "words": words})
                self.segments.append(segment)
                if self.on_segment is not None:
                    self.on_segment(segment)
            case "done":
                self.done = event


class _Job:
    """A call to be made once. A thread pool keeps even a withdrawn one until a thread is free: forget() empties it."""

    def __init__(self, call: "Callable[[], Transcription]") -> None:
        self._call: Callable[[], Transcription] | None = call

    def __call__(self) -> Transcription:
        call = self._call
        if call is None:
            raise ClientGone
        return call()

    def forget(self) -> None:
        """Let go of what the call needs."""
        self._call = None


class Transcriber:
    """Runs transcriptions of one model, `workers` at once and `queue_length` waiting. Thread-safe; owns its threads."""

    def __init__(
        self,
        model: Model,
        guest: Guest,
        *,
        workers: int = 2,
        queue_length: int = 128,
        deadline_floor_s: float = 60.0,
        deadline_factor: float = 10.0,
    ) -> None:
        self.model, self.guest = model, guest
        self.workers, self.queue_length = workers, queue_length
        self.deadline_floor_s, self.deadline_factor = deadline_floor_s, deadline_factor
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="wisp-job")
        self._lock = threading.Condition()  # notified when a job comes or leaves
        self._admitted: set[threading.Event] = set()  # the cancellation of every job that runs or waits
        self._job_s = FIRST_GUESS_S
        self._succeeded = False

    def settle(self, grace_s: float) -> bool:
        """Wait while jobs run or wait, or `grace_s` for the first to come; True once any has succeeded."""
        with self._lock:
            self._lock.wait_for(lambda: self._admitted, grace_s)
            self._lock.wait_for(lambda: self._succeeded or not self._admitted)
            return self._succeeded

    def check(self, options: Options) -> None:
        """Raise UnsupportedValue for what this model cannot do; cheap, so that a request fails before it waits."""
        tokenizer = self.model.tokenizer
        if options.language is None or tokenizer.speaks(options.language):
            return
        languages = tokenizer.languages
        spoken = "English only" if not languages else f"{len(languages)} languages, this one not among them"
        asked = f"{language_name(options.language).capitalize()} ('{options.language}')"
        raise UnsupportedValue(f"{asked} is not a language of {self.model.name}: it knows {spoken}.", param="language")

    def check_room(self) -> None:
        """Raise QueueFull where a job submitted now would be refused, so that its upload need not be read."""
        with self._lock:
            n_admitted = len(self._admitted)
            if n_admitted >= self.workers + self.queue_length:
                raise QueueFull(min(LONGEST_RETRY_S, math.ceil(self._job_s * n_admitted / self.workers)))

    def submit(
        self, audio: Audio, options: Options, on_segment: SegmentListener | None, cancelled: threading.Event
    ) -> "Future[Transcription]":
        """Queue a transcription. Raises QueueFull at once; the future raises what transcribe() raises.

        `on_segment` is called in the job's thread. To withdraw the job, waiting or running, set `cancelled` and cancel
        the future.
        """
        self.check(options)
        with self._lock:
            self.check_room()
            self._admitted.add(cancelled)
            self._lock.notify_all()
        try:
            # The request's context goes along, so that what the job logs carries the request's id.
            context = contextvars.copy_context()
            job = _Job(partial(context.run, self.transcribe, audio, options, on_segment, cancelled))
            future = self._threads.submit(job)
        except BaseException:
            self._leave(cancelled)
            raise
        future.add_done_callback(lambda _: job.forget())
        future.add_done_callback(lambda _: self._leave(cancelled))
        return future

    def _leave(self, cancelled: threading.Event) -> None:
        with self._lock:
            self._admitted.discard(cancelled)
            self._lock.notify_all()

    def transcribe(
        self,
        audio: Audio,
        options: Options,
        on_segment: SegmentListener | None = None,
        cancelled: threading.Event | None = None,
    ) -> Transcription:
        """Transcribe in the calling thread, within a deadline that grows with the audio's length.

        Raises WispError classes only: DeadlineExceeded, ClientGone when cancelled, UnreadableAudio when the file breaks
        off in the middle, InternalError for a fault of the guest's, whose report goes to the log.
        """
        started = time.monotonic()
        deadline_s = self.deadline_floor_s + self.deadline_factor * audio.duration
        events = _Events(on_segment)

        def blocks() -> Iterator[Samples]:
            # Before the guest has its first frame all of a long recording is read, for its loudest value.
            for block in audio.blocks():
                if cancelled is not None and cancelled.is_set():
                    raise ClientGone
                if time.monotonic() - started > deadline_s:
                    raise DeadlineExceeded(deadline_s)
                yield block

        try:
            if cancelled is not None and cancelled.is_set():
                raise ClientGone
            log_mel = log_mel_frames(blocks, self.model.dims.n_mels)
            argument = self.argument(options, silence=log_mel.silence)
            frames = (block.tobytes() for block in log_mel)
            left_s = max(0.0, deadline_s - (time.monotonic() - started))
            self.guest.run(argument, frames, self.model.graphs, events, deadline_s=left_s, cancelled=cancelled)
        except GuestCancelled:
            raise ClientGone from None
        except GuestTimeout as error:
            log.error("guest timed out: %s", error)
            raise DeadlineExceeded(deadline_s) from error
        except GuestError as error:
            log.error("guest failed: %s", error)
            raise InternalError from error
        except WispError:
            raise
        except Exception as error:
            log.exception("transcription failed")
            raise InternalError from error
        if events.done is None:
            log.error("guest ended without a result")
            raise InternalError
        took_s = time.monotonic() - started
        with self._lock:
            self._job_s += (took_s - self._job_s) / 4
            self._succeeded = True
        n_segments = len(events.segments)
        made = "1 segment" if n_segments == 1 else f"{n_segments} segments"
        log.info("transcribed %.2f s of %s in %.3f s, %s", audio.duration, audio.format, took_s, made)
        return Transcription(
            events.done["text"].strip(), events.done["language"], audio.duration, tuple(events.segments)
        )

    def argument(self, options: Options, *, silence: float = 0.0) -> dict[str, Any]:
        """The guest's argument: the model's constants and openai/whisper's option names.

        `silence`: what follows the recording's end where its language is detected, see LogMelFrames.
        """
        model = self.model
        prompts = [", ".join(options.keywords), options.prompt or ""]
        return {
            "model": model.name,
            "dims": {name: getattr(model.dims, name) for name in ("n_mels", "n_audio_ctx", "n_vocab", "n_text_ctx")},
            "is_multilingual": model.tokenizer.is_multilingual,
            "tokens": model.tokenizer.guest_tokens(),
            "silence": silence,
            "options": {
                "task": "transcribe",
                "language": options.language or model.language,
                "temperature": list(options.temperature),
                "initial_prompt": ". ".join(text for text in prompts if text) or None,
                "carry_initial_prompt": bool(options.keywords),
                "word_timestamps": options.word_timestamps,
                "run_ahead": RUN_AHEAD,
            },
        }

    def close(self) -> None:
        """Cancel what runs and waits, and end the threads. Idempotent."""
        with self._lock:
            for cancelled in self._admitted:
                cancelled.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
