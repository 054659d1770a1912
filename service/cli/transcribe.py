"""wisp transcribe: files or stdin in; transcripts out, to stdout or a folder."""

import glob
import json
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from service.audio.decode import Audio, decode
from service.audio.headerless import HELD_BYTES, header_for, is_raw
from service.cli.progress import Bar, progress_bar
from service.errors import InternalError, StartError, WispError
from service.guest.code_cache import user_cache_folder
from service.http.app import Engine
from service.http.formats import render
from service.models.languages import language_code
from service.settings import Settings
from service.transcription.run import Run
from service.transcription.transcriber import TEMPERATURES, Options, Segment, Transcriber, Transcription, check_options

log = logging.getLogger("wisp")

STDIN = "-"
SUFFIXES = {"text": ".txt", "json": ".json", "verbose_json": ".json", "srt": ".srt", "vtt": ".vtt"}
SUBTITLES = ("srt", "vtt")
# Suffixes taken from a folder. A file that is named explicitly is read whatever its suffix.
AUDIO_SUFFIXES = (
    *(".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp3", ".mp4"),
    *(".mpeg", ".mpga", ".oga", ".ogg", ".opus", ".wav", ".webm", ".wma"),
)
SPOOL_BYTES = 1024 * 1024  # larger stdin goes to disk


@dataclass(frozen=True)
class Wanted:
    """The command line's request, validated."""

    files: tuple[str, ...]  # the named files and the contents of folders and patterns; `-` is stdin
    formats: tuple[str, ...]
    options: Options
    output_dir: Path | None = None

    @classmethod
    def of(
        cls,
        files: Sequence[str],
        *,
        formats: Sequence[str] = ("text",),
        output_dir: str | None = None,
        language: str = "",
        prompt: str = "",
        temperature: str = "0",
        word_timestamps: bool = False,
    ) -> "Wanted":
        """Read the flags. Raises ValueError with one sentence."""
        code = language_code(language) if language else None
        if language and code is None:
            raise ValueError(f"'{language}' is not a language.")
        try:
            degrees = float(temperature)
        except ValueError:
            degrees = math.nan
        if not 0 <= degrees <= 1:
            raise ValueError(f"--temperature is '{temperature}'; it must be a number from 0 to 1.")
        if word_timestamps and "verbose_json" not in formats:
            raise ValueError("--word-timestamps works with --format verbose_json only.")
        if "" in files:
            raise ValueError("A file name is empty.")
        if files.count(STDIN) > 1:
            raise ValueError("stdin (-) can be read once only.")
        files, formats = _found(files), tuple(dict.fromkeys(formats))
        if output_dir is None and len(formats) > 1:
            raise ValueError("Several formats cannot share stdout: give --output-dir, a folder to write to.")
        if output_dir is None and formats[0] in SUBTITLES and len(files) > 1:
            raise ValueError(
                f"Several files do not make one {formats[0]} file: give --output-dir, a folder to write to."
            )
        if output_dir == "":
            raise ValueError("--output-dir is empty; it must be a folder to write to.")
        options = Options(
            language=code,
            prompt=_as_text(prompt) or None,
            temperature=(degrees,) if degrees else TEMPERATURES,
            word_timestamps=word_timestamps,
        )
        wanted = cls(tuple(files), formats, options, None if output_dir is None else Path(output_dir))
        wanted._check_paths()
        return wanted

    def _check_paths(self) -> None:
        if self.output_dir is None:
            return
        written: dict[Path, str] = {}
        for name in self.files:
            for format in self.formats:
                path = self.path_of(name, format)
                if path in written:
                    both = (
                        f"{written[path]} and {name} would both be"
                        if written[path] != name
                        else f"{name} would twice be"
                    )
                    raise ValueError(f"{both} written to {path}: transcribe them apart.")
                written[path] = name

    def path_of(self, name: str, format: str) -> Path:
        """Path of this file's transcript in --output-dir."""
        assert self.output_dir is not None
        stem = "stdin" if name == STDIN else Path(name).stem
        return self.output_dir / (stem + SUFFIXES[format])

    def written(self, name: str, result: Transcription) -> None:
        """Write a file for each format. Raises OSError."""
        for format in self.formats:
            path = self.path_of(name, format)
            path.write_text(self.rendered(name, result, format), "utf-8")
            log.info("wrote %s", path)

    def rendered(self, name: str, result: Transcription, format: str) -> str:
        """A transcript for stdout or its file; on stdout, one of several includes its file's name."""
        granularities = ("segment", "word") if self.options.word_timestamps else ()
        body = render(result, format, granularities).rstrip("\n")
        if len(self.files) == 1 or self.output_dir is not None:
            return body + "\n"
        shown = _as_text(name)
        if format == "text":
            return "".join(f"{shown}: {line}\n" for line in body.splitlines() or [""])
        return json.dumps({"file": shown, **json.loads(body)}, ensure_ascii=False) + "\n"


def transcribe_files(settings: Settings, wanted: Wanted) -> Iterator[str]:
    """Transcribe the files in order; yields a sentence for each that fails.

    The first file that is audio loads the model. Raises StartError if none can be transcribed (no model, no such
    folder), RequestError for a language that the model does not know.
    """
    if wanted.output_dir is not None:
        try:
            wanted.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"The folder {wanted.output_dir} cannot be created: {error.strerror}.") from None
    engine = Engine(settings, cache_folder=user_cache_folder())
    run, opened = Run(), ExitStack()
    transcriber: Transcriber | None = None

    def decoded(name: str) -> Audio:
        opened.close()  # the previous file
        run.begin(math.inf)
        return decode(_opened(name, opened), max_seconds=settings.max_audio_s, on_block=lambda _: run.check())

    def words_of(transcriber: Transcriber, audio: Audio, bar: Bar) -> Transcription:
        bar.reset(total=audio.duration)

        def move(segment: Segment) -> None:
            bar.update(segment.end - bar.n)

        return transcriber.transcribe(audio, wanted.options, move, run)

    if not all(name.lower().endswith(".wav") for name in wanted.files):
        from service.audio.decoder_client import warm_up  # imported here because most WAV files don't need it

        warm_up()
    # Not in the main thread: Ctrl-C is raised there, and a C library that calls back into Python would swallow it.
    aside = ThreadPoolExecutor(1)
    try:
        read = engine.read()
        check_options(wanted.options, read.spec.name, read.tokenizer)
        for number, name in enumerate(wanted.files, start=1):
            shown = f"{_as_text(name)} ({number} of {len(wanted.files)})" if len(wanted.files) > 1 else _as_text(name)
            complaints: list[str] = []
            with progress_bar(0, "s", shown) as bar:
                with _noting(name, complaints):
                    audio = aside.submit(decoded, name).result()
                if not complaints:
                    transcriber = transcriber or engine.load()  # slow, so not for files that aren't audio
                    with _noting(name, complaints):
                        result = aside.submit(words_of, transcriber, audio, bar).result()
                        if wanted.output_dir is not None:
                            wanted.written(name, result)
            if complaints:
                yield from complaints
            elif wanted.output_dir is None:
                sys.stdout.write(wanted.rendered(name, result, wanted.formats[0]))
                sys.stdout.flush()
    finally:
        run.cancel()
        aside.shutdown()
        opened.close()
        engine.close()


@contextmanager
def _noting(name: str, complaints: list[str]) -> Iterator[None]:
    """A block in which a failure of one file becomes a complaint."""
    try:
        yield
    except IsADirectoryError:
        complaints.append(f"{name}: a folder without audio files")
    except InternalError as error:
        complaints.append(f"{name}: {error.in_shell}")
    except (WispError, OSError) as error:
        complaints.append(f"{name}: {error.strerror if isinstance(error, OSError) else error}")


def _found(names: Sequence[str]) -> list[str]:
    """Each name, or what it matches: the audio files in a folder and its subfolders, or the files of a pattern.

    Patterns are expanded for shells that don't, and for `**`. A name that matches nothing is kept, and fails later with
    its own message.
    """
    found: list[str] = []
    for name in names:
        if name != STDIN and Path(name).is_dir():
            meant = [str(path) for path in Path(name).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES]
        elif glob.has_magic(name) and not os.path.lexists(name):
            meant = glob.glob(name, recursive=True)  # noqa: PTH207 (the pattern may begin at the root)
        else:
            meant = [name]
        found += sorted(path for path in meant if not Path(path).is_dir()) or [name]
    return found


def _opened(name: str, stack: ExitStack) -> BinaryIO:
    """The file, with the header that raw sound lacks, or all of stdin as a file, because decoding seeks."""
    file: BinaryIO = sys.stdin.buffer
    header = b""
    if name != STDIN:
        file = stack.enter_context(Path(name).open("rb"))  # noqa: SIM115
        header = header_for(Path(name).name, "")
        if not header or not is_raw(file.read(HELD_BYTES)):
            return file
        file.seek(0)
    # SpooledTemporaryFile is a full binary file since Python 3.11, but not in its stubs.
    spooled = cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(SPOOL_BYTES)))  # noqa: SIM115
    spooled.write(header)
    shutil.copyfileobj(file, spooled)
    spooled.seek(0)
    return spooled


def _as_text(argument: str) -> str:
    """An argument as text that can be written; bytes that aren't UTF-8 arrive as surrogates."""
    return os.fsencode(argument).decode("utf-8", "replace")
