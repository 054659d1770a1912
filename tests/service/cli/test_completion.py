"""wisp completion: real shells, at a terminal, complete what a user starts to type."""

import fcntl
import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterable
from pathlib import Path

import pytest

from service.cli.parser import SHELLS
from tests.conftest import ROOT

END = "the line was:"
START = {
    "bash": ["bash", "--noprofile", "--rcfile", ".zshrc", "-i"],
    "zsh": ["zsh", "-d", "-i"],
    "fish": ["fish", "--no-config"],
}
BEGUN = {
    "wisp trans": "wisp transcribe",
    "wisp models pul": "wisp models pull",
    "wisp transcribe --output": "wisp transcribe --output-dir",
    "wisp transcribe --format verb": "wisp transcribe --format verbose_json",
    "wisp transcribe inter": "wisp transcribe interview.wav",
    "wisp models pull medium.": "wisp models pull medium.en",
    "wisp models remove sma": "wisp models remove small_en",
    "wisp serve --target g": "wisp serve --target gpu",
}
LOAD = {
    "bash": 'eval "$(wisp completion bash)"',
    "zsh": 'autoload -Uz compinit && compinit -u -D && eval "$(wisp completion zsh)"',
    "fish": "wisp completion fish | source",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a `wisp` command, an installed model and files to complete."""
    command = tmp_path / "bin" / "wisp"
    command.parent.mkdir()
    code = "import sys; from service.cli.main import main; sys.exit(main())"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    command.chmod(0o755)
    (tmp_path / "models" / "small_en").mkdir(parents=True)
    (tmp_path / "interview.wav").touch()
    return tmp_path


def completed(shell: str, home: Path, typed: Iterable[str]) -> list[str]:
    """The shell's line after Tab is pressed after each of `typed`."""
    environment = {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "WISP_MODELS_DIR": str(home / "models"),
        "ZDOTDIR": str(home),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }
    if shell == "fish":  # it prints its completions without a terminal
        ask = "".join(f"complete --do-complete '{words}' | string split -m1 -f1 \\t\necho\n" for words in typed)
        done = subprocess.run(
            [*START[shell], "-c", f"{LOAD[shell]}\n{ask}"],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        answers = done.stdout.split("\n\n")
        return [f"{words.rpartition(' ')[0]} {answer}" for words, answer in zip(typed, answers, strict=False)]
    (home / ".zshrc").write_text(f"PS1=\n{LOAD[shell]}\n")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 200))
    with subprocess.Popen(
        START[shell],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=home,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(theirs)
        # Ctrl-A goes to the line's start: what was completed becomes the words of an echo.
        lines = "".join(f"{words}\t\x01echo {END} \n" for words in typed)
        os.write(ours, f"{lines}exit\n".encode())
        seen = b""
        try:
            while block := os.read(ours, 65536):
                seen += block
        except OSError:  # Linux's sign that the shell has exited
            pass
        os.close(ours)
        process.wait(timeout=60)
    shown = seen.decode().replace("\r", "").split("\n")
    return [line.removeprefix(END).strip() for line in shown if line.startswith(END)]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_started_words(shell: str, home: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    assert completed(shell, home, BEGUN) == list(BEGUN.values())
