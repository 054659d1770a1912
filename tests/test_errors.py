"""Errors carry one sentence and OpenAI's envelope, whatever their class."""

import inspect
import json
import re

import pytest

from service import errors
from service.errors import (
    AudioTooLong,
    AudioTooShort,
    InternalError,
    MissingField,
    ModelNotFound,
    NoSpace,
    QueueFull,
    UnreadableAudio,
    UploadTooLarge,
    WispError,
)
from tests.conftest import ROOT

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, WispError)]

EXAMPLES = [
    (UnreadableAudio("The file is not audio."), 400, "file", "unreadable_audio"),
    (AudioTooShort(0.01, 0.1), 400, "file", "audio_too_short"),
    (AudioTooLong(9000.0, 7200.0), 413, "file", "audio_too_long"),
    (UploadTooLarge(101, 100), 413, "file", "upload_too_large"),
    (ModelNotFound("nope", ["tiny_en"]), 404, "model", "model_not_found"),
    (MissingField("file"), 400, "file", "missing_required_parameter"),
    (QueueFull(0), 429, None, "queue_full"),
    (NoSpace(), 503, None, "no_space"),
    (InternalError(), 500, None, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "param", "code"), EXAMPLES)
def test_envelope_has_all_four_keys(error: WispError, status: int, param: str | None, code: str) -> None:
    body = json.loads(json.dumps(error.envelope()))
    assert error.status == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)
    assert body["error"]["message"] == str(error) and body["error"]["message"].endswith(".")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_client_faults_are_invalid_requests_and_ours_are_not(cls: type[WispError]) -> None:
    assert (cls.type == "invalid_request_error") == (400 <= cls.status < 500 and cls.status != 429)


def test_every_refusal_is_documented_with_its_status_and_no_other_is() -> None:
    _, _, section = (ROOT / "docs/api.md").read_text().partition("\n## Errors\n")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", section, re.MULTILINE)
    documented = sorted((int(status), code) for status, codes in rows for code in re.findall(r"`(\w+)`", codes))
    assert documented == sorted((cls.status, cls.code) for cls in CLASSES if cls.code is not None)


def test_a_full_queue_says_when_to_come_back_in_whole_seconds() -> None:
    assert QueueFull(0).headers["Retry-After"] == "1"
    assert QueueFull(7).headers["Retry-After"] == "7"


def test_upload_over_the_cap_names_the_cap_and_the_bytes_read() -> None:
    assert "26214400" in str(UploadTooLarge(26_214_401, 26_214_400))
    assert "26214401" in str(UploadTooLarge(26_214_401, 26_214_400))


def test_audio_that_is_too_long_is_told_the_limit_once() -> None:
    assert str(AudioTooLong(12.1, 12.0)) == "The audio is longer than this server's limit of 12 s."


def test_an_internal_error_says_nothing_of_its_cause() -> None:
    try:
        try:
            raise KeyError("secret detail")
        except KeyError as cause:
            raise InternalError from cause
    except InternalError as error:
        assert "secret" not in json.dumps(error.envelope())
