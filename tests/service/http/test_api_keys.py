"""API keys: who gets in, what stops the start, and that a key is never revealed."""

import hashlib
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from service.errors import StartError
from service.http import api_keys, routes
from service.http.api_keys import ApiKeys, Rights, digest_of, is_loopback, read_api_keys, refuse_to_expose
from service.http.app import create_app, serve
from service.settings import Settings, read_settings
from tests.support import synthetic
from tests.support.serving import PATH, assert_error, engine_for, settings_for, wav

ALICE, BOB, CAROL = "alice-7f3a9c", "bob/5+d1==", "carol~e8b2"


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    path = folder.parent / "keys"
    path.write_text(f"# who may ask\n{ALICE}\n\n  sha256:{hashlib.sha256(CAROL.encode()).hexdigest()}\n")
    settings = settings_for(folder, api_keys_file=str(path), api_keys=f" {BOB} ,")
    with engine_for(settings) as engine, TestClient(create_app(engine)) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", [ALICE, BOB, CAROL])
def test_every_key_of_the_file_and_the_variable_opens(client: TestClient, key: str) -> None:
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    answer = client.post(PATH, headers=bearer(key), files={"file": wav(1.0)})
    assert answer.json()["text"] == synthetic.SENTENCE


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": f"{ALICE}x"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": f"Bearer {ALICE}x"},
        {"Authorization": f"Bearer {ALICE[:-1]}"},
        {"Authorization": f"Bearer {ALICE.upper()}"},
        {"Authorization": f"Bearer {ALICE},{BOB}"},
        {"Authorization": "Bearer sha256:" + hashlib.sha256(CAROL.encode()).hexdigest()},
        {"Authorization": "Bearer clé".encode()},
        {"X-Api-Key": f"{ALICE}x"},
        {"Api-Key": f"Bearer {ALICE}"},
        {"Api-Key": ""},
        {"X-Key": ALICE},
    ],
)
def test_anything_else_is_answered_401(client: TestClient, headers: Any) -> None:
    answer = client.get("/v1/models", headers=headers)
    message = assert_error(answer, 401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-request-id"]
    assert "Authorization: Bearer" in message and ALICE not in message


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ALICE},
        {"api-key": ALICE},
        {"x-api-key": BOB},
        {"Authorization": "Basic dXNlcjpwYXNz", "X-Api-Key": CAROL},
        {"Authorization": "Bearer none", "api-key": ALICE},
    ],
)
def test_a_key_comes_as_azures_and_others_clients_send_it(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_two_authorizations_are_rejected(client: TestClient) -> None:
    both = [("Authorization", f"Bearer {ALICE}"), ("Authorization", f"Bearer {BOB}")]
    assert_error(client.get("/v1/models", headers=both), 401, "invalid_api_key")


def test_the_scheme_is_bearer_in_any_case(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Authorization": f"bearer  {ALICE} "}).status_code == 200


def test_every_route_but_the_public_ones_is_guarded(client: TestClient) -> None:
    table = client.app.router.routes  # type: ignore[attr-defined]
    assert {route.name for route in table} >= routes.PUBLIC_ROUTES, "a public route that is none"
    guarded = 0
    for route in table:
        if isinstance(route, WebSocketRoute):
            with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(route.path):
                pass
            assert refused.value.status_code == 401
            continue
        assert isinstance(route, Route), "say here how its paths are walked"
        for method in route.methods or ():
            path = route.path.replace("{id:path}", "whisper-1").replace("{deployment}", "whisper")
            answer = client.request(method, path)
            assert client.request(method, f"http://testserver/{path}//").status_code == answer.status_code
            assert (answer.status_code == 401) == (route.name not in routes.PUBLIC_ROUTES), (method, route.path)
            guarded += answer.status_code == 401
    assert guarded >= 3


@pytest.mark.parametrize("path", ["/v1", "/v1/audio", "/healthzz", "/healthz/v1/models", "/nothing", "//v1//models/"])
def test_unknown_paths_are_guarded_too(client: TestClient, path: str) -> None:
    assert client.get(f"http://testserver{path}").status_code == 401
    assert client.request("OPTIONS", f"http://testserver{path}").status_code == 401


def test_a_websocket_without_a_key_is_refused_before_it_is_accepted(client: TestClient) -> None:
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/v1/realtime"):
        pass
    assert_error(refused.value, 401, "invalid_api_key")


def test_health_needs_no_key(client: TestClient) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.post("/healthz").status_code == 405


def test_an_upload_without_a_key_is_not_read(client: TestClient) -> None:
    app = client.app

    async def unread(scope: Any, receive: Any, send: Any) -> None:
        async def never() -> Any:
            raise AssertionError("the body was read")

        await app(scope, never if scope["type"] == "http" else receive, send)

    headers = {"content-type": "multipart/form-data; boundary=x", **bearer("wrong")}
    assert_error(TestClient(unread).post(PATH, content=b"x" * 65536, headers=headers), 401, "invalid_api_key")


def test_a_key_is_never_logged_nor_returned(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "mallory-secret"
    with caplog.at_level(logging.DEBUG):
        answers = [client.get("/v1/models", headers=bearer(key)) for key in (ALICE, BOB, wrong)]
        answers.append(client.post(PATH, headers=bearer(ALICE), files={"file": b"no sound"}))
        answers.append(client.post(PATH, headers=bearer(ALICE), data={"model": "x"}, files={"file": b"no sound"}))
    assert "/v1/models 401" in caplog.text
    told = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    assert not [key for key in (ALICE, BOB, CAROL, wrong) if key in told]


def test_without_keys_everybody_is_let_in(folder: Path) -> None:
    with engine_for(settings_for(folder)) as engine, TestClient(create_app(engine)) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers=bearer("any")).status_code == 200


def test_keys_are_kept_as_digests_only() -> None:
    keys = read_api_keys(Settings(api_keys=ALICE))
    assert keys.accepted([f"Bearer {ALICE}"])
    assert ALICE not in str(vars(keys)) and ALICE not in repr(Settings(api_keys=ALICE))
    assert ApiKeys({digest_of(BOB): Rights()}).accepted([f"Bearer {BOB}"])


# What stops the start


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no key"),
        (b"\n# only a comment\n  \n", "has no key"),
        (b"good-key\nsecret with spaces\n", "line 2"),
        (b"good-key\nother-key admin Models=base\n", "line 2"),
        (b"good-key admins\n", "line 1"),
        (b"good-key models=\n", "line 1"),
        (b"good-key models=base,,tiny\n", "line 1"),
        (b"good-key models=base models=tiny\n", "line 1"),
        (b"good-key admin\ngood-key\n", "line 2"),
        (b"secret,with,commas", "line 1"),
        ("secrèt".encode(), "line 1"),
        (b"sha256:secret", "line 1"),
        (b"sha256:" + hashlib.sha256().hexdigest().encode(), "line 1"),
        (b"SHA256:" + hashlib.sha256(b"secret").hexdigest().encode(), "line 1"),
        (b"Sha-256:" + hashlib.sha256(b"secret").hexdigest().encode(), "line 1"),
        (b"sha1:" + hashlib.sha1(b"secret").hexdigest().encode(), "line 1"),
        (b"sha256:" + hashlib.sha256(b"secret").hexdigest()[1:].encode(), "line 1"),
        (b"\xff\xfe\x00secret", "isn't text"),
        (b"x" * 2_000_000, "larger than"),
    ],
)
def test_a_file_without_whole_keys_stops_the_start(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(StartError, match=words) as raised:
        read_api_keys(Settings(api_keys_file=str(path)))
    assert "secret" not in str(raised.value) and "secr" not in str(raised.value)


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StartError, match="cannot be read") as raised:
            serve(Settings(api_keys_file=str(path), api_keys=ALICE))
        assert str(path) in str(raised.value)


def test_the_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, for example, can be read only once: `--api-keys-file <(decrypt keys)`."""
    reads: list[Path] = []

    def read(path: Path) -> str:
        reads.append(path)
        return ALICE

    monkeypatch.setattr(api_keys, "_read", read)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartError, match="Cannot listen"):
        serve(settings_for(folder, api_keys_file="/dev/fd/63", port=taken.getsockname()[1]))
    assert reads == [Path("/dev/fd/63")]


def test_a_variable_of_commas_stops_the_start() -> None:
    with pytest.raises(StartError, match="WISP_API_KEYS has no key"):
        read_api_keys(read_settings({"WISP_API_KEYS": " , "}))


# Addresses that others reach


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "8.8.8.8", "example.org", "localhost.example.org"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(StartError, match="WISP_API_KEYS") as raised:
        serve(Settings(host=host))
    assert host in str(raised.value) and "WISP_ALLOW_PUBLIC_WITHOUT_KEY=yes" in str(raised.value)
    refuse_to_expose(Settings(host=host), read_api_keys(Settings(api_keys=ALICE)))
    refuse_to_expose(Settings(host=host, allow_public_without_key="yes"), ApiKeys({}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_alone_needs_none(host: str) -> None:
    assert is_loopback(host)
    refuse_to_expose(Settings(host=host), ApiKeys({}))


@pytest.mark.parametrize("published", ["8080", "0.0.0.0:8080", "192.168.1.5:8080", "[::]:8080", ":8080"])
def test_a_container_without_a_key_is_published_on_this_machine_only(published: str) -> None:
    with pytest.raises(StartError, match=re.escape(published)):
        refuse_to_expose(Settings(host="0.0.0.0", published=published), ApiKeys({}))
    with pytest.raises(StartError):
        refuse_to_expose(Settings(host="127.0.0.1", published=published), ApiKeys({}))
    refuse_to_expose(Settings(host="0.0.0.0", published=published), read_api_keys(Settings(api_keys=ALICE)))
    for local in ("127.0.0.1:8080", "[::1]:8080"):
        refuse_to_expose(Settings(host="0.0.0.0", published=local), ApiKeys({}))
