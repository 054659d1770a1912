"""One request's form fields as they arrive: used, rejected as early as possible, or ignored with a warning.

Knows no HTTP.
"""

import json
import math
import re
from collections import ChainMap, Counter
from collections.abc import Callable, Sequence
from typing import Any

from service.errors import InvalidValue, MissingField, RequestError, UnknownField, UnsupportedValue
from service.http.form import table
from service.transcription.chunking import Chunking
from service.transcription.types import TEMPERATURES, Options

DETECTED = "auto"  # whisper.cpp's clients request language detection with this
NAME = re.compile(r"([^\[]*)(?:\[(.*)\])?", re.DOTALL)  # name, name[], name[0], name[part]
UNSAFE = re.compile(r"[^\w.\[\]-]", re.ASCII)  # in a header or a log line
MAX_WARNED = 8  # names of ignored fields that a warning lists
MAX_NAME = 40  # characters of each
MIN_STEP = 0.05  # of temperature: at most 21 tries of a window

_EXTRAS = {field.name: field for field in table.EXTRAS}


def accept(options: Options) -> None:
    """The check for a model that isn't known yet: accept everything."""


class Fields:
    """Call it with each field as it arrives, then `finish()`.

    Empty values count as unset, and so do `None` and `null`, which some clients send, and a language of `auto`.
    """

    def __init__(
        self,
        take_model: Callable[[str], object],
        *,
        task: str = "transcribe",
        check: Callable[[Options], None] = accept,
        refuses_unknown: bool = False,
        defaults: "Fields | None" = None,
    ) -> None:
        """`take_model` gets the requested model's name and raises a RequestError if there is no such model.

        `check` raises a RequestError for options that the model does not support. It is called after every field, so
        that a doomed request is read no further. `refuses_unknown`: whether fields that OpenAI's API doesn't have are
        errors. `defaults`: fields whose values apply where this has none.
        """
        self.take_model, self.task, self.check = take_model, task, check
        self.refuses_unknown = refuses_unknown
        self.table = {field.name: field for field in table.FIELDS}
        self.own: dict[str, Any] = {}  # a field's name → its value, or the list of them
        self.values: ChainMap[str, Any] = ChainMap(self.own, *(defaults.values.maps if defaults else ()))
        # A field's name → the name it was last sent under.
        self.sent_as: ChainMap[str, str] = ChainMap({}, *(defaults.sent_as.maps if defaults else ()))
        self.ignored: dict[str, None] = {}  # names, in order
        self.ignored_defaults = list(defaults.ignored) if defaults else []
        self._parts: dict[str, str] = {}  # of an object sent in parts: name → text
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str, text: str) -> None:
        """Take one field. Raises a RequestError whose param is the field's name as sent."""
        found = self._find(name)
        if found is not None:
            self._take(*found, name, text)
        elif self.refuses_unknown:
            raise UnknownField(table.shown(name))
        elif not self._take_extra(name, text):
            self.ignored[name] = None
        if table.RESPONSE_FORMAT.name in self.values:
            for rule in table.RULES:
                self._hold(rule)
        self.check(self.options())

    def knows(self, name: str) -> bool:
        """Whether a text field of this name has a meaning here."""
        return self._find(name) is not None or (name in _EXTRAS and not self.refuses_unknown)

    def finish(self) -> Options:
        """Check that the fields agree, once all are known. Raises a RequestError."""
        for rule in table.RULES:
            self._hold(rule)
        self.fold()
        options = self.options()
        self.check(options)
        return options

    def fold(self) -> None:
        """Combine an object that came in parts into one value. Raises a RequestError."""
        if self._parts:
            self.own[table.CHUNKING.name] = self._chunking_of(self._parts, f"{table.CHUNKING.name}[%s]")

    def options(self) -> Options:
        """The options that the fields so far request."""
        value = self._value
        keywords = [*value(table.KEYWORDS, ()), value(table.HOTWORDS, "")]
        is_translation = "translate" in (self.task, value(table.TASK)) or value(table.TRANSLATE)
        return Options(
            task="translate" if is_translation else "transcribe",
            language=value(table.LANGUAGE),
            languages=tuple(value(table.LANGUAGES_HEARD, ())),
            prompt=value(table.PROMPT) or value(table.INITIAL_PROMPT),
            temperature=temperatures(value(table.TEMPERATURE, 0.0), value(table.STEP)),
            word_timestamps="word" in self.granularities,
            keywords=tuple(word.strip() for word in keywords if word),
            logprobs="logprobs" in value(table.INCLUDE, ()),
            chunking=value(table.CHUNKING) or (Chunking() if value(table.VAD_FILTER) else None),
            uncut=value(table.VAD_FILTER) is False,
            beam_size=value(table.BEAM_SIZE, 0),
            without_timestamps=bool(value(table.UNTIMED) or value(table.UNTIMED_CPP)),
            seed=value(table.SEED, 0),
        )

    def _value(self, field: table.Field, default: Any = None) -> Any:
        return self.values.get(field.name, default)

    @property
    def response_format(self) -> str:
        """One of formats.FORMATS."""
        return str(self._value(table.RESPONSE_FORMAT, table.RESPONSE_FORMAT.default))

    @property
    def granularities(self) -> Sequence[str]:
        """What verbose_json times; segments by default."""
        timed = tuple(self._value(table.TIMED, ()))
        if not timed and self._value(table.WORDS) and self.response_format == "verbose_json":
            return ("segment", "word")
        return timed

    @property
    def stream(self) -> bool:
        """Whether the response is a stream."""
        return bool(self._value(table.STREAM))

    @property
    def warning(self) -> str:
        """The ignored fields, for a header; empty if there are none."""
        return _warning([*self.ignored_defaults, *self.ignored])

    @property
    def log_line(self) -> str:
        """The ignored fields for the log, without names from the query: they might be secrets."""
        named = _warning([*self.ignored])
        return (named or "ignored fields:") + (" (and in the query)" if self.ignored_defaults else "")

    def _find(self, name: str) -> tuple[table.Field, str, bool] | None:
        """The field with this name as sent, its part, and whether the name has brackets; None if there is none."""
        match = NAME.fullmatch(name)
        field = self.table.get(match[1]) if match else None
        if match is None or field is None or field.kind == "binary":
            return None
        part = match[2] or ""
        if match[2] is None or (field.is_list and (not part or (part.isascii() and part.isdigit()))):
            return field, "", match[2] is not None
        return (field, part, True) if part in {row.name for row in field.parts} else None

    def _take(self, field: table.Field, part: str, is_bracketed: bool, name: str, text: str) -> None:
        self._seen[name] += 1
        if not field.is_list and self._seen[name] > 1:
            raise InvalidValue(f"The form field '{table.shown(name)}' is given twice.", param=name)
        if table.is_unset(text) or (field.kind == "language" and text.strip().lower() == DETECTED):
            return
        if field.refusal:
            raise UnsupportedValue(field.refusal, param=name)
        self.sent_as[field.name] = name
        if field is table.CHUNKING:
            self._chunking(part, name, text)
        elif field.is_list:
            values = self.own.setdefault(field.name, [])
            is_bounded = bool(field.choices) or field.kind == "language"  # any word may be a term to expect
            for item in field.items(text, is_bracketed=is_bracketed):
                if item.strip() and not (is_bounded and table.is_unset(item)):
                    values.append(field.read(item.strip() if field.choices else item, name))
            if field.most and len(values) > field.most:
                raise InvalidValue(f"{field.name} has more than {field.most} values.", param=name)
        else:
            value = field.read(text, name)
            if field is table.MODEL:
                self.take_model(text.strip())
            self.own[field.name] = value

    def _take_extra(self, name: str, text: str) -> bool:
        """Take a field of another server's API; the last one counts. False if unknown or its value is unusable."""
        field = _EXTRAS.get(name)
        if field is None:
            return False
        if table.is_unset(text):
            return True
        try:
            value = field.read(text.strip(), name)
            if field is table.HOTWORDS:
                value = ", ".join(field.items(value, is_bracketed=True))
        except RequestError:
            return False
        if field is table.STEP and 0 < value < MIN_STEP:
            return False
        self.own[name] = value
        return True

    def _hold(self, rule: table.Rule) -> None:
        value = self.values.get(rule.field.name)
        applies = rule.value in (value or ()) if rule.field.is_list else value == rule.value
        if applies and self.response_format not in rule.formats:
            raise UnsupportedValue(rule.sentence, param=rule.blames or self.sent_as[rule.field.name])

    def _chunking(self, part: str, name: str, text: str) -> None:
        """One part of the object, the whole object in JSON, or `auto`."""
        if part:
            (row,) = (row for row in table.CHUNKING.parts if row.name == part)
            row.read(text, name)
            self._parts[part] = text
        elif text.strip().startswith("{"):
            self.own[table.CHUNKING.name] = self._chunking_of(self._parsed(text, name), name)
        else:
            table.CHUNKING.read(text.strip(), name)
            self.own[table.CHUNKING.name] = Chunking()
        if self._parts and table.CHUNKING.name in self.own:
            raise InvalidValue(
                f"{table.CHUNKING.name} is given both as a whole and in parts; send one of them.", param=name
            )

    def _parsed(self, text: str, name: str) -> dict[str, str]:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidValue(f"{table.CHUNKING.name} isn't JSON: '{table.shown(text)}'.", param=name) from None
        rows = {row.name: row for row in table.CHUNKING.parts}
        parsed = {key: value for key, value in parsed.items() if value is not None or key not in rows}
        for key, value in parsed.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in rows:
                raise InvalidValue(f"{table.CHUNKING.name} has no '{table.shown(key)}'.", param=name)
            if not (isinstance(value, str) if rows[key].kind == "string" else is_number):
                raise InvalidValue(f"{table.CHUNKING.name}: {key} must be a {rows[key].kind}.", param=name)
        return {key: value if isinstance(value, str) else repr(value) for key, value in parsed.items()}

    def _chunking_of(self, parts: dict[str, str], blame: str) -> Chunking:
        """`blame`: the field's name, with `%s` for the part's name if it came in parts."""
        values = {}
        for row in table.CHUNKING.parts:
            param = blame.replace("%s", row.name)
            if row.name in parts:
                values[row.name] = row.read(parts[row.name], param)
            elif row.required:
                raise MissingField(param)
        values.pop("type")
        return Chunking(**values)


def _warning(ignored: Sequence[str]) -> str:
    names = [UNSAFE.sub("?", name[:MAX_NAME]) or "(no name)" for name in ignored[:MAX_WARNED]]
    more = len(ignored) - len(names)
    return f"ignored fields: {', '.join(names)}{f' and {more} more' if more else ''}" if names else ""


def temperatures(first: float, step: float | None) -> tuple[float, ...]:
    """The temperatures to try: OpenAI's way without a step, Whisper's ladder from 0, or one temperature alone."""
    if step is None:
        return (first,) if first else TEMPERATURES
    n_steps = math.floor((1.0 - first) / step + 1e-6) if step else 0
    return tuple(round(first + step * n, 6) for n in range(n_steps + 1))
