"""The command line: commands, flags and help. Imports nothing heavy, so that --help is quick."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from service.models.names import KNOWN_NAMES
from service.settings import TABLE, Setting

USAGE = 2  # argparse's exit code for a bad command line
TRANSCRIPT_FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
SAVED_DTYPES = ("int8", "int8-coarse", "f16", "f32")  # kernels.checkpoints.save's
SHELLS = ("bash", "zsh", "fish")
CAPTION_FORMATS = ("text", "json")
SHARED_FLAGS = ("model", "target", "models_dir", "vad", "log_level")  # of commands that transcribe; serve has all
MODELS_FLAGS = ("models_dir", "log_level")  # of wisp models

# Metavars that say how a shell completes an argument: see completion.py.
FILE, FOLDER, INSTALLED = "FILE", "DIR", "INSTALLED"


class _Parser(argparse.ArgumentParser):
    """A parser that rejects abbreviated flags, so that a new flag cannot change the meaning of an old command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


class _Version(argparse.Action):
    """--version, which looks the version up only when used."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"wisp {version('wisp')}\n")
        parser.exit(0)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line. Its result has the command's own parser as `parser`, for errors."""
    parser = _Parser(prog="wisp", description="Self-hosted speech to text with OpenAI's API.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API", description="Serve the API until stopped.")
    _add_flags(serve, TABLE, may_repeat=True)
    transcribe = commands.add_parser(
        "transcribe",
        help="transcribe files",
        description="Transcribe files to stdout, one after the other, or to a folder.",
        epilog="Exit codes: 0 success, 1 if a file failed (the others are still transcribed), 2 bad command line, "
        "130 Ctrl-C. With several files on stdout, each line of text starts with its file's name and a colon, and "
        'each JSON object is one line with the key "file". For several files, srt, vtt and multiple formats need '
        "--output-dir.",
    )
    _add_transcribe(transcribe)
    listen = commands.add_parser(
        "listen",
        help="show live captions",
        description="Write down what a microphone hears, or sound on stdin, while it is spoken.",
        epilog="Ctrl-C or the end of the sound finishes what was said. Exit codes: 0 success, 1 if the sound or a part "
        "of the speech failed, 2 bad command line, 130 a second Ctrl-C, which waits for nothing.",
    )
    _add_listen(listen)
    models = commands.add_parser(
        "models", help="fetch, list, convert, verify and remove models", description="Manage installed models."
    )
    _add_models(models)
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description="Print a script that completes wisp's commands, flags and models in a shell.",
        epilog='For this session: eval "$(wisp completion bash)", or zsh; in fish: wisp completion fish | source.',
    )
    completion.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell")
    doctor = commands.add_parser(
        "doctor",
        help="show this machine's GPUs and check that transcription works",
        description="List the GPUs, show the chosen target and model and why, and transcribe a second of sound.",
    )
    _add_flags(doctor, (setting for setting in TABLE if setting.name in SHARED_FLAGS))
    for command in (serve, transcribe, listen, models, completion, doctor):
        command.set_defaults(parser=command)
    return parser


def _add_transcribe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar=FILE,
        help="audio file, folder of audio files, or pattern such as 'talks/**/*.mp3'; - reads stdin",
    )
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=TRANSCRIPT_FORMATS,
        metavar="|".join(TRANSCRIPT_FORMATS),
        help="default: text; with --output-dir, repeat it to write several formats",
    )
    parser.add_argument(
        "--output-dir",
        metavar=FOLDER,
        help="write the transcripts into this folder: talk.mp3 gives talk.txt, .json, .srt or .vtt",
    )
    parser.add_argument("--language", default="", help="spoken language, such as en; default: detect it")
    parser.add_argument("--prompt", default="", help="text before the audio, or names to spell correctly")
    parser.add_argument(
        "--temperature", default="0", help="0 to 1; default: 0, then higher ones if the text fails a check"
    )
    parser.add_argument("--word-timestamps", action="store_true", help="time each word; with verbose_json")
    _add_flags(parser, (setting for setting in TABLE if setting.name in SHARED_FLAGS))


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="-",
        help="raw 16-bit PCM on stdin, with or without a WAV head; default: the microphone",
    )
    parser.add_argument("--device", help="microphone: its number, or part of its name; default: the system's")
    parser.add_argument("--rate", type=int, help="samples per second on stdin; default: 16000, or the WAV head's")
    parser.add_argument("--channels", type=int, help="channels on stdin; default: 1, or the WAV head's")
    parser.add_argument(
        "--format",
        choices=CAPTION_FORMATS,
        default="text",
        metavar="|".join(CAPTION_FORMATS),
        help="text (default): captions on a terminal, else a line per utterance; json: a line per event",
    )
    parser.add_argument("--language", default="", help="spoken language, such as en; default: detect it")
    parser.add_argument("--prompt", default="", help="text before the speech, or names to spell correctly")
    parser.add_argument("--keywords", default="", help="names and terms to expect, comma-separated")
    parser.add_argument("--url", default="", help="server that transcribes, such as http://localhost:8080")
    parser.add_argument("--api-key", default="", help="the server's; OPENAI_API_KEY is safer and is used without it")
    _add_flags(parser, (setting for setting in TABLE if setting.name in (*SHARED_FLAGS, "live_step_s")))


def _add_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser(
        "list",
        help="list installed models",
        description="List the installed models and the embedded one. A * marks the model that would serve.",
    )
    _add_flags(show, (setting for setting in TABLE if setting.name == "model"))
    how = show.add_mutually_exclusive_group()
    how.add_argument("--json", dest="style", action="store_const", const="json", help="as JSON")
    how.add_argument("--names", dest="style", action="store_const", const="names", help="installed models' names only")
    pull = actions.add_parser(
        "pull",
        help="fetch a model from the hub",
        description="Fetch a model from the Hugging Face hub, or repair or update one. Each file is checked against "
        "the hub's checksum. Rerun the command to resume an interrupted download.",
        epilog="HF_ENDPOINT names another hub, HF_TOKEN is for models that are private or require accepting terms, "
        "HTTPS_PROXY names a proxy.",
    )
    pull.add_argument("name", metavar="NAME", help=f"{', '.join(KNOWN_NAMES)}, or a Whisper's repository: OWNER/NAME")
    pull.add_argument("--revision", default="main", help="branch, tag or commit; default: main")
    convert = actions.add_parser(
        "convert",
        help="write a model in another dtype",
        description="Read a model of any format and write it into a new folder, in Hugging Face's layout. int8 takes "
        "half the space of f16 on disk and in a download; the computation uses floats either way.",
    )
    convert.add_argument("name", metavar=INSTALLED, help="an installed model, or a model's folder or file")
    convert.add_argument("folder", metavar=FOLDER, help="the new folder")
    convert.add_argument("--dtype", required=True, choices=SAVED_DTYPES, help="of the weights")
    verify = actions.add_parser(
        "verify",
        help="check installed models' files",
        description="Hash the files of the given models, or of all, and compare them with the hub's checksums.",
    )
    verify.add_argument("names", nargs="*", metavar=INSTALLED, help="models; default: all")
    remove = actions.add_parser("remove", help="remove models", description="Remove models from the models' folder.")
    remove.add_argument("names", nargs="+", metavar=INSTALLED, help="models")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    for action in (show, pull, convert, verify, remove):
        _add_flags(action, (setting for setting in TABLE if setting.name in MODELS_FLAGS))
        action.set_defaults(parser=action)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Exits with the command's usage for a bad one, or with the whole help for an empty one."""
    parser = make_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.command is None or (arguments.command == "models" and arguments.action is None):
        arguments.parser.print_help(sys.stderr)
        parser.exit(USAGE)
    return arguments


def _add_flags(parser: argparse.ArgumentParser, settings: Iterable[Setting], *, may_repeat: bool = False) -> None:
    for setting in settings:
        if not setting.flag:
            continue
        unit = f", {setting.unit}" if setting.unit else ""
        default = f" (default: {setting.default}{unit})" if setting.default != "" else ""
        parser.add_argument(
            setting.flag,
            dest=f"setting_{setting.name}",
            action="append" if may_repeat and setting.is_list else "store",
            metavar="|".join(setting.choices) or setting.name.rpartition("_")[2].upper(),
            help=(setting.help + default).replace("%", "%%"),
        )
