"""The wisp command: serve, transcribe, doctor. Data goes to stdout, everything else to stderr."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from service.settings import TABLE, Setting, Settings, read_settings

FAILED = 1  # a start or a file failed, with a sentence on stderr
USAGE = 2  # argparse's own number for a command that cannot be read
INTERRUPTED = 130

TRANSCRIPT_FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
SHARED_FLAGS = ("model", "target", "models_dir", "log_level")  # of every command; serve has the rest too


class _Version(argparse.Action):
    """--version, which looks the number up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"wisp {version('wisp')}\n")
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wisp", description="Self-hosted speech to text with OpenAI's API.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API", description="Serve the API until stopped.")
    _add_flags(serve, TABLE)
    transcribe = commands.add_parser(
        "transcribe",
        help="transcribe files",
        description="Transcribe files to stdout, one after the other. Exit code 1 if any of them failed.",
    )
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="audio file")
    transcribe.add_argument("--format", choices=TRANSCRIPT_FORMATS, default="text", help="default: text")
    transcribe.add_argument("--language", default="", help="what is spoken, such as en; default: the model decides")
    transcribe.add_argument("--prompt", default="", help="words that came before, or how names are spelled")
    _add_flags(transcribe, [setting for setting in TABLE if setting.name in SHARED_FLAGS])
    doctor = commands.add_parser(
        "doctor",
        help="say what this machine offers and whether all works",
        description="List the GPUs, say which target and model would serve and why, and transcribe a second of sound.",
    )
    _add_flags(doctor, [setting for setting in TABLE if setting.name in SHARED_FLAGS])
    return parser


def _add_flags(parser: argparse.ArgumentParser, settings: Sequence[Setting]) -> None:
    for setting in settings:
        if not setting.flag:
            continue
        unit = f", {setting.unit}" if setting.unit else ""
        default = f" (default: {setting.default}{unit})" if setting.default != "" else ""
        parser.add_argument(
            setting.flag,
            dest=f"setting_{setting.name}",
            metavar="|".join(setting.choices) or setting.name.rpartition("_")[2].upper(),
            help=(setting.help + default).replace("%", "%%"),
        )


def _settings(arguments: argparse.Namespace) -> Settings:
    flags = {
        name.removeprefix("setting_"): value for name, value in vars(arguments).items() if name.startswith("setting_")
    }
    return read_settings(os.environ, flags)


def _configure_logging(settings: Settings, quiet: bool) -> None:
    """Log lines to stderr; a command for scripts says only what went wrong, unless asked for more."""
    logging.basicConfig(
        stream=sys.stderr,
        level=max(settings.logging_level(), logging.WARNING) if quiet else settings.logging_level(),
        format="%(levelname)s: %(message)s" if quiet else "%(asctime)s %(levelname)s %(message)s",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure told on stderr, 2 for a usage error."""
    arguments = _parser().parse_args(argv)
    try:
        settings = _settings(arguments)
    except ValueError as error:
        return _fail(str(error), USAGE)
    _configure_logging(settings, quiet=arguments.command != "serve" and settings.log_level == Settings().log_level)
    from service.errors import StartError

    try:
        match arguments.command:
            case "serve":
                return _serve(settings)
            case "transcribe":
                return _transcribe(settings, arguments)
            case _:
                return _doctor(settings)
    except StartError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout has left; closing it again at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"wisp: {sentence}\n")
    return code


def _serve(settings: Settings) -> int:
    from service.app import serve

    serve(settings)
    return 0


def _transcribe(settings: Settings, arguments: argparse.Namespace) -> int:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from service.app import Engine
    from service.audio import decode
    from service.errors import RequestError, WispError
    from service.formats import render
    from service.guest_cache import user_cache_folder
    from service.languages import language_code
    from service.transcriber import Options, Transcription

    language = language_code(arguments.language) if arguments.language else None
    if arguments.language and language is None:
        return _fail(f"'{arguments.language}' is not a language.", USAGE)
    prompt = os.fsencode(arguments.prompt).decode("utf-8", "replace")  # bytes that are no UTF-8 come as surrogates
    options = Options(language=language, prompt=prompt or None)
    engine = Engine(settings, cache_folder=user_cache_folder())
    code = 0
    cancelled = threading.Event()

    def words_of(name: str) -> Transcription:
        with Path(name).open("rb") as file:
            audio = decode(file, max_seconds=settings.max_audio_s)
            return transcriber.transcribe(audio, options, cancelled=cancelled)

    # Not in the main thread: Ctrl-C is raised there, and a C library calling back into Python would swallow it.
    aside = ThreadPoolExecutor(1)
    try:
        transcriber = engine.load()
        try:
            transcriber.check(options)
        except RequestError as error:
            return _fail(str(error), USAGE)
        for name in arguments.files:
            try:
                result = aside.submit(words_of, name).result()
            except (WispError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                code = _fail(f"{name}: {reason}", FAILED)
                continue
            sys.stdout.write(render(result, arguments.format).rstrip("\n") + "\n")
            sys.stdout.flush()
    finally:
        cancelled.set()
        aside.shutdown()
        engine.close()
    return code


def _doctor(settings: Settings) -> int:
    from service.doctor import examine

    return 0 if examine(settings, sys.stdout.write) else FAILED
