"""wisp transcribe: which files a name stands for, several formats at once, the bar on a terminal."""

import json
import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from service.cli.transcribe import Wanted, transcribe_files
from service.transcription.engine import Engine
from service.transcription.transcriber import Transcriber
from tests.conftest import ROOT
from tests.support import synthetic
from tests.support.serving import settings_for, wav


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.save_synthetic(tmp_path_factory.mktemp("model") / "tiny_en")


@pytest.fixture
def talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with speech in it, and what is no speech, as the working folder's `talks`."""
    for name in ("a.wav", "b.MP3", "deep/c.flac", "deep/notes.txt", ".cover.jpg"):
        path = tmp_path / "talks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(1.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "talks"


@pytest.mark.usefixtures("talks")
def test_a_folder_stands_for_the_audio_in_it_and_below() -> None:
    assert Wanted.of(["talks"]).files == ("talks/a.wav", "talks/b.MP3", "talks/deep/c.flac")


@pytest.mark.usefixtures("talks")
def test_a_pattern_stands_for_what_it_is_of_in_shells_that_hand_it_on() -> None:
    assert Wanted.of(["talks/*.wav"]).files == ("talks/a.wav",)
    assert Wanted.of(["talks/**/*.[fM]*"]).files == ("talks/b.MP3", "talks/deep/c.flac")
    assert Wanted.of(["talks/none*", "-"]).files == ("talks/none*", "-")


@pytest.mark.usefixtures("talks")
def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(ValueError, match="name is empty"):
        Wanted.of(["talks/a.wav", ""])
    with pytest.raises(ValueError, match="--output-dir is empty"):
        Wanted.of(["talks/a.wav"], output_dir="")


def test_a_file_with_a_patterns_name_is_that_file(talks: Path) -> None:
    (talks / "[a].wav").write_bytes(b"")
    (talks / "talk[s]").mkdir()
    (talks / "talk[s]" / "d.wav").write_bytes(b"")
    assert Wanted.of(["talks/[a].wav"]).files == ("talks/[a].wav",)
    assert Wanted.of(["talks/talk[s]"]).files == ("talks/talk[s]/d.wav",)


def test_several_formats_are_a_file_each(model: Path, talks: Path) -> None:
    wanted = Wanted.of(["talks/a.wav"], formats=["text", "srt", "verbose_json", "srt"], output_dir="out")
    assert list(transcribe_files(settings_for(model), wanted)) == []
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.json", "a.srt", "a.txt"]
    assert (Path("out") / "a.txt").read_text() == synthetic.SENTENCE + "\n"
    assert (Path("out") / "a.srt").read_text().startswith("1\n00:00:00,000 --> ")


def test_raw_sound_is_known_by_its_name(model: Path, talks: Path) -> None:
    raw = b"\x80\xff" * 8000  # two seconds of µ-law
    for name, content in (("call.ulaw", raw), ("posing.ulaw", wav(1.0)), ("other", raw)):
        (talks / name).write_bytes(content)
    files = ["talks/call.ulaw", "talks/posing.ulaw", "talks/other"]
    wanted = Wanted.of(files, formats=["verbose_json"], output_dir="out")
    (complaint,) = transcribe_files(settings_for(model), wanted)
    assert complaint.startswith("talks/other: The file is not audio of a known format")
    for name, seconds in (("call.json", 2.0), ("posing.json", 1.0)):
        assert json.loads((Path("out") / name).read_text())["duration"] == seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"formats": ["text", "srt"]}, "Several formats cannot share stdout"),
        (
            {"formats": ["json", "verbose_json"], "output_dir": "out"},
            "talks/a.wav would twice be written to out/a.json",
        ),
        ({"formats": ["srt", "text"], "word_timestamps": True, "output_dir": "out"}, "verbose_json"),
    ],
)
def test_formats_that_do_not_go_together_are_told(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Wanted.of(["talks/a.wav"], **arguments)  # type: ignore[arg-type]


@pytest.mark.usefixtures("talks")
def test_no_model_is_loaded_for_what_is_no_audio(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Engine] = []
    load = Engine.load

    def counted(engine: Engine) -> Transcriber:
        loads.append(engine)
        return load(engine)

    monkeypatch.setattr(Engine, "load", counted)
    Path("README.md").write_text("# Not a sound\n")
    complaints = transcribe_files(settings_for(model), Wanted.of(["README.md", "nothing.wav", "talks/a.wav"]))
    assert next(complaints).startswith("README.md: The file is not audio of a known format")
    assert next(complaints) == "nothing.wav: No such file or directory"
    assert loads == []
    assert list(complaints) == [] and len(loads) == 1


def test_a_terminal_shows_a_bar_and_stdout_only_the_words(model: Path, talks: Path) -> None:
    (talks / "long.wav").write_bytes(wav(30.0))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    code = "import sys; from service.cli.main import main; sys.exit(main())"
    arguments = ["transcribe", "--target", "cpu", "--model", str(model), "talks/long.wav", "talks/a.wav"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        os.close(theirs)
        written = process.communicate(timeout=120)[0]
    seen = ""
    with suppress(OSError):  # EIO: all has been read
        while chunk := os.read(ours, 65536):
            seen += chunk.decode()
    os.close(ours)
    assert process.returncode == 0
    assert written.splitlines()[-1] == f"talks/a.wav: {synthetic.SENTENCE}" and "%" not in written
    assert "talks/long.wav (1 of 2):" in seen and "%" in seen and "talks/a.wav (2 of 2):" in seen
