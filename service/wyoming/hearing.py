"""One utterance of a Wyoming client, from its first audio to its transcript; sends settled words early."""

import asyncio
import logging
from collections.abc import Callable

from wyoming.asr import Transcript, TranscriptChunk, TranscriptStart, TranscriptStop

from service.audio.pcm import PcmDecoder, PcmFormat
from service.errors import NothingToCommit, WispError
from service.http.jobs import mark_as_seen
from service.http.realtime.places import Observer
from service.transcription.listener import Border, Listener, Started
from service.transcription.transcriber import Transcriber
from service.transcription.types import Options
from service.transcription.utterance import Heard, Utterance, Words
from service.wyoming.events import Eventable

log = logging.getLogger("wisp")

Send = Callable[[Eventable], None]


class Answer:
    """Sends a transcript in the protocol's order: start, chunks, all of it for older clients, stop."""

    def __init__(self, send: Send, language: str | None) -> None:
        self._send, self._language, self._is_started, self._said = send, language, False, ""

    def say(self, text: str) -> None:
        """Send the next words."""
        if not self._is_started:
            self._is_started = True
            self._send(TranscriptStart(language=self._language))
        if text:
            self._said += text
            self._send(TranscriptChunk(text))

    def end(self, text: str, language: str | None) -> None:
        """Send the rest. `text` begins with the words already sent."""
        self.say(text[len(self._said) :])
        self._send(Transcript(text.strip(), language=language))
        self._send(TranscriptStop())


class Hearing:
    """Ends only by stop(), because the client decides where an utterance ends. For one event loop."""

    def __init__(self, transcriber: Transcriber, options: Options, send: Send, observer: Observer) -> None:
        """`send`: raises Gone."""
        self._buffer_s, self._name = transcriber.settings.live_buffer_s, transcriber.model.name
        self._observer, self._answer = observer, Answer(send, options.language)
        self._listener = Listener(transcriber, options, cutting=None, on_words=self._words)
        self._decoder = PcmDecoder()
        self._utterance: Utterance | None = None
        self._result: asyncio.Task[Heard] | None = None

    async def hear(self, format: PcmFormat, data: bytes) -> None:
        """Take the next audio; wait while much of it is pending. Raises WispError once the utterance has failed."""
        self._take(await self._listener.hear(self._decoder(format, data)))
        if self._result is not None and self._result.done():
            await self._heard(self._result)
        if self._utterance is not None and self._listener.buffered_s > self._buffer_s:
            await self._utterance.idle()

    async def stop(self) -> None:
        """End the audio."""
        self._take(await self._listener.hear(self._decoder.rest()))
        try:
            self._take(self._listener.commit())
        except NothingToCommit:  # too short for a word
            self._utterance = None

    async def answer(self) -> None:
        """Send the transcript, after stop(). Raises WispError, Gone."""
        if self._utterance is None or self._result is None:
            self._answer.end("", None)
            return
        heard = await self._heard(self._result)
        log.info("transcribed %.2f s of live speech by %s", heard.seconds, self._name)
        self._answer.end(heard.text, heard.language)

    def close(self) -> None:
        """Cancel what is unfinished. Idempotent."""
        self._ended("cancelled")
        if self._result is not None:
            self._result.cancel()
        self._listener.close()

    async def _heard(self, result: "asyncio.Task[Heard]") -> Heard:
        try:
            heard = await result
        except WispError:
            self._ended("failed")
            raise
        self._ended("done")
        return heard

    def _ended(self, outcome: str) -> None:
        if self._utterance is not None:
            self._observer.utterance_ended(outcome, self._utterance.n_skipped)
            self._utterance = None

    def _take(self, borders: list[Border]) -> None:
        for border in borders:
            if isinstance(border, Started):
                self._utterance = border.utterance
                self._result = asyncio.create_task(border.utterance.result())
                self._result.add_done_callback(mark_as_seen)

    def _words(self, _: Utterance, words: Words) -> None:
        if words.settled:
            self._observer.words_settled(words.delay_s)
            self._answer.say(words.settled)
