"""tools/setup-system.sh on machines that lack something, with fake package managers that log their calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "tools" / "setup-system.sh"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="system packages are installed on Linux only")


def run(folder: Path, *, vulkan: bool, update: int = 0, install: int = 0) -> tuple[int, str, str]:
    """(exit code, what apt-get was asked, stderr); `vulkan`: the loader is there; apt-get ends with the codes given."""
    asked = folder / "asked"
    asked.touch()
    commands = {
        "id": "echo 0",
        # Many libraries after the one looked for, as on a desktop: more than a pipe holds.
        "ldconfig": "echo libvulkan.so.1; seq 100000" if vulkan else "seq 100000",
        "apt-get": f'echo "$@" >>{asked}; case "$*" in *update*) exit {update} ;; *) exit {install} ;; esac',
    }
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run([SCRIPT, sys.executable], env=environment, capture_output=True, text=True)
    assert done.stdout == ""
    return done.returncode, asked.read_text(), done.stderr


def test_only_missing_packages_are_installed(tmp_path: Path) -> None:
    code, asked, told = run(tmp_path, vulkan=False)
    assert code == 0 and "installing libvulkan1" in told
    assert "install -y --no-install-recommends libvulkan1" in asked and "venv" not in asked


def test_a_source_out_of_reach_does_not_stop_the_installation(tmp_path: Path) -> None:
    code, asked, told = run(tmp_path, vulkan=False, update=100)
    assert code == 0 and "libvulkan1" in asked and "CPU target" not in told


def test_without_a_driver_setup_continues_and_says_so(tmp_path: Path) -> None:
    code, _, told = run(tmp_path, vulkan=False, install=100)
    assert code == 0 and "Wisp will serve on the CPU target" in told


def test_a_complete_machine_is_left_alone_without_output(tmp_path: Path) -> None:
    code, asked, told = run(tmp_path, vulkan=True)
    if "mesa-vulkan-drivers" in asked:
        pytest.skip("this machine has no Vulkan driver")
    assert (code, asked, told) == (0, "", "")


def test_a_missing_python_is_one_sentence() -> None:
    done = subprocess.run([SCRIPT, "no-such-python"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Wisp needs Python 3.11 or newer; 'no-such-python' is missing.")
    assert done.stderr.count("\n") == 1
