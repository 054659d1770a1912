"""The command wisp listen: connects source, ear and captions, and ends them."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TextIO

from service.audio.pcm import PcmFormat
from service.cli.listen.captions import Captions, JsonLines, Lines, Ordered, Terminal
from service.cli.listen.ear import Complain, Ear
from service.cli.listen.sources import Microphone, Source, Stdin
from service.guest.code_cache import user_cache_folder
from service.models.languages import language_code
from service.settings import Settings
from service.transcription.engine import Engine
from service.transcription.transcriber import check_options
from service.transcription.types import Options

STDIN = "-"


@dataclass(frozen=True)
class Wanted:
    """The command line's request, validated."""

    options: Options
    stdin: PcmFormat | None = None  # None: the microphone
    device: str | None = None
    format: str = "text"
    url: str = ""  # of a server's live sessions; empty: the local model
    api_key: str = ""
    model: str = ""  # the server's

    @classmethod
    def of(
        cls,
        source: str | None,
        *,
        device: str | None = None,
        rate: int | None = None,
        channels: int | None = None,
        format: str = "text",
        language: str = "",
        prompt: str = "",
        keywords: str = "",
        url: str = "",
        api_key: str = "",
        model: str = "",
    ) -> "Wanted":
        """Read the flags. Raises ValueError with one sentence."""
        if source not in (None, STDIN):
            raise ValueError(f"'{source}' isn't a live source: leave it out for the microphone, or use - for stdin.")
        if source is None and not (rate is None and channels is None):
            raise ValueError("--rate and --channels are for sound on stdin: wisp listen -")
        if source == STDIN and device is not None:
            raise ValueError("--device is for the microphone, not for stdin.")
        code = language_code(language) if language else None
        if language and code is None:
            raise ValueError(f"'{language}' is not a language.")
        if not url and api_key:
            raise ValueError("--api-key is for a server: give its --url.")
        if url:
            from service.cli.listen.remote import websocket_url

            url = websocket_url(url)
            api_key = api_key or os.environ.get("OPENAI_API_KEY", "")
        return cls(
            Options(
                language=code,
                prompt=prompt or None,
                keywords=tuple(word.strip() for word in keywords.split(",") if word.strip()),
            ),
            None if source is None else _format(rate, channels),
            device,
            format,
            url,
            api_key,
            model,
        )

    def open(self) -> Source:
        """Start the source. Raises StartError."""
        return Microphone(self.device) if self.stdin is None else Stdin(self.stdin)


def _format(rate: int | None, channels: int | None) -> PcmFormat:
    return PcmFormat(16_000 if rate is None else rate, channels=1 if channels is None else channels)


def listen(settings: Settings, wanted: Wanted, complain: Complain, printable: Callable[[str], str]) -> None:
    """Listen until the sound or Ctrl-C ends it, then write the last words.

    Raises StartError, RequestError for a language that the model doesn't know, OSError of stdout, and
    KeyboardInterrupt for a second Ctrl-C.
    """
    engine: Engine | None = None
    if not wanted.url:
        engine = Engine(settings, cache_folder=user_cache_folder())
        read = engine.read()
        check_options(wanted.options, read.spec.name, read.tokenizer)
    try:
        asyncio.run(_listen(engine, wanted, complain, captions_for(sys.stdout, wanted.format, printable)))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if engine is not None:
            engine.close()


def captions_for(out: TextIO, format: str, printable: Callable[[str], str]) -> Captions:
    """The captions for this output."""
    if format == "json":
        return JsonLines(out)
    if out.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal(out, printable, lambda: os.get_terminal_size(out.fileno()))
    return Lines(out)


async def _listen(engine: Engine | None, wanted: Wanted, complain: Complain, captions: Captions) -> None:
    source = wanted.open()
    _end_by_signals(source)
    try:
        async with _ear(engine, wanted, Ordered(captions), complain, source.stop) as ear:
            if isinstance(source, Microphone) and sys.stderr.isatty():
                sys.stderr.write(f"Listening to {source.name}. Ctrl-C ends.\n")
            async for format, data in source.pieces():
                await ear.hear(format, data)
            await ear.end()
    finally:
        source.stop()
        captions.close()


def _ear(
    engine: Engine | None, wanted: Wanted, captions: Ordered, complain: Complain, on_failure: Callable[[], None]
) -> AbstractAsyncContextManager[Ear]:
    if engine is not None:
        from service.cli.listen.local import local_ear

        return local_ear(engine.load, wanted.options, captions, complain, on_failure)
    from service.cli.listen.remote import remote_ear, session

    asked = session(wanted.options, wanted.model)
    return remote_ear(wanted.url, wanted.api_key, asked, captions, complain, on_failure)


def _end_by_signals(source: Source) -> None:
    """Make the first signal end the sound, and the second cancel everything."""
    task, n_signals = asyncio.current_task(), 0
    assert task is not None

    def signalled() -> None:
        nonlocal n_signals
        n_signals += 1
        if n_signals == 1:
            source.stop()
        else:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
