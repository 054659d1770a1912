"""What is refused, and how: OpenAI's envelope, the field's name in it, as early as can be."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.conftest import shared_path
from tests.support.serving import PATH, assert_error, post, wav

ODD = sorted((shared_path() / "audio-odd").glob("*.wav"))


def test_a_form_without_a_file_is_refused(client: TestClient) -> None:
    assert_error(client.post(PATH, files={"model": (None, "whisper-1")}), 400, "missing_required_parameter", "file")


def test_a_body_that_is_no_form_is_refused(client: TestClient) -> None:
    assert_error(client.post(PATH, content=b"x", headers={"content-type": "text/plain"}), 400, "malformed_form")
    assert_error(client.post(PATH), 400, "malformed_form")


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "gpt-5"}, 404, "model_not_found", "model"),
        ({"response_format": "docx"}, 400, "unsupported_value", "response_format"),
        ({"temperature": "2"}, 400, "invalid_value", "temperature"),
        ({"language": "klingon"}, 400, "invalid_value", "language"),
        ({"language": "de"}, 400, "unsupported_value", "language"),
        ({"timestamp_granularities[]": "word"}, 400, "unsupported_value", "timestamp_granularities[]"),
        ({"stream": "true", "response_format": "srt"}, 400, "unsupported_value", "response_format"),
    ],
)
def test_fields_are_refused_by_name(
    client: TestClient, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert_error(post(client, **fields), status, code, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "de"}, "language"),
        ({"model": "gpt-5"}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"response_format": "srt", "stream": "true"}, "response_format"),
        ({"include[]": "logprobs", "response_format": "text"}, "include[]"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_the_file_is_read(
    client: TestClient, fields: dict[str, str], param: str
) -> None:
    """The form breaks off where its file begins: whoever went on reading would say so."""
    head = "".join(f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
    body = head + '--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nRIFF'
    response = client.post(PATH, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert response.status_code in (400, 404)
    assert_error(response, response.status_code, response.json()["error"]["code"], param)


def test_a_bad_field_is_refused_before_a_bad_file(client: TestClient) -> None:
    assert_error(post(client, b"no sound", temperature="hot"), 400, "invalid_value", "temperature")


@pytest.mark.parametrize("file", [b"", b"no sound", b"\x00" * 5000, b"RIFF\xff\xff\xff\xffWAVEfmt "])
def test_what_is_no_sound_is_refused(client: TestClient, file: bytes) -> None:
    assert "WAV" in assert_error(post(client, file), 400, "unreadable_audio", "file")


def test_a_moment_of_sound_is_too_short(client: TestClient) -> None:
    assert_error(post(client, wav(0.05)), 400, "audio_too_short", "file")


def test_sound_is_measured_as_decoded(client: TestClient) -> None:
    assert_error(post(client, wav(30.0, rate=4000)), 413, "audio_too_long", "file")


def test_an_upload_over_the_cap_is_refused(client: TestClient) -> None:
    message = assert_error(post(client, b"x" * 400_000), 413, "upload_too_large", "file")
    assert "300000" in message


def test_an_upload_that_announces_too_much_is_not_read(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x", "content-length": str(10**12)}
    message = assert_error(client.post(PATH, content=b"", headers=headers), 413, "upload_too_large", "file")
    assert "its Content-Length is 1000000000000" in message


@pytest.mark.parametrize("path", ["/v1", "/v1/audio/transcription", "/v2/models", "/v1/nothing", "/%2e%2e/etc/passwd"])
def test_an_unknown_path_is_told_in_the_envelope(client: TestClient, path: str) -> None:
    assert_error(client.get(path), 404, "not_found")


def test_a_wrong_method_is_told_in_the_envelope(client: TestClient) -> None:
    response = client.get(PATH)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_odd_files_are_heard_or_refused(client: TestClient, path: Path) -> None:
    response = post(client, path.read_bytes())
    if response.status_code != 200:
        assert response.status_code in (400, 413)
        assert_error(response, response.status_code, response.json()["error"]["code"], "file")


def test_a_wav_cut_off_anywhere_is_heard_or_refused(client: TestClient) -> None:
    whole = wav(0.2)
    for length in [*range(64), *range(64, len(whole), 211)]:
        response = post(client, whole[:length])
        assert response.status_code in (200, 400), (length, response.text)
        if response.status_code == 400:
            assert_error(response, 400, response.json()["error"]["code"], "file")
