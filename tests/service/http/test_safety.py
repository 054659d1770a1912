"""Attacks by uploads and pages: bombs, names that are paths, pages of other origins."""

import io
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from service.http.app import create_app
from service.http.service import Service
from tests.support.serving import PATH, assert_error, engine_for, post, settings_for, wav

MIB = 1024 * 1024
ELSEWHERE = "https://elsewhere.example"


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with engine_for(settings_for(folder, max_audio_s=60.0)) as engine, TestClient(create_app(engine)) as client:
        yield client


def opus_bomb() -> bytes:
    """An hour of silence in an OGG/Opus file of under a MiB: one minute, chained to itself."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(48_000 * 60, np.float32), 48_000, format="OGG", subtype="OPUS")
    minute = buffer.getvalue()
    return minute * 60


def flac_bomb() -> bytes:
    """An hour of silence, which FLAC writes in some bytes a second."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(8000 * 3600, np.int16), 8000, format="FLAC")
    return buffer.getvalue()


@pytest.mark.parametrize("bomb", [opus_bomb, flac_bomb])
def test_a_small_file_of_an_hour_is_refused_in_little_memory(client: TestClient, bomb: Any) -> None:
    file = bomb()
    assert len(file) <= MIB
    tracemalloc.start()
    try:
        answer = post(client, file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "limit of 60 s" in assert_error(answer, 413, "audio_too_long", "file")
    # A minute at 16 kHz is 4 MiB; all of it would be 230.
    assert peak < 40 * MIB


def test_a_header_that_claims_terabytes_takes_no_memory(client: TestClient) -> None:
    forged = bytearray(wav(1.0))
    forged[22:24] = (8).to_bytes(2, "little")  # channels
    forged[24:28] = (655_350).to_bytes(4, "little")  # Hz
    forged[40:44] = b"\xff\xff\xff\xff"  # bytes of data
    tracemalloc.start()
    try:
        answer = post(client, bytes(forged))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_error(answer, 400, "unreadable_audio", "file")
    assert peak < 10 * MIB


# Names in a request are names


class Opened:
    """Files and addresses that Python opens while `watching`; audit hooks are permanent, so there is only one."""

    def __init__(self) -> None:
        self.watching = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and event in (
            "open",
            "socket.connect",
            "socket.getaddrinfo",
            "subprocess.Popen",
            "os.listdir",
        ):
            self.seen.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


@pytest.mark.parametrize("name", ["/etc/passwd", "../../canary-7", "http://canary-7.example/a.wav", "file:///canary-7"])
def test_no_path_or_address_of_a_request_is_opened(client: TestClient, opened: Opened, name: str) -> None:
    playlists = [
        f"#EXTM3U\n#EXTINF:1,\n{name}\n",
        f"ffconcat version 1.0\nfile '{name}'\n",
        f'<smil><body><audio src="{name}"/></body></smil>',
        name,
    ]
    opened.seen.clear()
    opened.watching = True
    try:
        heard = client.post(PATH, files={"file": (name, wav(1.0), name)})
        answers = [client.post(PATH, files={"file": (name, text.encode())}) for text in playlists]
        answers += [client.post(PATH, data={field: name}, files={"file": wav(1.0)}) for field in ("model", "language")]
        answers += [client.post(PATH, data={"file": name}, files={"x": b""}), client.get(f"/v1/models/{name}")]
        client.post(PATH, data={"prompt": name, "known_speaker_references[]": name}, files={"file": wav(1.0)})
    finally:
        opened.watching = False
    assert heard.status_code == 200
    assert {answer.status_code for answer in answers} <= {400, 404}
    assert not [seen for seen in opened.seen if "canary" in seen or "passwd" in seen]
    assert not any(b"root:" in answer.content for answer in answers)


# Pages of other origins


def test_other_origins_can_read_nothing_by_default(client: TestClient) -> None:
    answer = client.get("/v1/models", headers={"Origin": ELSEWHERE})
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    preflight = {"Origin": ELSEWHERE, "Access-Control-Request-Method": "POST"}
    assert_error(client.options(PATH, headers=preflight), 403, "foreign_origin")


def test_a_page_can_read_a_server_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Service, *_: object) -> dict[str, Any]:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(Service, "model_object", broken)
    with engine_for(settings_for(folder, cors_origins=ELSEWHERE)) as engine:
        client = TestClient(create_app(engine))
        answer = client.get("/v1/models", headers={"Origin": ELSEWHERE, "x-request-id": "r1"})
        assert_error(answer, 500, "internal_error")
        assert answer.headers["access-control-allow-origin"] == ELSEWHERE
        assert answer.headers["x-request-id"] == "r1"
        assert (
            "access-control-allow-origin"
            not in client.get("/v1/models", headers={"Origin": "https://b.example"}).headers
        )


def test_an_origin_that_is_configured_may_ask_with_a_key(folder: Path) -> None:
    settings = settings_for(folder, cors_origins=f" https://a.example , {ELSEWHERE}", api_keys="alice")
    with engine_for(settings) as engine, TestClient(create_app(engine)) as client:
        preflight = {
            "Origin": ELSEWHERE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, x-stainless-lang",
        }
        allowed = client.options(PATH, headers=preflight)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == ELSEWHERE
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        assert client.options(PATH, headers=preflight | {"Origin": "https://b.example"}).status_code == 400
        refused = client.get("/v1/models", headers={"Origin": ELSEWHERE})
        assert refused.headers["access-control-allow-origin"] == ELSEWHERE, "a page reads why it was refused"
        assert_error(refused, 401, "invalid_api_key")
        answer = client.get("/v1/models", headers={"Origin": ELSEWHERE, "Authorization": "Bearer alice"})
        assert answer.status_code == 200 and "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        foreign = {"Origin": "https://b.example", "Authorization": "Bearer alice"}
        assert_error(client.get("/v1/models", headers=foreign), 403, "foreign_origin")
