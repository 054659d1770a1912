"""One transcription: audio → features → guest → segments, in turns with others."""

import contextvars
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from service.audio.decode import Audio
from service.audio.log_mel import LogMelFrames
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    SetAside,
    StartError,
    UnsupportedValue,
    WispError,
)
from service.guest.runner import Guest, GuestCancelled, GuestError, GuestTimeout
from service.guest.wasi_nn import Graph
from service.models.graphs import VoiceGraph
from service.models.languages import language_name
from service.models.loaded import Model, Target
from service.models.tokenizer import Tokenizer
from service.transcription.admission import Admission, step_of
from service.transcription.chunking import Chunking
from service.transcription.reading import Reader, Upload
from service.transcription.recent import Recent
from service.transcription.turns import StopWatch, Turn, Turns
from service.transcription.types import TEMPERATURES, Options, Segment, Token, Transcription, Word
from service.transcription.work import Work

__all__ = ["TEMPERATURES", "Options", "Segment", "Token", "Transcriber", "Transcription", "Word", "check_options"]

log = logging.getLogger("wisp")

RUN_AHEAD = 8  # greedy steps the guest asks for in one compute
GPU_WORKERS, CORES_A_WORKER = 16, 4
N_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SegmentListener = Callable[[Segment], None]


@dataclass
class _Events:
    """Collects a guest's JSON lines."""

    on_segment: SegmentListener | None
    tokenizer: Tokenizer
    segments: list[Segment] = field(default_factory=list)
    done: dict[str, Any] | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "segment":
                asked_for = {
                    "words": tuple(Word(**word) for word in event.get("words", ())),
                    "logprobs": self._logprobs(event) if "logprobs" in event else (),
                }
                values = {name: event[name] for name in Segment.__dataclass_fields__ if name not in asked_for}
                segment = Segment(**values | {"tokens": tuple(event["tokens"])} | asked_for)
                self.segments.append(segment)
                if self.on_segment is not None:
                    self.on_segment(segment)
            case "done":
                self.done = event

    def _logprobs(self, event: dict[str, Any]) -> tuple[Token, ...]:
        found = []
        for token, logprob in zip(event["tokens"], event["logprobs"], strict=True):
            if token < self.tokenizer.eot:
                data = self.tokenizer.token_bytes(token)
                found.append(Token(data.decode("utf-8", "replace"), data, logprob))
        return tuple(found)


def default_workers(target: Target, n_cores: int = N_CORES) -> int:
    """How many transcriptions compute at once where nobody has said.

    A GPU decodes that many together in the same launches, and a large one encodes as many. On the CPU one transcription
    has all the cores where there is work to share out, and a few of them where a token is decoded.
    """
    if target.name == "gpu" and not target.is_software:
        return GPU_WORKERS
    return max(2, n_cores // CORES_A_WORKER)


def check_options(options: Options, name: str, tokenizer: Tokenizer) -> None:
    """Raise UnsupportedValue for what the model of that name and tokenizer cannot do."""
    if options.task == "translate" and not tokenizer.languages:
        raise UnsupportedValue(f"{name} knows English only: it cannot translate.", param="model")
    languages = tokenizer.languages
    spoken = "English only" if not languages else f"{len(languages)} languages, this one not among them"
    if options.language is not None and not tokenizer.speaks(options.language):
        asked = f"{language_name(options.language).capitalize()} ('{options.language}')"
        raise UnsupportedValue(f"{asked} is not a language of {name}: it knows {spoken}.", param="language")
    if options.languages and not any(tokenizer.speaks(language) for language in options.languages):
        asked = ", ".join(options.languages)
        raise UnsupportedValue(f"Of {asked} none is a language of {name}: it knows {spoken}.", param="languages[]")


class Transcriber:
    """Transcriptions of one model: `workers` compute at once, `open_jobs` take turns at that, `queue_length` more wait.

    Thread-safe; owns its threads.
    """

    def __init__(
        self,
        model: Model,
        guest: Guest,
        *,
        workers: int = 2,
        open_jobs: int = 16,
        queue_length: int = 128,
        deadline_floor_s: float = 60.0,
        deadline_factor: float = 10.0,
        beam_size: int = 0,
        vad: str = "skip",
        observe: Callable[[Work], None] = lambda work: None,
    ) -> None:
        """`beam_size`: 1 is greedy, 0 as the model says. `vad`: what becomes of silence, see Settings.

        `observe`: called with each submitted transcription's work once that has ended, in its request's context.
        """
        self.model, self.guest, self.vad, self.observe = model, guest, vad, observe
        self.proven_at = -math.inf  # when a window was last transcribed to its end, by time.monotonic()
        self.moved_at = -math.inf  # when a network was last asked for something, by the same clock
        self.deadline_floor_s, self.deadline_factor = deadline_floor_s, deadline_factor
        self.beam_size = beam_size or model.num_beams
        self.admission = Admission(n_open=open_jobs, queue_length=queue_length, n_at_once=workers)
        self.reading, self.computing = Turns(min(workers, N_CORES)), Turns(workers)

    def is_proven(self, since: float) -> bool:
        """Whether a window has been transcribed since then, by time.monotonic(), and the GPU not been lost after it."""
        return self.proven_at >= since and not self.model.device_failures

    def check(self, options: Options) -> None:
        """Raise UnsupportedValue for what this model cannot do; cheap, so that a request fails before it waits."""
        check_options(options, self.model.name, self.model.tokenizer)

    def submit(
        self,
        recording: Audio | Upload,
        options: Options,
        on_segment: SegmentListener | None,
        cancelled: threading.Event,
    ) -> "Future[Transcription]":
        """Queue a transcription. Raises QueueFull at once; the future raises what transcribe() raises.

        `on_segment` is called in the job's thread. To withdraw the job, waiting or running, set `cancelled` and cancel
        the future.
        """
        self.check(options)
        work, context = Work(), contextvars.copy_context()

        def job() -> Transcription:
            result = self.transcribe(recording, options, on_segment, cancelled, work)
            self.admission.succeeded(work.clock())  # of requests only: a probe is shorter
            return result

        n_bytes = recording.n_bytes() if isinstance(recording, Upload) else 0
        future = self.admission.submit(job, cancelled, n_bytes=n_bytes)
        future.add_done_callback(work.end)
        future.add_done_callback(lambda _: context.run(self.observe, work))
        return future

    def transcribe(
        self,
        recording: Audio | Upload,
        options: Options,
        on_segment: SegmentListener | None = None,
        cancelled: threading.Event | None = None,
        work: Work | None = None,
    ) -> Transcription:
        """Transcribe in the calling thread, in turns with other calls, within a deadline that grows with the audio.

        The time that it waits for its turns does not count. Raises WispError classes only: what decode() raises for an
        Upload, DeadlineExceeded, ClientGone when cancelled, UnreadableAudio when the file breaks off in the middle,
        DeviceLost, InternalError for a fault of the guest's, whose report goes to the log.
        """
        started, watch, events = time.monotonic(), StopWatch(), _Events(on_segment, self.model.tokenizer)
        deadline_s = self.deadline_floor_s
        work = work or Work()
        work.clock = watch.seconds

        def check() -> None:
            if cancelled is not None and cancelled.is_set():
                raise ClientGone

        def on_block(seconds: float) -> None:
            check()
            limit_s = max(deadline_s, self.deadline_floor_s + self.deadline_factor * seconds)
            if watch.seconds() > limit_s:
                raise DeadlineExceeded(limit_s)
            self.admission.lasts(seconds)

        try:
            check()
            with Turn(self.reading, watch, check) as turn:
                chunking = options.chunking or (Chunking() if self.vad == "cut" and not options.uncut else None)
                recent = Recent() if chunking or self.vad != "off" else None
                reader = Reader(turn, on_block, recent)
                work.enter("decode_audio")
                audio = reader.decoded(recording)
                work.audio_s = audio.duration
                work.enter("features")
                deadline_s += self.deadline_factor * audio.duration
                log_mel = reader.features(audio, self.model.dims.n_mels)
                clips = None
                if chunking is not None:
                    clips = reader.clips(audio, chunking)
                work.enter("")
            argument = self.argument(options, silence=log_mel.silence, clips=clips)
            step = step_of(audio.duration)
            with Turn(self.computing, watch, check, step=step) as turn, self.model.in_use() as graphs:
                if recent is not None:
                    graphs = {**graphs, f"{self.model.name}/voice": VoiceGraph(recent.has_speech)}
                self._run_guest(argument, log_mel, graphs, events, turn, deadline_s, cancelled, work)
        except SetAside:
            work.enter("")
            raise
        except GuestCancelled:
            raise ClientGone from None
        except GuestTimeout as error:
            log.error("guest timed out: %s", error)
            raise DeadlineExceeded(deadline_s) from error
        except GuestError as error:
            log.error("guest failed: %s", error)
            raise InternalError from error
        except StartError as error:  # the model, which is loaded again after a time without use
            log.error("%s", error)
            raise InternalError from error
        except WispError:
            raise
        except Exception as error:
            if Overloaded.is_meant_by(error):
                log.error("transcription failed: %s", error)
                raise Overloaded from error
            log.exception("transcription failed")
            raise InternalError from error
        if events.done is None:
            log.error("guest ended without a result")
            raise InternalError
        self.proven_at = time.monotonic()
        work.n_tokens = sum(len(segment.tokens) for segment in events.segments)
        n_segments = len(events.segments)
        made = "1 segment" if n_segments == 1 else f"{n_segments} segments"
        took_s = time.monotonic() - started
        log.info("transcribed %.2f s of %s in %.3f s, %s", audio.duration, audio.format, took_s, made)
        return Transcription(
            events.done["text"].strip(),
            events.done["language"],
            audio.duration,
            tuple(events.segments),
            options.task,
        )

    def _run_guest(
        self,
        argument: dict[str, Any],
        log_mel: LogMelFrames,
        graphs: Mapping[str, Graph],
        events: _Events,
        turn: Turn,
        deadline_s: float,
        cancelled: threading.Event | None,
        work: Work,
    ) -> None:
        """Run the guest under `turn`, which it gives up whenever another window of audio is to be encoded."""
        stages = {f"{self.model.name}/encoder": "encode", f"{self.model.name}/decoder": "decode_tokens"}

        def before_compute(graph: str) -> None:
            self.moved_at = time.monotonic()
            stage = stages.get(graph)
            if stage == "encode":
                if "decode_tokens" in work.seconds:
                    self.proven_at = time.monotonic()
                work.enter("")
                turn.border()
            if stage:
                work.enter(stage)

        self.guest.run(
            argument,
            work.during("features", (block.tobytes() for block in log_mel)),
            graphs,
            events,
            deadline_s=max(0.0, deadline_s - turn.watch.seconds()),
            cancelled=cancelled,
            clock=turn.watch.seconds,
            before_compute=before_compute,
        )

    def argument(
        self, options: Options, *, silence: float = 0.0, clips: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """The guest's argument: the model's constants and openai/whisper's option names.

        `silence`: what follows the recording's end where its language is detected, see LogMelFrames. `clips`: start,
        end, start, … in seconds of what is to be heard; None for all.
        """
        model = self.model
        tokens = model.tokenizer.guest_tokens()
        if options.languages and options.language is None:
            tokens["languages"] = {
                code: token for code, token in tokens["languages"].items() if code in options.languages
            }
        prompts = [", ".join(options.keywords), options.prompt or ""]
        n_beams = options.beam_size or self.beam_size
        return {
            "model": model.name,
            "dims": {name: getattr(model.dims, name) for name in ("n_mels", "n_audio_ctx", "n_vocab", "n_text_ctx")},
            "is_multilingual": model.tokenizer.is_multilingual,
            "tokens": tokens,
            "silence": silence,
            "options": {
                "task": options.task,
                "language": options.language or (None if options.languages else model.language),
                "temperature": list(options.temperature),
                "beam_size": n_beams if n_beams > 1 else None,
                "without_timestamps": options.without_timestamps,
                "seed": options.seed,
                "initial_prompt": ". ".join(text for text in prompts if text) or None,
                "carry_initial_prompt": bool(options.keywords),
                "condition_on_previous_text": model.condition_on_prev_tokens,
                "word_timestamps": options.word_timestamps,
                "run_ahead": RUN_AHEAD,
                "emit_tokens": options.logprobs,
                "clip_timestamps": clips or [0.0],
                "detect_in_clips": clips is not None,
                "no_speech": "skip" if self.vad != "off" and clips is None else "reference",
                "last_rung": "best",
                "times": "sound",
            },
        }

    def close(self) -> None:
        """Cancel what runs and waits, and end the threads. Idempotent."""
        self.admission.close()
