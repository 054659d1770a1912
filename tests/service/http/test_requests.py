"""Requests as clients of every kind send them: paths, addresses, names, bodies, lists, and what they are warned of."""

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.http.app import create_app
from service.http.form.multipart import MAX_PARTS
from service.http.route_table import plain_path
from tests.support import synthetic
from tests.support.serving import PATH, assert_error, engine_for, post, ready, settings_for, wav

SOUND = wav(1.0)
UPLOAD = {"file": ("upload", SOUND, "application/octet-stream")}


@pytest.fixture(scope="module")
def strict(folder: Path) -> Iterator[TestClient]:
    with engine_for(settings_for(folder, unknown_fields="refuse")) as engine:
        yield TestClient(create_app(ready(engine)))


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/transcriptions/",
        "//v1/audio/transcriptions",
        "/v1//audio///transcriptions//",
        "/audio/transcriptions",
        "/openai/v1/audio/transcriptions",
        "/openai/deployments/whisper-1/audio/transcriptions?api-version=2024-06-01",
        "/openai/deployments/gpt-4o-transcribe/audio/transcriptions/?api-version=2025-03-01-preview",
        "/inference",
        "/inference/",
    ],
)
def test_a_transcription_is_where_clients_look_for_it(client: TestClient, strict: TestClient, path: str) -> None:
    for server in (client, strict):
        answer = server.post(f"http://testserver{path}", files=UPLOAD)
        assert answer.json()["text"] == synthetic.SENTENCE and "wisp-warning" not in answer.headers
        assert server.get(f"http://testserver{path}").status_code == 405


def test_an_azure_deployment_is_the_model(client: TestClient) -> None:
    answer = client.post("/openai/deployments/gpt-5/audio/transcriptions", files=UPLOAD)
    assert_error(answer, 404, "model_not_found", "model")
    answer = client.post("/openai/deployments/nothing/audio/translations", files=UPLOAD)
    assert_error(answer, 400, "unsupported_value", "model")  # the English model says first that it cannot translate


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai/v1", "/openai/deployments/whisper"])
def test_models_are_there_too(client: TestClient, prefix: str) -> None:
    listed = client.get(f"{prefix}/models").json()
    assert listed == client.get("/v1/models").json()
    for entry in listed["data"]:
        assert client.get(f"{prefix}/models/{entry['id']}").json() == entry


def test_health_is_where_others_have_it(client: TestClient) -> None:
    for path in ("/health", "/health/", "//healthz"):
        assert client.get(f"http://testserver{path}").json() == {"status": "ok"}


# Addresses and bodies


def test_fields_may_be_in_the_address_and_those_of_the_form_win(client: TestClient) -> None:
    answer = client.post(f"{PATH}?response_format=text&language=eng&colour=red", files=UPLOAD)
    assert answer.text == synthetic.SENTENCE + "\n" and answer.headers["wisp-warning"] == "ignored fields: colour"
    answer = client.post(f"{PATH}?response_format=text", files=UPLOAD, data={"response_format": "srt"})
    assert answer.text.startswith("1\n00:00:00,000")
    refusal = client.post(f"{PATH}?temperature=hot", content=b"", headers={"content-type": "audio/wav"})
    assert_error(refusal, 400, "invalid_value", "temperature")


def test_an_address_has_a_bounded_number_of_fields(client: TestClient) -> None:
    query = "&".join(["a"] * MAX_PARTS)
    assert client.post(f"{PATH}?{query}", files=UPLOAD).status_code == 200
    assert "query" in assert_error(client.post(f"{PATH}?{query}&a", files=UPLOAD), 400, "malformed_form")


def test_a_body_may_be_json_or_the_sound(client: TestClient) -> None:
    data = base64.b64encode(SOUND).decode()
    for body in ({"input_audio": {"data": data, "format": "wav"}}, {"file": f"data:audio/wav;base64,{data}"}):
        answer = client.post(PATH, json={"model": "whisper-1", "response_format": "text", **body})
        assert answer.text == synthetic.SENTENCE + "\n"
    answer = client.post(f"{PATH}?response_format=text", content=SOUND, headers={"content-type": "audio/wav"})
    assert answer.text == synthetic.SENTENCE + "\n"
    assert_error(client.post(PATH, json={"model": "whisper-1"}), 400, "missing_required_parameter", "file")
    assert_error(client.post(PATH, json={"file": "!"}), 400, "invalid_value", "file")
    assert_error(client.post(PATH, json={"file": data, "model": "gpt-5"}), 404, "model_not_found", "model")


def test_raw_telephone_sound_is_known_by_its_name_or_type(client: TestClient) -> None:
    raw = np.full(16_000, 0xFF, np.uint8)  # two seconds of silence in µ-law
    raw[::8] = 0x80
    for upload in (("call.ulaw", raw.tobytes(), "application/octet-stream"), ("blob", raw.tobytes(), "audio/PCMU")):
        answer = client.post(PATH, data={"response_format": "verbose_json"}, files={"file": upload})
        assert answer.json()["duration"] == 2.0
    whole = client.post(
        f"{PATH}?response_format=verbose_json", content=raw.tobytes(), headers={"content-type": "audio/PCMU"}
    )
    assert whole.json()["duration"] == 2.0
    assert_error(client.post(PATH, files={"file": ("call", raw.tobytes())}), 400, "unreadable_audio", "file")
    posing = client.post(PATH, data={"response_format": "verbose_json"}, files={"file": ("call.ulaw", SOUND)})
    assert posing.json()["duration"] == 1.0, "the content decides where it is a file of another kind"
    assert_error(client.post(PATH, files={"file": ("call.ulaw", b"")}), 400, "unreadable_audio", "file")
    short = client.post(PATH, files={"file": ("call.ulaw", raw[:100].tobytes())})
    assert_error(short, 400, "audio_too_short", "file")


def test_json_has_the_same_cap(client: TestClient) -> None:
    data = base64.b64encode(bytes(300_001)).decode()
    assert_error(client.post(PATH, json={"file": data}), 413, "upload_too_large", "file")
    headers = {"content-type": "application/json", "content-length": str(10**12)}
    assert_error(client.post(PATH, content=b"", headers=headers), 413, "upload_too_large", "file")


def test_text_fields_may_be_file_parts(client: TestClient) -> None:
    files: dict[str, Any] = {
        "model": ("blob", b"whisper-1", "text/plain"),
        "response_format": ("blob", b"text"),
        **UPLOAD,
        "attachment": ("a.pdf", bytes(100_000), "application/pdf"),
    }
    answer = client.post(PATH, files=files)
    assert answer.text == synthetic.SENTENCE + "\n" and answer.headers["wisp-warning"] == "ignored fields: attachment"
    files.pop("file")
    assert_error(client.post(PATH, files=files), 400, "missing_required_parameter", "file")


# Unknown fields

SENT: dict[str, Any] = {
    "hotwords": "Wisp",
    "beam_size": "2",
    "seed": "7",
    "temperature_inc": "0.2",
    "translate": "false",
    "task": "transcribe",
    "word_timestamps": "true",
}
IGNORED: dict[str, Any] = {
    "user": "me",
    "top_p": "1",
    "max_completion_tokens": "100",
    "stream_include_usage": "true",
    "diarize": "false",
    "best_of": "5",
}


def test_what_clients_send_besides_is_honoured_or_ignored_with_a_warning(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = post(client, **SENT, **IGNORED)
    assert answer.json()["text"] == synthetic.SENTENCE
    warning = f"ignored fields: {', '.join(IGNORED)}"
    assert answer.headers["wisp-warning"] == warning
    assert [record.getMessage() for record in caplog.records].count(warning) == 1
    assert "wisp-warning" not in post(client, **SENT).headers
    stream = post(client, stream="true", user="me")
    assert stream.headers["wisp-warning"] == "ignored fields: user"


def test_a_setting_refuses_them(strict: TestClient) -> None:
    for name, value in {**SENT, **IGNORED}.items():
        assert_error(post(strict, **{name: value}), 400, "unknown_parameter", name)
    assert_error(strict.post(f"{PATH}?colour=red", files=UPLOAD), 400, "unknown_parameter", "colour")
    files: Any = {"attachment": ("a.pdf", b"x"), **UPLOAD}
    assert_error(strict.post(PATH, files=files), 400, "unknown_parameter", "attachment")


def test_a_name_cannot_add_a_header_or_a_log_line(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a%0d%0aSet-Cookie: x", "naïve\u2028", "b" * 3000, "\x1b[2J"]
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n1\r\n' for name in names]
    file = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + SOUND + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    with caplog.at_level(logging.INFO):
        answer = client.post(f"{PATH}?c%0d%0aX:%20y=1", content="".join(parts).encode() + file, headers=headers)
    assert answer.status_code == 200 and "set-cookie" not in answer.headers and "x" not in answer.headers
    warning = answer.headers["wisp-warning"]
    assert warning.startswith("ignored fields: c??X??y, a?0d?0aSet-Cookie??x, na?ve?, bbb") and len(warning) < 200
    assert warning.isprintable()
    (line,) = (message for message in caplog.messages if message.startswith("ignored fields"))
    assert line == warning.replace("c??X??y, ", "") + " (and in the query)", "a name there may be a secret"


# Pages of other origins


def preflight(client: TestClient, origin: str, **headers: str) -> Any:
    return client.options(PATH, headers={"Origin": origin, "Access-Control-Request-Method": "POST", **headers})


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://app.example.com", True),
        ("https://x-1.example.com", True),
        ("https://example.com", False),
        ("https://a.b.example.com", False),
        ("http://app.example.com", False),
        ("https://app.example.com.evil.org", False),
        ("https://evil.org/.example.com", False),
        ("https://evil.org?.example.com", False),
        ("https://appxexample.com", False),
        ("https://.example.com", False),
        ("https://app.example.com:8443", False),
        ("http://localhost", True),
        ("http://localhost:3000", True),
        ("http://localhost:x", False),
        ("http://localhost.evil.org", False),
        ("https://one.example", True),
        ("null", False),
    ],
)
def test_a_wildcard_stands_for_one_name_or_a_port(folder: Path, origin: str, is_allowed: bool) -> None:
    settings = settings_for(folder, cors_origins="https://*.example.com, http://localhost:*, https://one.example")
    with engine_for(settings) as engine:
        client = TestClient(create_app(engine))
        asked = preflight(client, origin)
        assert (asked.status_code == 200) == is_allowed
        assert asked.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
        answer = client.get("/v1/models", headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)


def test_a_page_of_the_internet_may_ask_a_server_at_home(folder: Path) -> None:
    asks = {"Access-Control-Request-Private-Network": "true"}
    with engine_for(settings_for(folder, cors_origins="https://a.example")) as engine:
        client = TestClient(create_app(engine))
        asked = preflight(client, "https://a.example", **asks)
        assert asked.status_code == 200 and asked.headers["access-control-allow-private-network"] == "true"
        assert preflight(client, "https://b.example", **asks).status_code == 400
        answer = client.get("/v1/models", headers={"Origin": "https://a.example"})
        assert "wisp-warning" in answer.headers["access-control-expose-headers"]


def test_a_target_in_absolute_form_is_its_path() -> None:
    assert (
        plain_path("http://localhost:8080/v1/models") == plain_path("https://wisp.example//v1/models/") == "/v1/models"
    )
    assert plain_path("http://localhost") == "/"
