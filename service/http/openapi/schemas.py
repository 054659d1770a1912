"""JSON Schema of every response body: used by /openapi.json, and by the tests to check responses."""

from typing import Any

from service.http.formats import MEDIA_TYPES
from service.models.languages import LANGUAGES

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
SECONDS: Schema = {"type": "number", "minimum": 0}
PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
BYTE: Schema = COUNT | {"maximum": 255}
BOOLEAN: Schema = {"type": "boolean"}
NULLABLE: Schema = {"type": ["string", "null"]}


def record(properties: Schema, *, description: str = "", is_open: bool = False) -> Schema:
    """An object with these keys and, unless `is_open`, no others. A key with a question mark is optional."""
    schema: Schema = {
        "type": "object",
        "properties": {name.removesuffix("?"): value for name, value in properties.items()},
        "required": [name for name in properties if not name.endswith("?")],
    }
    if not is_open:
        schema["additionalProperties"] = False
    return schema | ({"description": description} if description else {})


def reference(name: str) -> Schema:
    """A reference to one of COMPONENTS."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: str | Schema) -> Schema:
    """A list of one of COMPONENTS, or of another schema."""
    return {"type": "array", "items": reference(items) if isinstance(items, str) else items}


def words(*values: str) -> Schema:
    """One of these strings."""
    return {"type": "string", "enum": list(values)}


def constant(value: str) -> Schema:
    """This string."""
    return {"type": "string", "const": value}


_HEAD: Schema = {
    "task": words("transcribe", "translate"),
    "language": words(*sorted(set(LANGUAGES.values()))),
    "duration": SECONDS | {"description": "Of the recording, in seconds."},
    "text": STRING,
}
_SEGMENT: Schema = {
    "id": COUNT,
    "seek": COUNT | {"description": "Where the segment's window begins, in frames of 10 ms."},
    "start": SECONDS,
    "end": SECONDS,
    "text": STRING | {"description": "With the space before it."},
    "tokens": array(COUNT),
    "temperature": PROBABILITY,
    "avg_logprob": NUMBER,
    "compression_ratio": SECONDS,
    "no_speech_prob": PROBABILITY,
}
_LOADED_MODEL = record(
    {
        "name": STRING,
        "model": STRING,
        "size": COUNT | {"description": "Bytes in memory."},
        "size_vram": COUNT | {"description": "Bytes of them on the GPU."},
        "details": record({"family": STRING, "target": words("gpu", "cpu")}),
        "in_use": COUNT | {"description": "Transcriptions."},
        "expires_at": STRING,
    }
)
_LANGUAGES, _LOGPROBS = array("Language"), array("Logprob")

COMPONENTS: Schema = {
    "Transcription": record(
        {"text": STRING, "languages": _LANGUAGES, "usage": reference("Usage"), "logprobs?": _LOGPROBS}
    ),
    "VerboseTranscription": record(
        {
            **_HEAD,
            "languages": _LANGUAGES,
            "segments?": array("Segment"),
            "words?": array("Word"),
            "usage": reference("Usage"),
            "logprobs?": _LOGPROBS,
        },
        description="Segments, words or both, as timestamp_granularities[] asks.",
    ),
    "Segment": record(_SEGMENT),
    "Word": record({"word": STRING, "start": SECONDS, "end": SECONDS}),
    "Usage": record({"type": constant("duration"), "seconds": COUNT}, description="Seconds of audio, rounded up."),
    "TokenUsage": record(
        {
            "type": constant("tokens"),
            "input_tokens": COUNT | {"description": "One per started 100 ms of audio."},
            "input_token_details": record({"audio_tokens": COUNT, "text_tokens": COUNT}),
            "output_tokens": COUNT | {"description": "Whisper's tokens, including timestamps."},
            "total_tokens": COUNT,
        }
    ),
    "Language": record({"code": words(*LANGUAGES)}, description="A spoken language."),
    "Logprob": record(
        {"token": STRING, "logprob": {"type": "number", "maximum": 0}, "bytes": array(BYTE)},
        description="A token of the text. U+FFFD stands for part of a character; bytes are exact.",
    ),
    "Event": {
        "description": "The data of one server-sent event.",
        "oneOf": [reference("DeltaEvent"), reference("SegmentEvent"), reference("DoneEvent"), reference("Error")],
    },
    "DeltaEvent": record(
        {"type": constant("transcript.text.delta"), "delta": STRING, "segment_id": STRING, "logprobs?": _LOGPROBS}
    ),
    "SegmentEvent": record(
        {"type": constant("transcript.text.segment"), **_SEGMENT, "id": STRING, "words?": array("Word")},
        description="With verbose_json.",
    ),
    "DoneEvent": record(
        {
            "type": constant("transcript.text.done"),
            "task?": _HEAD["task"],
            "language?": _HEAD["language"],
            "duration?": _HEAD["duration"],
            "text": STRING,
            "languages": _LANGUAGES,
            "usage": reference("TokenUsage"),
            "logprobs?": _LOGPROBS,
        },
        description="The last event, unless there is an error.",
    ),
    "Error": record({"error": record({"message": STRING, "type": STRING, "param": NULLABLE, "code": NULLABLE})}),
    "Model": record(
        {
            "id": STRING,
            "object": constant("model"),
            "created": COUNT | {"description": "Unix time."},
            "owned_by": STRING,
            "description?": STRING | {"description": "A notice about the model, if there is one."},
            "languages?": array(words(*LANGUAGES)),
            "size": COUNT | {"description": "Bytes on disk."},
            "licence": NULLABLE,
            "source": STRING | {"description": "The hub's repository, or the place it was found in."},
            "loaded": BOOLEAN | {"description": "Whether it is in memory."},
            "alias_of?": STRING | {"description": "The model that this is another name of."},
        },
        is_open=True,
    ),
    "PullEvent": {
        "description": "The data of one event of a pull.",
        "oneOf": [
            record(
                {
                    "status": words("pulling", "success"),
                    "model": STRING,
                    "completed": COUNT,
                    "total": COUNT | {"description": "Bytes."},
                    "object?": reference("Model"),
                }
            ),
            reference("Error"),
        ],
    },
    "Unloaded": record({"id": STRING, "object": constant("model"), "deleted": BOOLEAN, "unloaded": BOOLEAN}),
    "LoadedModels": record({"models": array(_LOADED_MODEL)}),
    "ModelList": record({"object": constant("list"), "data": array("Model")}),
    "Health": record({"status": STRING}, is_open=True),
}

JSON_BODIES = {"json": "Transcription", "verbose_json": "VerboseTranscription"}


def transcript_content() -> Schema:
    """Media type → schema of every response to a transcription or translation."""
    content: Schema = {"application/json": {"schema": {"oneOf": [reference(name) for name in JSON_BODIES.values()]}}}
    for name, media_type in MEDIA_TYPES.items():
        if name not in JSON_BODIES:
            content[media_type.partition(";")[0]] = {"schema": STRING}
    return content | {"text/event-stream": {"x-event-schema": reference("Event")}}
