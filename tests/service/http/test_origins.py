"""Blocks foreign web pages from using a server on this machine; other pages, programs and proxies still work."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from service.errors import StartError
from service.http import app as wiring
from service.http.app import create_app
from service.http.origins import OriginGuard
from service.settings import Settings
from tests.support.processes import ServerProcess, server_process
from tests.support.serving import PATH, assert_error, engine_for, settings_for, wav

EVIL = "https://evil.example"
FILES = {"file": ("a.wav", wav(1.0))}


async def welcome(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def status(headers: dict[str, str], **options: Any) -> int:
    """A guarded server's response to a request with these headers."""
    options |= {"origins": Settings(cors_origins=options.get("origins", "")).cors_origin_pattern()}
    guard = OriginGuard(welcome, **{"hosts": [], "check_host": True, **options})
    return TestClient(guard, base_url="http://localhost:8080").post("/", headers=headers).status_code


OWN, FOREIGN, MISDIRECTED = 204, 403, 421


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, OWN),
        ({"Origin": "http://localhost:8080"}, OWN),
        ({"Origin": "http://localhost:3000"}, FOREIGN),
        ({"Origin": EVIL}, FOREIGN),
        ({"Origin": "null"}, FOREIGN),
        ({"Origin": ""}, FOREIGN),
        ({"Origin": "http://["}, FOREIGN),
        ({"Origin": "http://localhost:8080.evil.example"}, FOREIGN),
        ({"Origin": "http://localhost:99999"}, FOREIGN),
        ({"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, FOREIGN),
        ({"Origin": "https://wisp.example", "Sec-Fetch-Site": "same-origin"}, OWN),
        ({"Host": "evil.example:8080", "Origin": "http://evil.example:8080", "Sec-Fetch-Site": "same-origin"}, 421),
        ({"Host": "evil.example"}, MISDIRECTED),
        ({"Host": "localhost.evil.example"}, MISDIRECTED),
        ({"Host": "127.0.0.1.evil.example"}, MISDIRECTED),
        ({"Host": "["}, MISDIRECTED),
        ({"Host": "cpu.evil.example"}, MISDIRECTED),
        ({"Host": "cpu:8080"}, OWN),
        ({"Host": "wisp-cpu_1:8080", "Origin": "http://wisp-cpu_1:8080"}, OWN),
        ({"Host": "cpu:8080", "Origin": EVIL}, FOREIGN),
        ({"Host": "LOCALHOST:1"}, OWN),
        ({"Host": "localhost."}, OWN),
        ({"Host": "wisp.localhost:8080"}, OWN),
        ({"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:8080"}, OWN),
        ({"Host": "[::1]:8080", "Origin": "http://[::1]:8080"}, OWN),
        ({"Host": "192.168.1.5"}, OWN),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1:80"}, OWN),
    ],
)
def test_on_loopback_a_request_is_for_one_of_the_servers_names(headers: dict[str, str], expected: int) -> None:
    assert status(headers) == expected


def test_configured_origins_are_allowed() -> None:
    assert status({"Origin": EVIL}, origins=EVIL) == OWN
    assert status({"Origin": "null"}, origins="*") == OWN
    assert (
        status(
            {"Origin": "https://a.b.example"},
            origins="https://*.b.example",
        )
        == OWN
    )
    assert (
        status(
            {"Origin": "https://a.c.example"},
            origins="https://*.b.example",
        )
        == FOREIGN
    )
    assert status({"Origin": "http://[::1]:3000"}, origins="http://[::1]:3000") == OWN
    assert status({"Host": "Wisp.Example:443"}, hosts=["wisp.example"]) == OWN
    assert status({"Host": "a.example"}, hosts=["*.example"]) == OWN
    # A proxy that writes its own Host, and a browser that sends only the page's origin.
    assert status({"Host": "127.0.0.1:8080", "Origin": "https://wisp.example"}, hosts=["wisp.example"]) == OWN


def test_a_public_server_accepts_any_name() -> None:
    assert status({"Host": "wisp.lan:8080"}, check_host=False) == OWN
    assert status({"Host": "wisp.lan:8080", "Origin": "http://wisp.lan:8080"}, check_host=False) == OWN
    assert status({"Host": "wisp.lan:8080", "Origin": EVIL}, check_host=False) == FOREIGN


def test_a_web_socket_of_a_foreign_page_is_refused_before_it_is_open() -> None:
    guard = OriginGuard(welcome, origins="", hosts=[], check_host=True)
    client = TestClient(guard, base_url="http://localhost")
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/", headers={"Origin": EVIL}):
        pass
    assert_error(refused.value, 403, "foreign_origin")


def test_a_foreign_page_is_refused_before_its_upload_is_read(folder: Path) -> None:
    with engine_for(settings_for(folder)) as engine:
        client = TestClient(create_app(engine))
        told = assert_error(client.post(PATH, headers={"Origin": EVIL}, files=FILES), 403, "foreign_origin")
        assert EVIL in told and "WISP_CORS_ORIGINS" in told
        assert len(client.get("/v1/models", headers={"Origin": "x" * 10_000}).text) < 500


@pytest.mark.parametrize(
    ("host", "published", "expected"),
    [
        ("0.0.0.0", "127.0.0.1:8080", MISDIRECTED),  # as compose.yaml publishes the image's port
        ("0.0.0.0", "[::1]:8080", MISDIRECTED),
        ("127.0.0.1", "", MISDIRECTED),
        ("0.0.0.0", "8080", 200),
        ("127.0.0.1", "0.0.0.0:8080", 200),
        ("0.0.0.0", "", 200),
    ],
)
def test_a_containers_published_address_decides_its_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, published: str, expected: int
) -> None:
    apps = []

    def created(*args: Any, **options: Any) -> Any:
        apps.append(create_app(*args, **options))
        return apps[0]

    def listen(*address: Any, **options: Any) -> None:
        raise StartError("Nothing listens in this test.")

    monkeypatch.setattr(wiring, "create_app", created)
    monkeypatch.setattr(wiring, "listen", listen)
    settings = settings_for(folder, host=host, published=published, allow_public_without_key="yes")
    with pytest.raises(StartError, match="in this test"):
        wiring.serve(settings)
    client = TestClient(apps[0])
    assert client.get("/v1/models", headers={"Host": "evil.example:8080"}).status_code == expected
    assert client.get("/v1/models", headers={"Host": "cpu:8080"}).status_code == 200


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(folder, tmp_path_factory.mktemp("cache")) as server:
        yield server


def test_a_server_on_this_machine_knows_its_names(server: ServerProcess) -> None:
    port = server.url.rpartition(":")[2]
    rebound = {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}", "Sec-Fetch-Site": "same-origin"}
    told = assert_error(httpx2.post(server.url + PATH, headers=rebound, files=FILES), 421, "unknown_host")
    assert "WISP_HOSTS" in told
    assert httpx2.get(server.url + "/metrics", headers={"Host": "evil.example"}).status_code == 421
    for path in ("/health", "/healthz", "/readyz"):
        assert httpx2.get(server.url + path, headers={"Host": "a.monitors.name"}).status_code == 200
    own = {"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}"}
    for headers in ({}, own, {"Host": f"host.docker.internal:{port}"}):
        assert httpx2.post(server.url + PATH, headers=headers, files=FILES, timeout=60).status_code == 200
