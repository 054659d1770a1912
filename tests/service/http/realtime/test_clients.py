"""OpenAI's clients, as they are, hear recorded speech as it is spoken. Others: make clients."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from tests.conftest import ROOT
from tests.support.realtime import LiveServer, append, live_server
from tests.support.serving import engine_for, ready, settings_for

SAID_LAST = "can do for your country"
SAID = "what your country can do for you"  # live, what comes before it may be cut off, or heard as "asked not"
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


def test_no_delta_is_ever_taken_back(server: LiveServer, shared: Path) -> None:
    """Speech at four times its speed, cut by voice-activity detection."""
    samples, rate = soundfile.read(shared / "speech" / "jfk.wav", dtype="int16")
    said: dict[str, str] = {}
    with server.session() as client:
        client.configure(format={"type": "audio/pcm", "rate": rate})
        for first in range(0, len(samples), rate // 10):
            client.send(append(samples[first : first + rate // 10].tobytes()))
            time.sleep(0.025)
        client.send({"type": "input_audio_buffer.commit"})
        committed, completed = set(), dict[str, str]()
        while not any(SAID_LAST in text for text in completed.values()):
            event = client.recv()
            kind = event["type"].rpartition(".")[2]
            if kind == "delta":
                said[event["item_id"]] = said.get(event["item_id"], "") + event["delta"]
            elif kind == "committed":
                committed.add(event["item_id"])
            elif kind == "completed":
                completed[event["item_id"]] = event["transcript"]
                assert event["item_id"] in committed and event["transcript"] == said.get(event["item_id"], "")
    assert SAID in " ".join(re.sub(r"[^\w\s]", "", " ".join(completed.values()).lower()).split())
