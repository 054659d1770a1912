"""wisp models, run as a user runs it, against a hub of the test's own."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernels.checkpoints.load import load_checkpoint
from service.cli.main import main
from service.models import hub as hub_module
from service.models import places as model_places
from tests.conftest import ROOT
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.synthetic import save_synthetic

REPO = "openai/whisper-tiny.en"
WISP = [sys.executable, "-c", "import sys; from service.cli.main import main; sys.exit(main())"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("source"))


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in list(os.environ):
        if name.startswith(("WISP_", "WASMEDGE_", "HF_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(hub_module, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setenv("WISP_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(model_places, "packaged_folder", lambda: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with fake_hub() as hub:
        hub.add(REPO, source)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def wisp(hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `wisp` with these arguments → exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return run


def test_a_model_is_pulled_listed_verified_and_removed(wisp: Run, hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny_en"
    code, out, err = wisp("models", "pull", "tiny.en")
    assert (code, err) == (0, "")
    assert out == f"tiny_en ({REPO}@5a5a5a5a, 1.3 MB, apache-2.0) is in {folder}\n"
    assert wisp("models", "pull", "tiny.en")[1].endswith(f"was already complete in {folder}\n")

    code, out, err = wisp("models", "list")
    assert (code, err) == (0, "")
    heading, ours, embedded = out.splitlines()
    assert heading.split() == ["NAME", "SIZE", "LICENCE", "FROM", "WHERE"]
    assert ours.split() == ["*", "tiny_en", "1.3", "MB", "apache-2.0", f"{REPO}@5a5a5a5a", str(folder)]
    assert embedded.split()[0] == "embedded" and "comes with Wisp" in embedded

    assert wisp("models", "verify") == (0, f"tiny_en: 4 files match {REPO}\n", "")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"!")
    code, out, err = wisp("models", "verify", "tiny.en")
    assert (code, out) == (1, "")
    assert err == f"wisp: tiny_en: model.safetensors has changed; fetch it again with wisp models pull {REPO}\n"
    assert "is in" in wisp("models", "pull", REPO)[1]
    assert wisp("models", "verify")[0] == 0

    assert wisp("models", "remove", "tiny.en", "--yes") == (0, "tiny_en: removed\n", "")
    assert list(folder.parent.iterdir()) == []
    assert wisp("models", "list")[1].splitlines()[1].startswith("* embedded")


def test_what_a_hub_says_does_not_drive_the_terminal(wisp: Run, hub: FakeHub, tmp_path: Path) -> None:
    hub.licence = "mit\x1b[2J\x9b31m\r\x07" + "x" * 10_000
    code, out, _ = wisp("models", "pull", "tiny.en")
    assert code == 0 and "mit\\x1b[2J\\x9b31m\\x0d\\x07x" in out and len(out) < 1000
    for arguments in (["list"], ["list", "--json"], ["verify"]):
        code, out, err = wisp("models", *arguments)
        assert not [c for c in out + err if unicodedata.category(c) == "Cc" and c != "\n"]
    hub.repos[REPO] |= {"config.json": b'{"model_type": "\\u001b]52;c;AAAA\\u0007"}'}
    shutil.rmtree(tmp_path / "models")
    code, out, err = wisp("models", "pull", "tiny.en")
    assert code == 1 and "\\x1b]52;c;AAAA\\x07" in err and "\x1b" not in err


def test_the_list_is_also_for_programs(wisp: Run, tmp_path: Path, source: Path) -> None:
    wisp("models", "pull", "tiny.en")
    found = json.loads(wisp("models", "list", "--json", "--model", "embedded")[1])
    assert [(row["name"], row["serves"]) for row in found] == [("tiny_en", False), ("embedded", True)]
    assert found[0]["bytes"] == sum(path.stat().st_size for path in (tmp_path / "models" / "tiny_en").iterdir())
    assert wisp("models", "list", "--names") == (0, "tiny_en\n", "")
    elsewhere = json.loads(wisp("models", "list", "--json", "--model", str(source))[1])
    assert [row["folder"] for row in elsewhere if row["serves"]] == [str(source)]


def test_the_list_says_why_nothing_would_serve(wisp: Run) -> None:
    code, out, err = wisp("models", "list", "--model", "base")
    assert code == 1 and "embedded" in out and "*" not in out
    assert err.startswith("wisp: Model 'base' not found") and "wisp models pull" in err


def test_nothing_to_verify_is_said(wisp: Run, tmp_path: Path) -> None:
    assert wisp("models", "verify") == (0, f"No model is installed in {tmp_path / 'models'}.\n", "")


def test_a_model_put_there_by_hand_has_no_sums(wisp: Run, tmp_path: Path) -> None:
    save_synthetic(tmp_path / "models" / "own")
    assert "unknown" in wisp("models", "list")[1]
    code, out, err = wisp("models", "verify")
    assert (code, err) == (0, "") and out.startswith("own: not installed by wisp models pull")
    assert wisp("models", "verify", "own")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pull", "tiny.de"), "OWNER/NAME, or one of tiny.en, tiny, "),
        (("pull", "someone/none"), "has no someone/none"),
        (("pull", "tiny.en", "--revision", "v9"), "has no such revision"),
        (("verify", "base"), "No model 'base' is installed in "),
        (("remove", "embedded", "--yes"), "part of Wisp"),
        (("remove", "base", "--yes"), "No model 'base' is installed in "),
    ],
)
def test_what_cannot_be_done_is_one_sentence(wisp: Run, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = wisp("models", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("wisp: ") and words in err and err.endswith(".\n") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("sing",), ("pull",), ("remove",), ("list", "--json", "--names")])
def test_a_usage_error_is_exit_code_2(wisp: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = wisp("models", *arguments)
    assert (code, out) == (2, "") and "usage: wisp models" in err


def test_a_token_is_taken_from_the_environment(wisp: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_right"
    assert "HF_TOKEN" in wisp("models", "pull", "tiny.en")[2]
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    code, out, err = wisp("models", "pull", "tiny.en")
    assert code == 0 and "hf_right" not in out + err


def test_what_broke_off_can_be_gone_on_with_or_removed(wisp: Run, hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts = [40_000, *[0] * 4]
    code, _, err = wisp("models", "pull", "tiny.en")
    assert code == 1 and "rerun the command to resume" in err
    assert wisp("models", "list", "--names")[1] == ""
    assert "resume it with wisp models pull" in wisp("models", "verify", "tiny.en")[2]
    assert wisp("models", "remove", "tiny.en", "--yes")[0] == 0
    assert list((tmp_path / "models").iterdir()) == []


def on_terminal(arguments: list[str], said: str = "") -> tuple[int, str]:
    """Run wisp where stdin and stderr are a terminal, at which `said` is typed → exit code, what was to be seen."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    with subprocess.Popen([*WISP, *arguments], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, said.encode())
        seen = b""
        try:
            while block := os.read(ours, 65536):
                seen += block
        except OSError:  # how Linux tells that the other end has gone
            pass
        os.close(ours)
        return process.wait(timeout=60), seen.decode()


def test_on_a_terminal_a_bar_is_shown_and_removing_is_asked_about(hub: FakeHub, tmp_path: Path) -> None:
    code, seen = on_terminal(["models", "pull", "tiny.en"])
    assert code == 0 and "tiny_en:" in seen and "%" in seen and "MB" in seen
    code, seen = on_terminal(["models", "remove", "tiny.en"], "n\n")
    assert code == 1 and "[y/N]" in seen and (tmp_path / "models" / "tiny_en").is_dir()
    code, seen = on_terminal(["models", "remove", "tiny.en"], "y\n")
    assert code == 0 and not (tmp_path / "models" / "tiny_en").exists()


def test_where_nobody_can_be_asked_nothing_is_removed(wisp: Run, tmp_path: Path) -> None:
    wisp("models", "pull", "tiny.en")
    done = subprocess.run(
        [*WISP, "models", "remove", "tiny.en"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 1 and "--yes" in done.stderr
    assert (tmp_path / "models" / "tiny_en").is_dir()


def test_ctrl_c_keeps_what_has_been_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts, hub.stalls = [40_000], True
    with subprocess.Popen([*WISP, "models", "pull", "tiny.en"], stderr=subprocess.PIPE, text=True) as process:
        assert hub.stalled.wait(60)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert told.startswith("WARNING: model.safetensors broke off") and told.count("\n") == 1
    (part,) = (tmp_path / "models" / ".tiny_en.pull").glob("*.part")
    assert part.stat().st_size == 40_000


def test_a_model_is_converted(wisp: Run, tmp_path: Path) -> None:
    assert wisp("models", "pull", "tiny.en")[0] == 0
    small = tmp_path / "small"
    code, out, _ = wisp("models", "convert", "tiny.en", str(small), "--dtype", "int8")
    assert code == 0 and out.startswith("tiny.en in int8 (") and out.endswith(f"is in {small}\n")
    saved = load_checkpoint(small)
    assert saved.dims == load_checkpoint(tmp_path / "models" / "tiny_en").dims
    code, _, complaint = wisp("models", "convert", "tiny.en", str(small), "--dtype", "int8")
    assert code == 1 and f"{small} is not empty" in complaint
    code, _, complaint = wisp("models", "convert", "tiny.en", str(small / "config.json" / "new"), "--dtype", "int8")
    assert code == 1 and "Not a directory" in complaint
    code, _, complaint = wisp("models", "convert", "base.en", str(tmp_path / "other"), "--dtype", "int8")
    assert code == 1 and "base.en" in complaint and not (tmp_path / "other").exists()
    (tmp_path / "models" / "tiny_en" / "tokenizer.json").write_text("{")
    code, _, complaint = wisp("models", "convert", "tiny.en", str(tmp_path / "other"), "--dtype", "int8")
    assert code == 1 and "tokenizer.json" in complaint and not (tmp_path / "other").exists()
