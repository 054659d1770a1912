"""Clients with their own defaults through a socket; `make clients` tries more of them, with real speech."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support import synthetic
from tests.support.serving import engine_for, ready, served, settings_for, wav

NODE = ROOT / "tests" / "node"


@pytest.fixture(scope="module")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    speech = folder.parent / "tone.wav"
    speech.write_bytes(wav(1.0))
    with engine_for(settings_for(folder)) as engine, served(ready(engine)) as url:
        said = synthetic.SENTENCE.lower()
        yield {**os.environ, "WISP_URL": url, "WISP_SPEECH": str(speech), "WISP_SAID": said}


@pytest.mark.parametrize("package", ["openai", "groq", "SpeechRecognition"])
def test_python_clients(environment: dict[str, str], package: str) -> None:
    command = [sys.executable, "tests/clients/try_clients.py", package]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"ok   {package} " in ended.stdout


def test_node_clients(environment: dict[str, str]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on this machine")
    if not (NODE / "node_modules" / "@ai-sdk").is_dir():
        pytest.skip("the clients for Node are not installed: npm ci --prefix tests/node")
    command = [node, "--test", "clients.test.mjs"]
    ended = subprocess.run(command, cwd=NODE, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
