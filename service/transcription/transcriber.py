"""One transcription: audio → features → guest → segments, in turns with others."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.audio.decode import Audio
from service.errors import (
    DeadlineExceeded,
    InternalError,
    ModelBroken,
    Overloaded,
    StartError,
    UnsupportedValue,
    WispError,
)
from service.guest.runner import Guest, GuestError
from service.guest.wasi_nn import Graph
from service.models.graphs import SpeechGraph, VoiceGraph
from service.models.languages import language_name
from service.models.loaded import Model
from service.models.tokenizer import Tokenizer
from service.transcription.admission import step_of
from service.transcription.chunking import Chunking
from service.transcription.reading import Reader, Upload, audio_of
from service.transcription.recent import Recent
from service.transcription.run import Run
from service.transcription.shared import Shared
from service.transcription.staged import Staged
from service.transcription.types import TEMPERATURES, Options, Segment, Token, Transcription, Word

__all__ = ["TEMPERATURES", "Options", "Segment", "Token", "Transcriber", "Transcription", "Word", "check_options"]

log = logging.getLogger("wisp")

RUN_AHEAD = 8  # greedy steps per compute requested by the guest

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


def check_options(options: Options, name: str, tokenizer: Tokenizer) -> None:
    """Raise UnsupportedValue for options that this model does not support."""
    if options.task == "translate" and not tokenizer.languages:
        raise UnsupportedValue(f"{name} knows English only: it cannot translate.", param="model")
    languages = tokenizer.languages
    spoken = "English only" if not languages else f"{len(languages)} languages, not including this one"
    if options.language is not None and not tokenizer.speaks(options.language):
        asked = f"{language_name(options.language).capitalize()} ('{options.language}')"
        raise UnsupportedValue(f"{asked} isn't a language of {name}: it knows {spoken}.", param="language")
    if options.languages and not any(tokenizer.speaks(language) for language in options.languages):
        asked = ", ".join(options.languages)
        raise UnsupportedValue(f"None of {asked} is a language of {name}: it knows {spoken}.", param="languages[]")


class Transcriber:
    """Transcriptions of one model: some compute in parallel, more take turns with them, the rest wait. Thread-safe.

    They share threads and turns with those of other models, see Shared.
    """

    def __init__(self, model: Model, guest: Guest, shared: Shared) -> None:
        self.model, self.guest, self.settings, self._shared = model, guest, shared.settings, shared
        self.vad = self.settings.vad
        self.proven_at = -math.inf  # when a window was last transcribed completely, by time.monotonic()
        self.moved_at = -math.inf  # when a network last started to compute, by the same clock
        self.n_under_way = 0  # submitted transcriptions that have not ended
        self._counting = threading.Lock()
        shared.house(model)
        desk = shared.desk(model.target)
        self.admission, self.reading, self.computing = desk.admission, desk.reading, desk.computing

    def is_proven(self, since: float) -> bool:
        """Whether a window has been transcribed since then (by time.monotonic()) without losing the GPU afterwards."""
        return self.proven_at >= since and not self.model.device_failures

    @property
    def is_busy(self) -> bool:
        """Whether as many submitted transcriptions are under way as compute at the same time."""
        return self.n_under_way >= self.computing.count

    def check(self, options: Options) -> None:
        """Raise UnsupportedValue for unsupported options; cheap, so that a request fails before it waits."""
        check_options(options, self.model.name, self.model.tokenizer)

    def submit(self, recording: Audio | Upload, options: Options, on_segment: SegmentListener | None = None) -> Run:
        """Queue a transcription. Raises QueueFull immediately; the run's future raises what transcribe() raises.

        `on_segment` is called in the run's thread.
        """
        self.check(options)
        run, is_pass = Run(self.model.name), options.settled is not None

        def call() -> Transcription:
            result = self.transcribe(recording, options, on_segment, run)
            if not is_pass:
                self.admission.succeeded(run.elapsed())  # requests only: a probe is shorter, and so is a pass
            return result

        if not is_pass:
            run.future.add_done_callback(lambda _: run.context.run(self._shared.observe_run, run))
        self.admission.submit(run, call, n_bytes=recording.n_bytes() if isinstance(recording, Upload) else 0)
        self._count(1)
        run.future.add_done_callback(lambda _: self._count(-1))
        return run

    def _count(self, n: int) -> None:
        with self._counting:
            self.n_under_way += n

    def transcribe(
        self,
        recording: Audio | Upload,
        options: Options,
        on_segment: SegmentListener | None = None,
        run: Run | None = None,
    ) -> Transcription:
        """Transcribe in the calling thread, in turns with other calls, within a deadline that grows with the audio.

        `run` measures it and can cancel it. Raises WispError classes only: what decode() raises for an Upload,
        DeadlineExceeded, ClientGone when cancelled, UnreadableAudio if the file breaks off in the middle, DeviceLost,
        ModelTooLarge, ModelBroken if the model cannot be loaded, and InternalError for a fault of the guest. The log
        has the reports of the last two.
        """
        run = run or Run()
        run.begin(self.settings.deadline_floor_s)
        try:
            return self._transcribe(run, recording, options, on_segment)
        except DeadlineExceeded as error:
            for report in getattr(error, "__notes__", ()):
                log.error("guest timed out: %s", report)
            raise
        except GuestError as error:
            log.error("guest failed: %s", error)
            raise InternalError from error
        except StartError as error:  # the model, which is loaded when it is needed
            log.error("%s", error)
            raise ModelBroken(self.model.name) from error
        except WispError:
            raise
        except Exception as error:
            if Overloaded.is_meant_by(error):
                log.error("transcription failed: %s", error)
                raise Overloaded from error
            log.exception("transcription failed")
            raise InternalError from error
        finally:
            run.enter("")

    def _transcribe(
        self, run: Run, recording: Audio | Upload, options: Options, on_segment: SegmentListener | None = None
    ) -> Transcription:
        """Continues in a turn that the run already holds (a guest's, through the graph NAME)."""
        started, is_within = time.monotonic(), run.is_working
        events = _Events(on_segment, self.model.tokenizer)

        def on_block(seconds: float) -> None:
            run.allow(self.settings.deadline_s(seconds))
            if not is_within:
                self.admission.lasts(run, seconds)

        run.check()
        is_cut = self.vad == "cut" and not options.uncut and options.settled is None
        chunking = options.chunking or (Chunking() if is_cut else None)
        recent = Recent() if chunking or self.vad != "off" else None
        with run.working(self.reading):
            reader = Reader(run, on_block, recent)
            run.enter("decode_audio")
            audio = reader.decoded(recording)
            run.audio_s = audio.duration
            run.enter("features")
            run.allow(self.settings.deadline_s(audio.duration))
            log_mel = reader.features(audio, self.model.dims.n_mels)
            clips = reader.clips(audio, chunking) if chunking is not None else None
            run.enter("")
        argument = self.argument(options, silence=log_mel.silence, clips=clips)
        step = step_of(audio.duration)
        with self.graphs(run, recent, step) as graphs, run.working(self.computing, step):
            stdin = run.during("features", (block.tobytes() for block in log_mel))
            self.guest.run(argument, stdin, graphs, events, run.check)
        if events.done is None:
            raise GuestError("it ended without a result")
        self.proven_at = time.monotonic()
        segments = tuple(events.segments)
        run.audio_s, run.n_tokens = audio.duration, sum(len(segment.tokens) for segment in segments)
        made = "1 segment" if len(segments) == 1 else f"{len(segments)} segments"
        took_s, name = time.monotonic() - started, self.model.name
        level = logging.INFO if options.settled is None else logging.DEBUG  # a live session has a pass every second
        log.log(level, "transcribed %.2f s of %s by %s in %.3f s, %s", audio.duration, audio.format, name, took_s, made)
        text, language = events.done["text"].strip(), events.done["language"]
        return Transcription(text, language, audio.duration, segments, options.task)

    @contextmanager
    def graphs(self, run: Run, recent: Recent | None = None, step: int = 0) -> Iterator[Mapping[str, Graph]]:
        """A block in which the model is loaded, and the graphs by which a guest computes for `run`.

        It begins before the run has its turn, so that nobody keeps a turn from others while it waits for room in
        memory. That wait and the loading do not count against the deadline, and leave the run's place to others. Before
        each window others may go first.
        NAME is a whole transcription within the run's turn. `recent`: what is listened to for NAME/voice. `step`: how
        long the run is. Raises as Model.in_use() does.
        """
        name = self.model.name
        with ExitStack() as stack:
            if run.is_working:
                graphs = stack.enter_context(self.model.in_use_again())
            else:
                graphs = stack.enter_context(self._loaded(run, step))
            own: dict[str, Graph] = {
                name: Staged(SpeechGraph(lambda samples: self._transcribe(run, audio_of(samples), Options()).text)),
                f"{name}/encoder": Staged(graphs[f"{name}/encoder"], partial(self._begin_window, run)),
                f"{name}/decoder": Staged(graphs[f"{name}/decoder"], partial(self._begin_tokens, run)),
            }
            if recent is not None:
                own[f"{name}/voice"] = VoiceGraph(recent.has_speech)
            yield {**graphs, **own}

    @contextmanager
    def _loaded(self, run: Run, step: int) -> Iterator[Mapping[str, Graph]]:
        with ExitStack() as stack:
            with run.waiting(), ExitStack() as aside:

                def check() -> None:  # called once it has to wait for room
                    run.check()
                    if not run.is_aside:
                        aside.enter_context(self.admission.stepped_aside(run))

                if not self.model.is_loaded:
                    check()
                graphs = stack.enter_context(self.model.in_use(step, check))
            yield graphs

    def _begin_window(self, run: Run) -> None:
        self.moved_at = time.monotonic()
        if "decode_tokens" in run.seconds:
            self.proven_at = time.monotonic()
        run.enter("")
        run.border()
        run.enter("encode")

    def _begin_tokens(self, run: Run) -> None:
        self.moved_at = time.monotonic()
        run.enter("decode_tokens")

    def argument(
        self, options: Options, *, silence: float = 0.0, clips: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """The guest's argument: the model's constants and openai/whisper's option names.

        `silence`: padding after the end of the recording for language detection, see LogMelFrames. `clips`: start, end,
        start, … in seconds of the parts to transcribe; None for all.
        """
        model = self.model
        tokens = model.tokenizer.guest_tokens()
        if options.languages and options.language is None:
            tokens["languages"] = {
                code: token for code, token in tokens["languages"].items() if code in options.languages
            }
        prompts = [", ".join(options.keywords), options.prompt or ""]
        n_beams = options.beam_size or self.settings.beam_size or model.num_beams
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
                "settled": options.settled,
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
