"""Transcribes live sound with this machine's model."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from service.audio.pcm import PcmDecoder, PcmFormat
from service.cli.listen.captions import Ordered
from service.cli.listen.captions import Utterance as Caption
from service.cli.listen.ear import Complain
from service.errors import InternalError, NothingToCommit, WispError
from service.http.realtime.names import SILENCE_MS
from service.transcription.chunking import Chunking
from service.transcription.listener import Border, Listener, Started
from service.transcription.transcriber import Transcriber
from service.transcription.types import Options
from service.transcription.utterance import Utterance, Words

log = logging.getLogger("wisp")


class LocalEar:
    """See Ear."""

    def __init__(
        self,
        transcriber: Transcriber,
        options: Options,
        captions: Ordered,
        complain: Complain,
        on_failure: Callable[[], None],
    ) -> None:
        self._captions, self._complain, self._on_failure = captions, complain, on_failure
        self._buffer_s = transcriber.settings.live_buffer_s
        cutting = Chunking(silence_duration_ms=SILENCE_MS)
        self._listener = Listener(transcriber, options, cutting=cutting, on_words=self._words)
        self._decoder = PcmDecoder()
        self._captioned: dict[Utterance, Caption] = {}  # unfinished ones
        self._early: dict[Utterance, list[Words]] = {}  # of utterances whose start isn't known yet
        self._results: set[asyncio.Task[None]] = set()
        self._current: Utterance | None = None
        self._failure: Exception | None = None

    async def hear(self, format: PcmFormat, data: bytes) -> None:
        """See Ear."""
        if self._failure is not None:
            return
        self._take(await self._listener.hear(self._decoder(format, data)))
        if self._listener.buffered_s > self._buffer_s:
            for utterance in list(self._captioned):
                await utterance.idle()

    async def end(self) -> None:
        """See Ear."""
        if self._failure is None:
            self._take(await self._listener.hear(self._decoder.rest()))
            if self._current is not None:
                with suppress(NothingToCommit):
                    self._take(self._listener.commit())
        while self._results and self._failure is None:
            await asyncio.wait(self._results, return_when=asyncio.FIRST_COMPLETED)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Cancel what is unfinished."""
        for task in self._results:
            task.cancel()
        self._listener.close()

    def _take(self, borders: list[Border]) -> None:
        for border in borders:
            utterance = border.utterance
            if isinstance(border, Started):
                self._current = utterance
                self._captioned[utterance] = self._captions.start(border.at_s)
                for words in self._early.pop(utterance, ()):
                    self._words(utterance, words)
            else:
                self._current = None
                self._captioned[utterance].end = round(border.at_s, 3)
                task = asyncio.create_task(self._finish(utterance))
                self._results.add(task)
                task.add_done_callback(self._results.discard)

    def _words(self, utterance: Utterance, words: Words) -> None:
        caption = self._captioned.get(utterance)
        if caption is None:
            self._early.setdefault(utterance, []).append(words)
            return
        with self._writing():
            self._captions.heard(caption, words.settled, words.rest)

    async def _finish(self, utterance: Utterance) -> None:
        caption = self._captioned[utterance]
        try:
            heard = await utterance.result()
        except Exception as error:
            self._complain(f"the speech from {caption.start:g} to {caption.end:g} s: {_reason(error)}")
            with self._writing():
                self._captions.fail(caption)
        else:
            with self._writing():
                self._captions.finish(caption, heard.text, heard.language)
        finally:
            del self._captioned[utterance]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A block that writes captions. If it fails, the ear has failed."""
        try:
            yield
        except Exception as error:
            self._failure = self._failure or error
            self._on_failure()


def _reason(error: Exception) -> str:
    if not isinstance(error, WispError):
        log.error("an utterance failed", exc_info=error)
        error = InternalError()
    return error.in_shell if isinstance(error, InternalError) else str(error)


@asynccontextmanager
async def local_ear(
    load: Callable[[], Transcriber],
    options: Options,
    captions: Ordered,
    complain: Complain,
    on_failure: Callable[[], None],
) -> AsyncIterator[LocalEar]:
    """A block with an ear whose model `load` loads first, in a thread. Raises StartError."""
    ear = LocalEar(await asyncio.to_thread(load), options, captions, complain, on_failure)
    try:
        yield ear
    finally:
        ear.close()
