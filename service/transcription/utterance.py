"""One stretch of live speech: heard again and again while it grows, until its words are settled."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.audio.log_mel import HOP_LENGTH, SAMPLE_RATE, Samples
from service.errors import ClientGone, Overloaded, QueueFull, WispError
from service.transcription.agreement import Agreement
from service.transcription.reading import audio_of
from service.transcription.transcriber import Transcriber
from service.transcription.types import Options, Token

log = logging.getLogger("wisp")

MOST_SETTLED = 160  # tokens in one window: a decoder of 448 positions has room for 224 after the prompt
SILENCE_S = 2.0  # at the end: more than this is heard, too, as voice-activity detection may have missed speech in it
CONTINUED_SHARE = 0.4  # of a window, for the utterance before, which is heard again
MOST_STEPS = 5  # that are skipped at once on a busy server
LEAST_S = 0.2  # of speech after the last segment, to listen again
MOST_TRIES = 40
RETRY_S = 0.25  # before a last pass that found no place is tried again
LEAST_LOGPROB, MOST_COMPRESSION = -1.0, 2.4  # openai/whisper's checks: a pass that fails them settles nothing


@dataclass(frozen=True)
class Words:
    """What a pass has brought. `settled` continues the text so far and stays; `rest` may still change.

    `logprobs`: of the settled tokens, if requested. `delay_s`: since the newest audio of the pass came.
    """

    settled: str
    logprobs: tuple[Token, ...]
    rest: str
    delay_s: float


@dataclass(frozen=True)
class Heard:
    """A finished utterance. `text` is all of its settled texts joined; `language` is Whisper's code."""

    text: str
    language: str
    seconds: float
    logprobs: tuple[Token, ...]


@dataclass(frozen=True)
class _Pass:
    """What one pass has heard: its tokens, which begin with the settled ones, and the audio it is about."""

    tokens: tuple[int, ...]
    logprobs: tuple[Token, ...]  # of the text tokens
    is_sure: bool  # whether it passes openai/whisper's checks
    language: str
    came_at: float


class Utterance:
    """Owned by one event loop, where `on_words` is called too. Its passes take turns with all other transcriptions."""

    busy_share = 0.5  # of the time that passes may take: slower ones come less often

    def __init__(
        self,
        transcriber: Transcriber,
        options: Options,
        on_words: Callable[["Utterance", Words], None],
        before: "Utterance | None" = None,
        gap: int = 0,
    ) -> None:
        """Starts to listen. `options`: temperatures and beams are for the passes over pauses and whole windows.

        `before`: the utterance that this one continues, after `gap` samples.
        """
        self._transcriber, self._options, self._on_words = transcriber, options, on_words
        self._before, self._gap = before, gap
        self._tokenizer = transcriber.model.tokenizer
        self._step = int(transcriber.settings.live_step_s * SAMPLE_RATE)
        self._agreement = Agreement(self._tokenizer)
        dims = transcriber.model.dims
        self._n_window = 2 * dims.n_audio_ctx * HOP_LENGTH  # samples: 30 s
        self._n_long = self._n_window // 2  # from this length on, settled segments are cut off, as in Macháček et al.'s
        self._most_settled = dims.n_text_ctx * MOST_SETTLED // 448
        self._samples: Samples = np.empty(0, np.float32)  # of the current window and what follows it
        self._blocks: list[Samples] = []  # directly after them
        self._n_before = 0  # samples before the current window
        self._n_samples = self._n_voice = 0  # in all; up to the last speech
        self._n_heard = 0  # by any pass
        self._n_done = 0  # by one that was made as if the utterance were over
        self._due_at = self._step  # samples
        self._retry_at = 0  # after a failed pass
        self._came_at = time.monotonic()
        self._at_pause: _Pass | None = None
        self._text, self._rest, self._logprobs = "", "", list[Token]()
        self._language, self._detected = options.language, "en"
        self._is_pausing = self._is_stopped = False
        self._due, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self.n_passes = self.n_skipped = 0
        self._task = asyncio.create_task(self._listen())
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # result() may never be called

    @property
    def seconds(self) -> float:
        """Of its audio so far."""
        return self._n_samples / SAMPLE_RATE

    @property
    def unheard_s(self) -> float:
        """Seconds of audio that wait for a pass; 0 while none is due."""
        is_waiting = not self._task.done() and not self._idle.is_set()
        return (self._n_samples - self._n_heard) / SAMPLE_RATE if is_waiting else 0.0

    def add(self, samples: Samples, *, has_speech: bool = True) -> None:
        """(n,) f32 samples of 16 kHz, directly after the last. After a failure they are dropped."""
        if self._task.done():
            return
        self._blocks.append(samples)
        self._n_samples += len(samples)
        self._came_at = time.monotonic()
        if has_speech:
            self._n_voice, self._is_pausing = self._n_samples, False
        self._look()

    def pause(self) -> None:
        """The speaker is silent. If no more is said, what is heard now is the result."""
        self._is_pausing = True
        self._look()

    def stop(self) -> None:
        """No more audio comes."""
        self._is_stopped = True
        self._look()

    async def result(self) -> Heard:
        """The whole utterance, after stop(). Raises WispError; ClientGone after cancel()."""
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled():
                raise ClientGone from None
            raise
        return Heard(self._text, self._language or self._detected, self.seconds, tuple(self._logprobs))

    async def idle(self) -> None:
        """Wait until no pass is due."""
        await self._idle.wait()

    def cancel(self) -> None:
        """End it and free its audio. Idempotent."""
        self._task.cancel()
        self._before = None
        self._samples, self._blocks = np.empty(0, np.float32), []

    def _look(self) -> None:
        """Start the next pass if it is due."""
        if not self._task.done() and (self._is_stopped or self._is_full() or self._is_due()):
            self._idle.clear()
            self._due.set()

    def _is_full(self) -> bool:
        """Whether the window is: of audio, or of settled tokens, which take the decoder's room."""
        return self._n_samples - self._n_before >= self._n_window or len(self._agreement.settled) >= self._most_settled

    def _is_due(self) -> bool:
        if self._n_voice <= (self._n_done if self._is_pausing else self._n_heard):
            return False
        if self._transcriber.is_busy and self._n_samples - self._n_heard < MOST_STEPS * self._step:
            return False  # what others need for their results comes first
        return self._n_samples >= (self._retry_at if self._is_pausing else self._due_at)

    def _continue(self) -> None:
        """Let the window begin with the utterance before, so that the decoder hears the whole sentence."""
        before, self._before = self._before, None
        if before is None or before._task.cancelled() or before._task.exception():
            return
        self._agreement, window = before._agreement, before._samples
        window = window[round(self._agreement.cut() * SAMPLE_RATE) :]
        is_short = len(window) + self._gap <= CONTINUED_SHARE * self._n_window
        # Somebody else may speak another language, which is detected at a window's start.
        is_known = self._language is not None and before._options.language == self._options.language
        is_same = is_known or not self._tokenizer.languages
        if not (self._agreement.settled and is_short and is_same):
            self._agreement.restart()
            return
        self._agreement.end_at(len(window) / SAMPLE_RATE)
        self._samples = np.concatenate([window, np.zeros(self._gap, np.float32)])
        self._n_before = -len(self._samples)

    async def _listen(self) -> None:
        try:
            await self._due.wait()
            if self._before is not None:
                await asyncio.wait([self._before._task])
            self._continue()
            while True:
                if self._is_full():
                    await self._hear_window()
                elif self._is_stopped:
                    await self._hear_end()
                    return
                elif self._is_due():
                    await self._hear_on()
                else:
                    self._due.clear()
                    self._idle.set()
                    await self._due.wait()
        finally:
            self._idle.set()

    async def _hear_on(self) -> None:
        """A pass while you speak, or pauses. If it fails, the next one hears its audio too."""
        is_pause, n_samples, started = self._is_pausing, self._n_samples, time.monotonic()
        self.n_skipped += max(0, n_samples - self._due_at) // self._step
        options = self._options if is_pause else replace(self._options, temperature=(0.0,), beam_size=1)
        heard: _Pass | None = None
        try:
            heard = await self._hear(options)
        except ClientGone:
            raise
        except WispError as error:
            log.debug("a step of live speech is skipped: %s", error)
            self.n_skipped += 1
            self._retry_at = n_samples + self._step
        busy = int((time.monotonic() - started) / self.busy_share * SAMPLE_RATE)
        self._due_at = n_samples + max(self._step, busy)
        if heard is None:
            return
        self._n_heard = n_samples
        settled = self._agreement.settled
        if is_pause:
            self._at_pause, self._n_done = heard, n_samples
        if heard.is_sure:
            self._say(heard, self._agreement.take(heard.tokens, heard.language), after=settled)
            if not is_pause:
                n_settled = len(self._agreement.settled)
                is_long = n_samples - self._n_before >= self._n_long or n_settled >= self._most_settled // 2
                self._drop(self._agreement.cut(is_long=is_long))

    async def _hear_window(self) -> None:
        """A pass over a full window, which ends it."""
        n = min(self._n_window, self._n_samples - self._n_before)
        heard = await self._hear_surely(n)
        if not self._is_full():
            return  # the window was restarted and has room again
        settled = self._agreement.settled
        new, seconds = self._agreement.end_window(heard.tokens, n / SAMPLE_RATE)
        self._say(heard, new, after=settled)
        self._n_heard = max(self._n_heard, self._n_before + n)
        self._drop(seconds)
        self._at_pause, self._n_done = None, self._n_before
        self._due_at = self._n_heard + self._step

    async def _hear_end(self) -> None:
        """The last pass, unless one has been made in the silence at the end."""
        if (
            self._n_voice > self._n_done
            or self._n_samples - self._n_done > SILENCE_S * SAMPLE_RATE
            or not self.n_passes
        ):
            self._at_pause = await self._hear_surely()
        while (heard := self._at_pause) is not None:
            settled = self._agreement.settled
            self._say(heard, self._agreement.take_all(heard.tokens), after=settled)
            self._drop(self._agreement.cut(is_long=False))
            # The decoder may close a segment and stop, although more is said.
            is_over = self._agreement.settled == heard.tokens or self._n_voice - self._n_before < LEAST_S * SAMPLE_RATE
            self._at_pause = None if is_over else await self._hear_surely()

    async def _hear_surely(self, n: int | None = None) -> _Pass:
        """A pass that waits for a place for as long as it takes, and for memory or threads for a while.

        Raises WispError.
        """
        n_tries = 0
        while True:
            try:
                return await self._hear(self._options, n)
            except (QueueFull, Overloaded) as error:
                n_tries += isinstance(error, Overloaded)
                if n_tries == MOST_TRIES:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _hear(self, options: Options, n: int | None = None) -> _Pass:
        """A pass over the window, or over its first `n` samples. Raises WispError."""
        if self._blocks:
            self._samples, self._blocks = np.concatenate([self._samples, *self._blocks]), []
        came_at, settled = self._came_at, self._agreement.settled
        context = self._tokenizer.decode(self._agreement.context).strip("\ufffd ")
        prompt = " ".join(filter(None, (options.prompt, context)))
        options = replace(options, prompt=prompt or None, language=self._language, settled=settled)
        run = self._transcriber.submit(audio_of(self._samples[:n]), options)
        try:
            transcription = await asyncio.wrap_future(run.future)
        finally:
            run.cancel()
        self.n_passes += 1
        self._detected = transcription.language
        heard = transcription.segments[0].tokens if transcription.segments else settled
        if len(heard) <= len(settled) and self._n_before < 0 and not self._text:  # it takes the last one for all
            self._agreement.restart()
            self._drop(-self._n_before / SAMPLE_RATE)
            return await self._hear(options, n)
        if not transcription.segments:
            return _Pass(settled, (), True, transcription.language, came_at)
        (segment,) = transcription.segments
        is_sure = segment.avg_logprob >= LEAST_LOGPROB and segment.compression_ratio <= MOST_COMPRESSION
        return _Pass(segment.tokens, segment.logprobs, is_sure, transcription.language, came_at)

    def _say(self, heard: _Pass, new: Sequence[int], *, after: Sequence[int]) -> None:
        """Pass on the text of tokens that follow those settled before."""
        text, rest = self._tokenizer.decode(new), self._tokenizer.decode(self._agreement.rest)
        n_before = sum(token < self._tokenizer.eot for token in after)
        logprobs = heard.logprobs[n_before:][: len(new)]
        if not self._text:
            text, rest = text.lstrip(), rest if text else rest.lstrip()
        if text:
            self._language = self._language or heard.language
        self._text += text
        self._logprobs += logprobs
        if text or rest != self._rest:
            self._rest = rest
            self._on_words(self, Words(text, logprobs, rest, time.monotonic() - heard.came_at))

    def _drop(self, seconds: float) -> None:
        """Let the window begin later."""
        n = min(round(seconds * SAMPLE_RATE), len(self._samples))
        self._samples = self._samples[n:].copy()
        self._n_before += n
