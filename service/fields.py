"""The form fields of /v1/audio/transcriptions: each honoured, or refused by name. Knows no HTTP."""

import math
from collections.abc import Callable, Sequence

from service.errors import InvalidValue, ModelNotFound, UnknownField, UnsupportedValue
from service.formats import FORMATS, GRANULARITIES, STREAMED_FORMATS
from service.languages import language_code
from service.transcriber import TEMPERATURES, Options

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
LISTS = {
    "timestamp_granularities",
    "include",
    "keywords",
    "languages",
    "known_speaker_names",
    "known_speaker_references",
}
OBJECTS = {"chunking_strategy"}  # name[key] in a form
NOT_GIVEN = {  # fields of the API for what this server does not do
    "include": "Token log-probabilities are not given by this server.",
    "chunking_strategy": "Audio is cut by Whisper's own windows here; another strategy cannot be chosen.",
    "languages": "Candidate languages are not supported by Whisper models; use language.",
    "known_speaker_names": "Telling speakers apart is not supported by Whisper models.",
    "known_speaker_references": "Telling speakers apart is not supported by Whisper models.",
}


class TranscriptionFields:
    """Call it with each field as it arrives, then `finish()`. Empty values count as unset: some clients send those."""

    def __init__(self, is_served: Callable[[str], bool], served: Sequence[str]) -> None:
        """`is_served` knows every spelling of a name the model answers to; `served` are those to tell a client."""
        self.is_served, self.served = is_served, served
        self.language: str | None = None
        self.prompt: str | None = None
        self.response_format = "json"
        self.temperature = 0.0
        self.granularities: dict[str, str] = {}  # each with the field's name as it was sent
        self.keywords: list[str] = []
        self.stream = False
        self._seen: set[str] = set()
        self._setters: dict[str, Callable[[str, str], None]] = {
            "model": self._model,
            "language": self._language,
            "prompt": self._prompt,
            "response_format": self._response_format,
            "temperature": self._temperature,
            "timestamp_granularities": self._granularity,
            "keywords": self._keyword,
            "stream": self._stream,
        }

    def __call__(self, name: str, text: str) -> None:
        """Take one field. Raises a RequestError whose param is the field's name as it was sent."""
        base, _, key = name.partition("[")
        known = base in self._setters or base in NOT_GIVEN
        if not known or (base != name and base not in (LISTS if key == "]" else OBJECTS)):
            raise UnknownField(name)
        if base not in LISTS and name in self._seen:
            raise InvalidValue(f"The form field '{name}' is there twice.", param=name)
        self._seen.add(name)
        if not text.strip():
            return
        if base in NOT_GIVEN:
            raise UnsupportedValue(NOT_GIVEN[base], param=name)
        self._setters[base](name, text)

    def finish(self) -> Options:
        """What remains to be said once all fields are known: which of them contradict each other."""
        if self.stream and self.response_format not in STREAMED_FORMATS:
            raise UnsupportedValue(
                f"A stream is of text; with stream=true response_format must be {' or '.join(STREAMED_FORMATS)}.",
                param="response_format",
            )
        if "word" in self.granularities and self.response_format != "verbose_json":
            raise UnsupportedValue(
                "Word timestamps are given in verbose_json only; send that as response_format.",
                param=self.granularities["word"],
            )
        return Options(
            language=self.language,
            prompt=self.prompt,
            temperature=(self.temperature,) if self.temperature else TEMPERATURES,
            word_timestamps="word" in self.granularities,
            keywords=tuple(self.keywords),
        )

    def _model(self, name: str, text: str) -> None:
        if not self.is_served(text.strip()):
            raise ModelNotFound(text, self.served)

    def _language(self, name: str, text: str) -> None:
        self.language = language_code(text)
        if self.language is None:
            raise InvalidValue(f"'{text}' is not a language; send its ISO-639-1 code, such as en.", param=name)

    def _prompt(self, name: str, text: str) -> None:
        self.prompt = text

    def _response_format(self, name: str, text: str) -> None:
        if text not in FORMATS:
            raise UnsupportedValue(
                f"response_format '{text}' is not offered here; choose one of {', '.join(FORMATS)}.",
                param=name,
            )
        self.response_format = text

    def _temperature(self, name: str, text: str) -> None:
        try:
            self.temperature = float(text)
        except ValueError:
            self.temperature = math.nan
        if not 0 <= self.temperature <= 1:
            raise InvalidValue(f"temperature is '{text}'; it must be a number from 0 to 1.", param=name)

    def _granularity(self, name: str, text: str) -> None:
        if text not in GRANULARITIES:
            raise InvalidValue(f"'{text}' is no granularity; send {' or '.join(GRANULARITIES)}.", param=name)
        self.granularities[text] = name

    def _keyword(self, name: str, text: str) -> None:
        self.keywords.append(text.strip())

    def _stream(self, name: str, text: str) -> None:
        value = BOOLEANS.get(text.strip().lower())
        if value is None:
            raise InvalidValue(f"stream is '{text}'; it must be true or false.", param=name)
        self.stream = value
