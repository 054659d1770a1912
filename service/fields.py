"""One request's form fields as they arrive: each honoured, or refused by name as early as can be. Knows no HTTP."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from service.chunking import Chunking
from service.errors import InvalidValue, MissingField, ModelNotFound, UnknownField, UnsupportedValue
from service.form_table import (
    CHUNKING,
    INCLUDE,
    KEYWORDS,
    LANGUAGE,
    LANGUAGES_HEARD,
    MODEL,
    PROMPT,
    RESPONSE_FORMAT,
    RULES,
    STREAM,
    TEMPERATURE,
    TIMED,
    TRANSCRIPTION,
    Field,
    Rule,
    shown,
)
from service.transcription import TEMPERATURES, Options

DETECTED = "auto"  # how whisper.cpp's clients ask for the language that is heard


def accept(options: Options) -> None:
    """The check of a model that is not known yet: whatever it is asked for, it may be able to."""


class Fields:
    """Call it with each field as it arrives, then `finish()`. Empty values count as unset: some clients send those.

    So does a language of `auto`.
    """

    def __init__(
        self,
        is_served: Callable[[str], bool],
        served: Sequence[str],
        *,
        table: tuple[Field, ...] = TRANSCRIPTION,
        task: str = "transcribe",
        check: Callable[[Options], None] = accept,
    ) -> None:
        """`is_served` knows every spelling of a name the model answers to; `served` are those to tell a client.

        `check` raises a RequestError for options that the model does not know; it is asked after every field, so that
        nothing more of a request is read that comes to nothing.
        """
        self.is_served, self.served, self.task, self.check = is_served, served, task, check
        self.table = {field.name: field for field in table}
        self.values: dict[str, Any] = {}  # a field's name → its value, or the list of them
        self.sent_as: dict[str, str] = {}  # a field's name → the name it was last sent by
        self._parts: dict[str, str] = {}  # of an object that is sent in parts: name → text
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str, text: str) -> None:
        """Take one field. Raises a RequestError whose param is the field's name as it was sent."""
        field, part = self._find(name)
        self._seen[field.name if field.is_list else name] += 1
        if not field.is_list and self._seen[name] > 1:
            raise InvalidValue(f"The form field '{shown(name)}' is there twice.", param=name)
        if field.most and self._seen[field.name] > field.most:
            raise InvalidValue(f"There are more than {field.most} values of {field.name}.", param=name)
        if not text.strip() or (field is LANGUAGE and text.strip().lower() == DETECTED):
            return
        if field.refusal:
            raise UnsupportedValue(field.refusal, param=name)
        self.sent_as[field.name] = name
        if field is CHUNKING:
            self._chunking(part, name, text)
        else:
            value = field.read(text, name)
            if field is MODEL and not self.is_served(text.strip()):
                raise ModelNotFound(shown(text), self.served)
            if field.is_list:
                self.values.setdefault(field.name, []).append(value)
            else:
                self.values[field.name] = value
        for rule in RULES:
            if RESPONSE_FORMAT.name in self.values:
                self._hold(rule)
        self.check(self.options())

    def finish(self) -> Options:
        """What remains to be said once all fields are known. Raises a RequestError for fields that contradict."""
        for rule in RULES:
            self._hold(rule)
        if self._parts:
            self.values[CHUNKING.name] = self._chunking_of(self._parts, f"{CHUNKING.name}[%s]")
        options = self.options()
        self.check(options)
        return options

    def options(self) -> Options:
        """What the fields so far ask of a model."""
        temperature = self.values.get(TEMPERATURE.name)
        return Options(
            task=self.task,
            language=self.values.get(LANGUAGE.name),
            languages=tuple(self.values.get(LANGUAGES_HEARD.name, ())),
            prompt=self.values.get(PROMPT.name),
            temperature=(temperature,) if temperature else TEMPERATURES,
            word_timestamps="word" in self.granularities,
            keywords=tuple(word.strip() for word in self.values.get(KEYWORDS.name, ())),
            logprobs="logprobs" in self.values.get(INCLUDE.name, ()),
            chunking=self.values.get(CHUNKING.name),
        )

    @property
    def response_format(self) -> str:
        """One of formats.FORMATS."""
        return str(self.values.get(RESPONSE_FORMAT.name, RESPONSE_FORMAT.default))

    @property
    def granularities(self) -> Sequence[str]:
        """What verbose_json is to time; nothing said is segments."""
        return tuple(self.values.get(TIMED.name, ()))

    @property
    def stream(self) -> bool:
        """Whether the answer is to be a stream."""
        return bool(self.values.get(STREAM.name))

    def _find(self, name: str) -> tuple[Field, str]:
        """The field of this name on the wire, and which part of it, if it is one. Raises UnknownField."""
        base, bracket, rest = name.partition("[")
        field = self.table.get(base)
        if field is None or field.kind == "binary":
            raise UnknownField(shown(name))
        if not bracket or (field.is_list and rest == "]"):
            return field, ""
        part = rest.removesuffix("]")
        if rest.endswith("]") and part in {row.name for row in field.parts}:
            return field, part
        raise UnknownField(shown(name))

    def _hold(self, rule: Rule) -> None:
        value = self.values.get(rule.field.name)
        applies = rule.value in (value or ()) if rule.field.is_list else value == rule.value
        if applies and self.response_format not in rule.formats:
            raise UnsupportedValue(rule.sentence, param=rule.blames or self.sent_as[rule.field.name])

    def _chunking(self, part: str, name: str, text: str) -> None:
        """One part of the object; or all of it, in JSON; or `auto`."""
        if part:
            (row,) = (row for row in CHUNKING.parts if row.name == part)
            row.read(text, name)
            self._parts[part] = text
        elif text.strip().startswith("{"):
            self.values[CHUNKING.name] = self._chunking_of(self._parsed(text, name), name)
        else:
            CHUNKING.read(text.strip(), name)
            self.values[CHUNKING.name] = Chunking()
        if self._parts and CHUNKING.name in self.values:
            raise InvalidValue(f"{CHUNKING.name} is there as a whole and in parts; send one of the two.", param=name)

    def _parsed(self, text: str, name: str) -> dict[str, str]:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidValue(f"{CHUNKING.name} is not JSON: '{shown(text)}'.", param=name) from None
        rows = {row.name: row for row in CHUNKING.parts}
        for key, value in parsed.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in rows:
                raise InvalidValue(f"{CHUNKING.name} has no '{shown(key)}'.", param=name)
            if not (isinstance(value, str) if rows[key].kind == "string" else is_number):
                raise InvalidValue(f"{CHUNKING.name}: {key} must be a {rows[key].kind}.", param=name)
        return {key: value if isinstance(value, str) else repr(value) for key, value in parsed.items()}

    def _chunking_of(self, parts: dict[str, str], blame: str) -> Chunking:
        """`blame`: the field's name, with `%s` for the part's where it came in parts."""
        values = {}
        for row in CHUNKING.parts:
            param = blame.replace("%s", row.name)
            if row.name in parts:
                values[row.name] = row.read(parts[row.name], param)
            elif row.required:
                raise MissingField(param)
        values.pop("type")
        return Chunking(**values)
