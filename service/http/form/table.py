"""The audio routes' form fields, as tables that parse them, reject them and describe them in /openapi.json.

Names, defaults and bounds are those of OpenAI's API description 2.3.0.
"""

import contextlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

from service.errors import InvalidValue, UnsupportedValue
from service.http.formats import FORMATS, GRANULARITIES, STREAMED_FORMATS
from service.models.languages import LANGUAGES, language_code
from service.transcription.chunking import Chunking

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
UNSET = ("", "none", "null", "undefined", '""', "''")  # how clients write a value that they don't have, in any case
SHOWN_CHARACTERS = 60  # of a value quoted in an error
MAX_KEYWORDS = 32
MAX_BEAMS = 16


def is_unset(text: str) -> bool:
    """Whether a field with this value counts as one that was not sent: empty, or a null of the client's language."""
    return text.strip().lower() in UNSET


def shown(text: str) -> str:
    """A client's text shortened for an error. JSON's \\u escapes can hold text that UTF-8 cannot; it is replaced."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


@dataclass(frozen=True)
class Field:
    """One row. `kind` is a type of JSON Schema, `binary` or `language`; `minimum` and `maximum` are for numbers."""

    name: str
    help: str
    kind: str = "string"
    choices: tuple[str, ...] = ()
    default: Any = None
    minimum: float = -math.inf
    maximum: float = math.inf
    is_list: bool = False  # repeated name[]=value; name[0], the bare name and a JSON array too
    most: int = 0  # of a list
    required: bool = False
    parts: tuple["Field", ...] = ()  # name[part]=value, or one JSON object
    refusal: str = ""  # a field of OpenAI's API that Wisp does not support: why

    @property
    def wire_name(self) -> str:
        """The name that OpenAI's clients send."""
        return f"{self.name}[]" if self.is_list else self.name

    def items(self, text: str, *, is_bracketed: bool) -> list[str]:
        """The texts of one field of a list: one value, a JSON or Python list, or several values separated by commas.

        In free text, a comma separates values under the bare name only: a name or term may contain one.
        """
        if text.lstrip().startswith("["):
            parsed = None
            for written in (text, text.replace("'", '"').replace("None", "null")):
                with contextlib.suppress(ValueError, RecursionError):
                    parsed = json.loads(written)
                    break
            if isinstance(parsed, list) and all(item is None or isinstance(item, str) for item in parsed):
                return [item for item in parsed if item is not None]
        if self.choices or self.kind == "language" or not is_bracketed:
            return text.split(",")
        return [text]

    def read(self, text: str, param: str) -> Any:
        """Parse one text. Raises InvalidValue or UnsupportedValue with this `param`."""
        word = text.strip()
        match self.kind:
            case "boolean":
                value: Any = BOOLEANS.get(word.lower())
                if value is None:
                    raise InvalidValue(f"{param} is '{shown(text)}'; it must be true or false.", param=param)
                return value
            case "number" | "integer":
                return self._number(word, param)
            case "language":
                code = language_code(word)
                if code is None:
                    raise InvalidValue(
                        f"'{shown(text)}' isn't a language; send its ISO-639-1 code, such as en.", param=param
                    )
                return code
        if self.choices and text not in self.choices:
            parts = (f"{self.name}[{part.name}]={'|'.join(part.choices)}" for part in self.parts if part.required)
            raise UnsupportedValue(
                f"{self.name} '{shown(text)}' is not supported; choose one of {', '.join((*self.choices, *parts))}.",
                param=param,
            )
        return text

    def _number(self, word: str, param: str) -> float | int:
        kind = "a whole number" if self.kind == "integer" else "a number"
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not self.minimum <= value <= self.maximum or (self.kind == "integer" and not value.is_integer()):
            raise InvalidValue(
                f"{param} is '{shown(word)}'; it must be {kind} from {self.minimum:g} to {self.maximum:g}.", param=param
            )
        return int(value) if self.kind == "integer" else value

    def schema(self) -> dict[str, Any]:
        """The field as JSON Schema: a list's field as the whole list."""
        value: dict[str, Any]
        if self.parts:
            value = {"type": "object", **object_schema(self.parts)}
            for part in self.parts:
                if not part.required:  # null is as good as absent
                    value["properties"][part.wire_name]["type"] = [part.kind, "null"]
            if self.choices:
                value = {"anyOf": [{"type": "string", "enum": list(self.choices)}, value]}
        elif self.kind == "binary":
            value = {"type": "string", "format": "binary"}
        else:
            value = {"type": "string" if self.kind == "language" else self.kind}
            if choices := self.choices or (tuple(LANGUAGES) if self.kind == "language" else ()):
                value["enum"] = list(choices)
            if math.isfinite(self.minimum):
                value |= {"minimum": self.minimum, "maximum": self.maximum}
        if self.is_list:
            value = {"type": "array", "items": value} | ({"maxItems": self.most} if self.most else {})
        if self.default is not None:
            value["default"] = self.default
        return value | {"description": self.help}


@dataclass(frozen=True)
class Rule:
    """If `field` is (or, as a list, contains) `value`, `response_format` must be one of `formats`."""

    field: Field
    value: Any
    formats: tuple[str, ...]
    sentence: str
    blames: str = ""  # the field that an error names, if it isn't `field`

    def schema(self) -> dict[str, Any]:
        """The rule as JSON Schema."""
        name = self.field.wire_name
        holds = {"contains": {"const": self.value}} if self.field.is_list else {"const": self.value}
        then: dict[str, Any] = {"properties": {"response_format": {"enum": list(self.formats)}}}
        if RESPONSE_FORMAT.default not in self.formats:
            then["required"] = ["response_format"]
        return {"anyOf": [{"not": {"properties": {name: holds}, "required": [name]}}, then]}


def object_schema(
    table: tuple[Field, ...], rules: tuple[Rule, ...] = (), *, allows_others: bool = False
) -> dict[str, Any]:
    """JSON Schema of an object with these fields; always rejected ones are left out."""
    schema: dict[str, Any] = {
        "properties": {field.wire_name: field.schema() for field in table if not field.refusal},
        "additionalProperties": allows_others,
    }
    if required := [field.wire_name for field in table if field.required]:
        schema["required"] = required
    if rules:
        schema["allOf"] = [rule.schema() for rule in rules]
    return schema


FILE = Field(
    "file",
    "The recording. Its format is detected from the content, not from the name or type.",
    kind="binary",
    required=True,
)
MODEL = Field("model", "A model's name, or an alias of the default model; optional.")
PROMPT = Field("prompt", "Text that precedes the audio, in its language; Whisper keeps the last 223 tokens.")
RESPONSE_FORMAT = Field("response_format", "Format of the response.", choices=FORMATS, default="json")
TEMPERATURE = Field(
    "temperature",
    "With 0, a window that decodes badly is retried at 0.2, 0.4, …, 1; any other value is used alone.",
    kind="number",
    default=0,
    minimum=0,
    maximum=1,
)
LANGUAGE = Field(
    "language",
    "The spoken language as its ISO-639-1 code; en-US, eng and English mean en. Unset or auto: detected.",
    kind="language",
)
LANGUAGES_HEARD = Field(
    "languages", "Candidates for language detection.", kind="language", is_list=True, most=len(LANGUAGES)
)
STREAM = Field("stream", "Server-sent events, one per segment as soon as it is ready.", kind="boolean", default=False)
INCLUDE = Field("include", "logprobs: the log-probability of each token.", choices=("logprobs",), is_list=True)
TIMED = Field(
    "timestamp_granularities",
    "What verbose_json times: segments (the default), words, or both.",
    choices=GRANULARITIES,
    is_list=True,
)
KEYWORDS = Field("keywords", "Names and terms to expect.", is_list=True, most=MAX_KEYWORDS)
CHUNKING = Field(
    "chunking_strategy",
    "Cut the audio at silence, found by voice-activity detection, and transcribe speech only. auto, or an object of "
    "type server_vad, as name[part] fields or one JSON object. Unset: Whisper's own windows.",
    choices=("auto",),
    parts=(
        Field("type", "The only type.", choices=("server_vad",), required=True),
        Field(
            "threshold",
            "Minimum probability of speech.",
            kind="number",
            default=Chunking.threshold,
            minimum=0,
            maximum=1,
        ),
        Field(
            "prefix_padding_ms",
            "Audio kept before speech, in milliseconds.",
            kind="integer",
            default=Chunking.prefix_padding_ms,
            minimum=0,
            maximum=10_000,
        ),
        Field(
            "silence_duration_ms",
            "Length of silence that ends a stretch of speech, in milliseconds.",
            kind="integer",
            default=Chunking.silence_duration_ms,
            minimum=0,
            maximum=10_000,
        ),
    ),
)
NO_SPEAKERS = "Whisper models cannot tell speakers apart."
SPEAKER_NAMES = Field("known_speaker_names", "Always rejected.", is_list=True, refusal=NO_SPEAKERS)
SPEAKER_REFERENCES = Field("known_speaker_references", "Always rejected.", is_list=True, refusal=NO_SPEAKERS)

FIELDS = (
    FILE,
    MODEL,
    LANGUAGE,
    PROMPT,
    RESPONSE_FORMAT,
    TEMPERATURE,
    TIMED,
    INCLUDE,
    STREAM,
    CHUNKING,
    KEYWORDS,
    LANGUAGES_HEARD,
    SPEAKER_NAMES,
    SPEAKER_REFERENCES,
)

# Fields of other servers' APIs that clients also send here. Unusable values are ignored with a warning.
HOTWORDS = Field("hotwords", "faster-whisper's name for keywords.")
VAD_FILTER = Field("vad_filter", "faster-whisper's: true is chunking_strategy auto, false no cutting.", kind="boolean")
BEAM_SIZE = Field("beam_size", "openai/whisper's: number of beams.", kind="integer", minimum=1, maximum=MAX_BEAMS)
UNTIMED = Field("without_timestamps", "openai/whisper's: decode without timestamp tokens.", kind="boolean")
UNTIMED_CPP = replace(UNTIMED, name="no_timestamps", help="whisper.cpp's name for without_timestamps.")
SEED = Field("seed", "vLLM's: seed for sampling above temperature 0.", kind="integer", minimum=0, maximum=2**53)
TASK = Field("task", "openai/whisper's: transcribe or translate.", choices=("transcribe", "translate"))
TRANSLATE = Field("translate", "whisper.cpp's: true means the task translate.", kind="boolean")
STEP = Field("temperature_inc", "whisper.cpp's: step of the fallback; 0: none.", kind="number", minimum=0, maximum=1)
INITIAL_PROMPT = Field("initial_prompt", "openai/whisper's name for prompt.")
WORDS = Field("word_timestamps", "openai/whisper's: timestamp_granularities segment and word.", kind="boolean")
EXTRAS = (HOTWORDS, VAD_FILTER, BEAM_SIZE, UNTIMED, UNTIMED_CPP, SEED, TASK, TRANSLATE, STEP, INITIAL_PROMPT, WORDS)
RULES = (
    Rule(
        STREAM,
        True,
        STREAMED_FORMATS,
        f"With stream=true, response_format must be one of {', '.join(STREAMED_FORMATS)}.",
        blames="response_format",
    ),
    Rule(TIMED, "word", ("verbose_json",), "Word timestamps need response_format verbose_json."),
    Rule(INCLUDE, "logprobs", ("json", "verbose_json"), "Log-probabilities need response_format json or verbose_json."),
)
