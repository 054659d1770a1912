"""The wisp command: runs a command line. Data goes to stdout, everything else to stderr."""

import argparse
import errno
import logging
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from service.cli.parser import USAGE, make_parser, parse
from service.settings import Settings, read_settings

FAILED = 1  # a start or a file failed, with a sentence on stderr
INTERRUPTED = 130
LOCAL_ONLY = ("target", "models_dir", "vad", "live_step_s")  # wisp listen's flags for the local model


def _settings(arguments: argparse.Namespace) -> Settings:
    flags = {
        name.removeprefix("setting_"): ",".join(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
        if name.startswith("setting_")
    }
    return read_settings(os.environ, flags)


def _configure_logging(settings: Settings, quiet: bool) -> None:
    """Log to stderr; commands for scripts log failures only, unless a level asks for more."""
    logging.basicConfig(
        stream=sys.stderr,
        level=max(settings.logging_level(), logging.WARNING) if quiet else settings.logging_level(),
        format="%(levelname)s: %(message)s" if quiet else "%(asctime)s %(levelname)s %(message)s",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure reported on stderr, 2 for a usage error."""
    # Wisp divides work among threads itself, so NumPy's OpenBLAS (not loaded yet) needs none: they spin at start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = parse(argv)
    try:
        settings = _settings(arguments)
    except ValueError as error:
        return _fail(str(error), USAGE)
    _configure_logging(settings, quiet=arguments.command != "serve" and settings.log_level == Settings().log_level)
    from service.errors import StartError

    try:
        code = _run(settings, arguments)
        sys.stdout.flush()
        return code
    except StartError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # stdout's reader has left; closing it again at exit would fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail("There is no space left to write the output.", FAILED)


def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Each command imports what it needs, so that the others start faster."""
    match arguments.command:
        case "serve":
            return _serve(settings)
        case "transcribe":
            return _transcribe(settings, arguments)
        case "listen":
            return _listen(settings, arguments)
        case "models":
            return _models(settings, arguments)
        case "completion":
            from service.cli.completion import script

            sys.stdout.write(script(make_parser(), arguments.shell))
            return 0
        case _:
            from service.cli.doctor import examine

            return 0 if examine(settings, sys.stdout.write) else FAILED


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(printable(f"wisp: {sentence}\n"))
    return code


def printable(text: str) -> str:
    """Text safe for a terminal: foreign text (a hub's card, a file name) may contain escape sequences."""
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def _failed(complaints: Iterable[str]) -> int:
    """Print each failure as it comes; 0 if there were none."""
    code = 0
    for complaint in complaints:
        code = _fail(complaint, FAILED)
    return code


def _serve(settings: Settings) -> int:
    from service.errors import StartError
    from service.http.app import serve

    doors = []
    if settings.wyoming:
        try:
            from service.wyoming.server import wyoming_door
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "wyoming":
                raise
            raise StartError("The Wyoming port needs the extra [wyoming]: pip install 'wisp[wyoming]'.") from None
        doors.append(wyoming_door(settings))
    serve(settings, doors)
    return 0


def _transcribe(settings: Settings, arguments: argparse.Namespace) -> int:
    from service.cli.transcribe import Wanted, transcribe_files
    from service.errors import RequestError

    try:
        wanted = Wanted.of(
            arguments.files,
            formats=arguments.formats or ["text"],
            output_dir=arguments.output_dir,
            language=arguments.language,
            prompt=arguments.prompt,
            temperature=arguments.temperature,
            word_timestamps=arguments.word_timestamps,
        )
    except ValueError as error:
        return _fail(str(error), USAGE)
    try:
        return _failed(transcribe_files(settings, wanted))
    except RequestError as error:  # before any file: the model does not know the language
        return _fail(str(error), USAGE)


def _listen(settings: Settings, arguments: argparse.Namespace) -> int:
    from service.cli.listen.command import Wanted, listen
    from service.errors import RequestError

    code = 0

    def complain(sentence: str) -> None:
        nonlocal code
        code = _fail(sentence, FAILED)

    try:
        wanted = Wanted.of(
            arguments.source,
            device=arguments.device,
            rate=arguments.rate,
            channels=arguments.channels,
            format=arguments.format,
            language=arguments.language,
            prompt=arguments.prompt,
            keywords=arguments.keywords,
            url=arguments.url,
            api_key=arguments.api_key,
            model=arguments.setting_model or "",
        )
        local_only = [name for name in LOCAL_ONLY if getattr(arguments, f"setting_{name}") is not None]
        if wanted.url and local_only:
            raise ValueError(f"--{local_only[0].replace('_', '-')} is for the local model, not for a server.")
    except ValueError as error:
        return _fail(str(error), USAGE)
    try:
        listen(settings, wanted, complain, printable)
    except RequestError as error:  # the model does not know the language
        return _fail(str(error), USAGE)
    return code


def _models(settings: Settings, arguments: argparse.Namespace) -> int:
    from service.cli import models as command

    def write(text: str) -> None:
        sys.stdout.write(printable(text))

    match arguments.action:
        case "list":
            trouble = command.list_models(settings, write, arguments.style or "table")
            return _failed([trouble] if trouble else [])
        case "pull":
            command.pull_model(settings, arguments.name, os.environ, write, revision=arguments.revision)
            return 0
        case "convert":
            command.convert_model(settings, arguments.name, Path(arguments.folder), arguments.dtype, write)
            return 0
        case "verify":
            return _failed(command.verify_models(settings, arguments.names, write))
        case _:
            may = (lambda _: True) if arguments.yes else command.ask
            return _failed(command.remove_models(settings, arguments.names, write, may=may))
