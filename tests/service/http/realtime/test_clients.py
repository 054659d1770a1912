"""OpenAI's clients, as they are, hear recorded speech as it is spoken. Others: make clients."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.realtime import LiveServer, live_server
from tests.support.serving import engine_for, ready, settings_for

SAID = "ask not what your country can do for you"
NODE = ROOT / "tests" / "node"


@pytest.fixture(scope="module")
def server(tiny_en: Path) -> Iterator[LiveServer]:
    with engine_for(settings_for(tiny_en, vad="skip")) as engine, live_server(ready(engine)) as server:
        yield server


@pytest.fixture(scope="module")
def environment(server: LiveServer, shared: Path) -> dict[str, str]:
    speech = str(shared / "speech" / "jfk.wav")
    return {**os.environ, "WISP_URL": f"{server.url}/v1", "WISP_SPEECH": speech, "WISP_SAID": SAID}


def test_openais_python_client(environment: dict[str, str]) -> None:
    script = ROOT / "tests" / "clients" / "try_clients.py"
    done = subprocess.run(
        [sys.executable, script, "openai"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and done.stdout.count("ok  ") == 4, done.stdout + done.stderr


def test_openais_node_client_over_tls(environment: dict[str, str]) -> None:
    for program in ("node", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine")
    if not (NODE / "node_modules" / "ws").is_dir():
        pytest.skip("OpenAI's Node client is not installed: npm ci --prefix tests/node")
    done = subprocess.run(
        ["node", "--test", "realtime.test.mjs"], cwd=NODE, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
