"""The events of a live session: reads the client's frames with bounded work, writes the server's with their IDs."""

import binascii
import json
import re
import uuid
from typing import Any

from service.errors import InvalidValue, MalformedEvent, WispError
from service.http.form.json_body import strict_json

Json = dict[str, Any]

PLAIN_CHARACTERS = 64 * 1024  # of an event; only audio makes one larger
FRAME_CHARACTERS = 4096  # of a larger event, before its audio and after
AUDIO = re.compile(r'"audio"\s*:\s*"')
APPEND = "input_audio_buffer.append"
UPDATES = {  # event → its answer
    "session.update": "session.updated",
    "transcription_session.update": "transcription_session.updated",
}
# Of sessions in which a model answers.
CONVERSATION = (
    "conversation.item.create",
    "conversation.item.delete",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "output_audio_buffer.clear",
    "response.cancel",
    "response.create",
)
MAX_ID = 512  # characters of a client's event_id


def new_id(kind: str) -> str:
    """An ID like OpenAI's: the kind, then letters and digits."""
    return f"{kind}_{uuid.uuid4().hex}"


def server_event(kind: str, **fields: Any) -> str:
    """The text of a frame."""
    return json.dumps({"type": kind, "event_id": new_id("event"), **fields}, ensure_ascii=False)


def error_event(error: WispError, client_event_id: str | None) -> str:
    """An `error` event about one of the client's."""
    return server_event("error", error={**error.envelope()["error"], "event_id": client_event_id})


def client_event_id(event: Json) -> str | None:
    """The client's own ID of its event, if it has one."""
    found = event.get("event_id")
    return found if isinstance(found, str) and len(found) <= MAX_ID else None


def read_event(text: str) -> Json:
    """The event in a frame. A large one must be an append, whose audio is cut out before the rest is parsed.

    Raises MalformedEvent.
    """
    if len(text) <= PLAIN_CHARACTERS:
        return _object(text)
    begins = AUDIO.search(text, 0, FRAME_CHARACTERS)
    end = text.find('"', begins.end()) if begins is not None else -1
    if begins is None or end < 0 or len(text) - end > FRAME_CHARACTERS:
        raise MalformedEvent(
            f"An event larger than {PLAIN_CHARACTERS} characters must be an {APPEND} with nothing large but its audio."
        )
    event = _object(text[: begins.end()] + text[end:])
    if event.get("type") != APPEND or event.get("audio") != "":
        raise MalformedEvent(f"An event larger than {PLAIN_CHARACTERS} characters must be an {APPEND}.")
    event["audio"] = text[begins.end() : end].replace("\\/", "/")
    return event


def _object(text: str) -> Json:
    try:
        event = strict_json(text)
    except (ValueError, RecursionError):
        raise MalformedEvent("The event isn't JSON.") from None
    if not isinstance(event, dict):
        raise MalformedEvent("The event isn't a JSON object.")
    if not isinstance(event.get("type"), str):
        raise MalformedEvent("The event has no type.", param="type")
    return event


def audio_bytes(event: Json, most_bytes: int) -> bytes:
    """An append's audio. Raises MalformedEvent, InvalidValue."""
    audio = event.get("audio")
    if not isinstance(audio, str):
        raise MalformedEvent(f"An {APPEND} has its audio as base64 in 'audio'.", param="audio")
    if len(audio) // 4 * 3 > most_bytes + 2:
        raise InvalidValue(f"An append may have {most_bytes} bytes of audio at most.", param="audio")
    if "-" in audio or "_" in audio:
        audio = audio.replace("-", "+").replace("_", "/")
    if missing := -len(audio) % 4:
        audio += "=" * missing
    try:
        return binascii.a2b_base64(audio, strict_mode=True)
    except ValueError:
        raise InvalidValue("The audio isn't base64.", param="audio") from None
