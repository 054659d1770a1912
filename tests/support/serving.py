"""Shared by the service's tests: sounds, engines around the synthetic model, a guest that fails on request."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import uvicorn
from numpy.typing import NDArray
from starlette.testclient import TestClient
from starlette.types import Scope

from service.audio.decode import SAMPLE_RATE, Audio
from service.errors import WispError
from service.http.app import Engine, create_app
from service.models import loaded
from service.settings import Settings
from service.transcription.reading import audio_of

PATH = "/v1/audio/transcriptions"
FORM_SCOPE: Scope = {  # of a form posted there, for an application without a server
    "type": "http",
    "method": "POST",
    "path": PATH,
    "raw_path": PATH.encode(),
    "root_path": "",
    "query_string": b"",
    "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
}

# A prompt that holds one of these makes the guest below trap, run forever, eat memory or exit with an error. Any other
# request is answered with "All is well." and no segments. It never touches the model.
TRAP, LOOP, EAT, EXIT = "trap!", "loop@", "eat%", "exit^"
HOSTILE_GUEST = r"""
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 16)
  (data (i32.const 1024) "{\"event\":\"done\",\"text\":\" All is well.\",\"language\":\"en\"}\n")
  (func $window_that_traps unreachable)
  (func $window_that_loops (loop $again (br $again)))
  (func $window_that_eats (loop $again
    (if (i32.lt_s (memory.grow (i32.const 64)) (i32.const 0)) (then unreachable))
    (br $again)))
  (func (export "_start") (local $at i32) (local $byte i32)
    (drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
    (drop (call $args_get (i32.const 16) (i32.const 65536)))
    (local.set $at (i32.const 65536))
    (loop $next
      (local.set $byte (i32.load8_u (local.get $at)))
      (if (i32.eq (local.get $byte) (i32.const 33)) (then (call $window_that_traps)))
      (if (i32.eq (local.get $byte) (i32.const 64)) (then (call $window_that_loops)))
      (if (i32.eq (local.get $byte) (i32.const 37)) (then (call $window_that_eats)))
      (if (i32.eq (local.get $byte) (i32.const 94)) (then (call $proc_exit (i32.const 3))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (i32.add (i32.const 65536) (i32.load (i32.const 4))))))
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 56))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""


def tone(seconds: float) -> NDArray[np.float32]:
    """A soft A4 at 16 kHz."""
    phase = np.arange(int(seconds * SAMPLE_RATE), dtype=np.float32) * np.float32(2 * np.pi * 440 / SAMPLE_RATE)
    samples: NDArray[np.float32] = np.sin(phase) * np.float32(0.1)
    return samples


def tone_audio(seconds: float) -> Audio:
    """The same, decoded."""
    return audio_of(tone(seconds))


def wav(seconds: float, rate: int = SAMPLE_RATE) -> bytes:
    """A 16-bit WAV file of a tone."""
    buffer = io.BytesIO()
    samples = np.sin(np.arange(int(seconds * rate)) * (2 * np.pi * 440 / rate)) * 0.1
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def settings_for(model: Path, **changes: Any) -> Settings:
    """A model on the CPU, other settings at their defaults or as given. All its windows are decoded, whatever is in
    them, as synthetic models speak in tones."""
    return Settings(**{"model": str(model), "target": "cpu", "vad": "off", **changes})


@contextmanager
def engine_for(settings: Settings, guest: str = "") -> Iterator[Engine]:
    """An engine that is closed at the end; `guest`, in WAT, replaces the real one."""
    engine = Engine(settings)
    if guest:
        path = Path(settings.model).parent / "guest.wat"
        path.write_text(guest)
        engine.guest_wasm = path
    try:
        yield engine
    finally:
        engine.close()


def assert_error(response: Any, status: int, code: str | None, param: str | None = None) -> str:
    """OpenAI's envelope with all four keys; returns the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert (error["type"] == "invalid_request_error") == (400 <= status < 500 and status != 429)
    assert error["message"].endswith(".")
    return str(error["message"])


def ready(engine: Engine) -> Engine:
    """Start the engine and wait for its first inference, successful or not."""
    engine.start()
    with suppress(WispError):
        engine.proven.result(timeout=60)
    return engine


def post(client: TestClient, file: bytes = wav(1.0), **fields: str) -> Any:
    """Send a file as the OpenAI client does, with these form fields."""
    return client.post(PATH, data=fields, files={"file": ("upload", file, "application/octet-stream")})


def events(text: str) -> list[dict[str, Any]]:
    """The server-sent events of a body, each a bare data frame of one line; without the comments between them."""
    frames = text.split("\n\n")
    assert frames.pop() == ""
    frames = [frame for frame in frames if frame != ":"]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """A real server on its own port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(engine), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def hold_loading(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make the next load wait: the first event says that it has begun, setting the second lets it go on."""
    begun, may_end = threading.Event(), threading.Event()
    kernels = loaded._kernels

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert may_end.wait(60)
        return kernels(*arguments)

    monkeypatch.setattr(loaded, "_kernels", slow)
    return begun, may_end
