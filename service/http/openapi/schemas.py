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


def record(properties: Schema, *, optional: tuple[str, ...] = (), description: str = "") -> Schema:
    """An object with these keys and no others."""
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
    return schema | ({"description": description} if description else {})


def reference(name: str) -> Schema:
    """A reference to one of COMPONENTS."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(name: str) -> Schema:
    """A list of one of COMPONENTS."""
    return {"type": "array", "items": reference(name)}


def _constant(value: str) -> Schema:
    return {"type": "string", "const": value}


_HEAD: Schema = {
    "task": {"type": "string", "enum": ["transcribe", "translate"]},
    "language": {"type": "string", "enum": sorted(set(LANGUAGES.values()))},
    "duration": SECONDS | {"description": "Of the recording, in seconds."},
    "text": STRING,
}
_SEGMENT: Schema = {
    "id": COUNT,
    "seek": COUNT | {"description": "Where the segment's window begins, in frames of 10 ms."},
    "start": SECONDS,
    "end": SECONDS,
    "text": STRING | {"description": "With the space before it."},
    "tokens": {"type": "array", "items": COUNT},
    "temperature": PROBABILITY,
    "avg_logprob": NUMBER,
    "compression_ratio": SECONDS,
    "no_speech_prob": PROBABILITY,
}

COMPONENTS: Schema = {
    "Transcription": record(
        {"text": STRING, "languages": array("Language"), "usage": reference("Usage"), "logprobs": array("Logprob")},
        optional=("logprobs",),
    ),
    "VerboseTranscription": record(
        {
            **_HEAD,
            "languages": array("Language"),
            "segments": array("Segment"),
            "words": array("Word"),
            "usage": reference("Usage"),
            "logprobs": array("Logprob"),
        },
        optional=("segments", "words", "logprobs"),
        description="Segments, words or both, as timestamp_granularities[] asks.",
    ),
    "Segment": record(_SEGMENT),
    "Word": record({"word": STRING, "start": SECONDS, "end": SECONDS}),
    "Usage": record({"type": _constant("duration"), "seconds": COUNT}, description="Seconds of audio, rounded up."),
    "TokenUsage": record(
        {
            "type": _constant("tokens"),
            "input_tokens": COUNT | {"description": "One per started 100 ms of audio."},
            "input_token_details": record({"audio_tokens": COUNT, "text_tokens": COUNT}),
            "output_tokens": COUNT | {"description": "Whisper's tokens, including timestamps."},
            "total_tokens": COUNT,
        }
    ),
    "Language": record({"code": {"type": "string", "enum": list(LANGUAGES)}}, description="A spoken language."),
    "Logprob": record(
        {
            "token": STRING,
            "logprob": {"type": "number", "maximum": 0},
            "bytes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
        },
        description="A token of the text. U+FFFD stands for part of a character; bytes are exact.",
    ),
    "Event": {
        "description": "The data of one server-sent event.",
        "oneOf": [reference("DeltaEvent"), reference("SegmentEvent"), reference("DoneEvent"), reference("Error")],
    },
    "DeltaEvent": record(
        {
            "type": _constant("transcript.text.delta"),
            "delta": STRING,
            "segment_id": STRING,
            "logprobs": array("Logprob"),
        },
        optional=("logprobs",),
    ),
    "SegmentEvent": record(
        {"type": _constant("transcript.text.segment"), **_SEGMENT, "id": STRING, "words": array("Word")},
        optional=("words",),
        description="With verbose_json.",
    ),
    "DoneEvent": record(
        {
            "type": _constant("transcript.text.done"),
            **_HEAD,
            "languages": array("Language"),
            "usage": reference("TokenUsage"),
            "logprobs": array("Logprob"),
        },
        optional=("task", "language", "duration", "logprobs"),
        description="The last event, unless there is an error.",
    ),
    "Error": record(
        {
            "error": record(
                {
                    "message": STRING,
                    "type": STRING,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "Model": {
        "type": "object",
        "properties": {
            "id": STRING,
            "object": _constant("model"),
            "created": COUNT | {"description": "Unix time."},
            "owned_by": STRING,
            "description": {"type": "string", "description": "A notice about the model, if there is one."},
            "languages": {"type": "array", "items": {"type": "string", "enum": list(LANGUAGES)}},
            "size": COUNT | {"description": "Bytes on disk."},
            "licence": {"type": ["string", "null"]},
            "source": {"type": "string", "description": "The hub's repository, or the place it was found in."},
            "loaded": {"type": "boolean", "description": "Whether it is in memory."},
            "alias_of": {"type": "string", "description": "The model that this is another name of."},
        },
        "required": ["id", "object", "created", "owned_by", "size", "licence", "source", "loaded"],
    },
    "PullEvent": {
        "description": "The data of one event of a pull.",
        "oneOf": [
            record(
                {
                    "status": {"type": "string", "enum": ["pulling", "success"]},
                    "model": STRING,
                    "completed": COUNT,
                    "total": COUNT | {"description": "Bytes."},
                    "object": reference("Model"),
                },
                optional=("object",),
            ),
            reference("Error"),
        ],
    },
    "Unloaded": record(
        {"id": STRING, "object": _constant("model"), "deleted": {"type": "boolean"}, "unloaded": {"type": "boolean"}}
    ),
    "LoadedModels": record(
        {
            "models": {
                "type": "array",
                "items": record(
                    {
                        "name": STRING,
                        "model": STRING,
                        "size": COUNT | {"description": "Bytes in memory."},
                        "size_vram": COUNT | {"description": "Bytes of them on the GPU."},
                        "details": record({"family": STRING, "target": {"type": "string", "enum": ["gpu", "cpu"]}}),
                        "in_use": COUNT | {"description": "Transcriptions."},
                        "expires_at": STRING,
                    }
                ),
            }
        }
    ),
    "ModelList": record({"object": _constant("list"), "data": array("Model")}),
    "Health": {"type": "object", "properties": {"status": STRING}, "required": ["status"]},
}

JSON_BODIES = {"json": "Transcription", "verbose_json": "VerboseTranscription"}


def transcript_content() -> Schema:
    """Media type → schema of every response to a transcription or translation."""
    content: Schema = {"application/json": {"schema": {"oneOf": [reference(name) for name in JSON_BODIES.values()]}}}
    for name, media_type in MEDIA_TYPES.items():
        if name not in JSON_BODIES:
            content[media_type.partition(";")[0]] = {"schema": STRING}
    return content | {"text/event-stream": {"x-event-schema": reference("Event")}}
