"""The wisp command: serve, transcribe, doctor. Data goes to stdout, everything else to stderr."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

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


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command line's parser, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="wisp", description="Self-hosted speech to text with OpenAI's API.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API", description="Serve the API until stopped.")
    _add_flags(serve, TABLE)
    transcribe = commands.add_parser(
        "transcribe",
        help="transcribe files",
        description="Transcribe files to stdout, one after the other, or to a folder. "
        "Exit code 1 if any of them failed.",
        epilog="With several files on stdout, each line of text starts with its file's name and a colon, and each "
        'JSON object is one line with the key "file"; srt and vtt need --output-dir then.',
    )
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="audio file; - reads stdin")
    transcribe.add_argument("--format", choices=TRANSCRIPT_FORMATS, default="text", help="default: text")
    transcribe.add_argument(
        "--output-dir",
        metavar="DIR",
        help="write a file for each into this folder, named after it: talk.mp3 gives talk.txt, .json, .srt or .vtt",
    )
    transcribe.add_argument("--language", default="", help="what is spoken, such as en; default: the model decides")
    transcribe.add_argument("--prompt", default="", help="words that came before, or how names are spelled")
    transcribe.add_argument(
        "--temperature",
        default="0",
        help="from 0 to 1; default: 0, and higher ones where the words it gives do not look right",
    )
    transcribe.add_argument("--word-timestamps", action="store_true", help="time each word; with verbose_json")
    _add_flags(transcribe, [setting for setting in TABLE if setting.name in SHARED_FLAGS])
    doctor = commands.add_parser(
        "doctor",
        help="say what this machine offers and whether all works",
        description="List the GPUs, say which target and model would serve and why, and transcribe a second of sound.",
    )
    _add_flags(doctor, [setting for setting in TABLE if setting.name in SHARED_FLAGS])
    return parser, {"serve": serve, "transcribe": transcribe, "doctor": doctor}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for. Exits with the usage of the command at fault, or with all the help where there is none."""
    parser, commands = _parsers()
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command is None and not unknown:
        parser.print_help(sys.stderr)
        parser.exit(USAGE)
    if unknown:
        commands.get(arguments.command, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


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
    arguments = _arguments(argv)
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
    from service.errors import RequestError
    from service.transcribe_files import Wanted, transcribe_files

    try:
        wanted = Wanted.of(
            arguments.files,
            format=arguments.format,
            output_dir=arguments.output_dir,
            language=arguments.language,
            prompt=arguments.prompt,
            temperature=arguments.temperature,
            word_timestamps=arguments.word_timestamps,
        )
    except ValueError as error:
        return _fail(str(error), USAGE)
    code = 0
    try:
        for complaint in transcribe_files(settings, wanted):
            code = _fail(complaint, FAILED)
    except RequestError as error:  # before any file: the model does not speak the language
        return _fail(str(error), USAGE)
    return code


def _doctor(settings: Settings) -> int:
    from service.doctor import examine

    return 0 if examine(settings, sys.stdout.write) else FAILED
