"""One request's form fields as they arrive: each honoured, refused by name as early as can be, or ignored with a word.

Knows no HTTP.
"""

import json
import math
import re
from collections import ChainMap, Counter
from collections.abc import Callable, Sequence
from typing import Any

from service.errors import InvalidValue, MissingField, RequestError, UnknownField, UnsupportedValue
from service.http.form.table import (
    BEAM_SIZE,
    CHUNKING,
    EXTRAS,
    FIELDS,
    HOTWORDS,
    INCLUDE,
    INITIAL_PROMPT,
    KEYWORDS,
    LANGUAGE,
    LANGUAGES_HEARD,
    MODEL,
    PROMPT,
    RESPONSE_FORMAT,
    RULES,
    SEED,
    STEP,
    STREAM,
    TASK,
    TEMPERATURE,
    TIMED,
    TRANSLATE,
    UNTIMED,
    UNTIMED_CPP,
    VAD_FILTER,
    WORDS,
    Field,
    Rule,
    shown,
)
from service.transcription.chunking import Chunking
from service.transcription.types import TEMPERATURES, Options

DETECTED = "auto"  # how whisper.cpp's clients ask for the language that is heard
NAME = re.compile(r"([^\[]*)(?:\[(.*)\])?", re.DOTALL)  # name, name[], name[0], name[part]
UNSAFE = re.compile(r"[^\w.\[\]-]", re.ASCII)  # in a header or a log line
MAX_WARNED = 8  # names of ignored fields that a warning lists
MAX_NAME = 40  # characters of each
MIN_STEP = 0.05  # of temperature: 21 tries of a window at most

_EXTRAS = {field.name: field for field in EXTRAS}


def accept(options: Options) -> None:
    """The check of a model that is not known yet: whatever it is asked for, it may be able to."""


class Fields:
    """Call it with each field as it arrives, then `finish()`. Empty values count as unset: some clients send those.

    So does a language of `auto`.
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
        """`take_model` is given the name of the model asked for, and raises a RequestError where there is none.

        `check` raises a RequestError for options that the model does not know; it is asked after every field, so that
        nothing more of a request is read that comes to nothing. `refuses_unknown`: whether a field that OpenAI's API
        doesn't have is an error. `defaults`: fields whose values hold where this has none.
        """
        self.take_model, self.task, self.check = take_model, task, check
        self.refuses_unknown = refuses_unknown
        self.table = {field.name: field for field in FIELDS}
        self.own: dict[str, Any] = {}  # a field's name → its value, or the list of them
        self.values: ChainMap[str, Any] = ChainMap(self.own, *(defaults.values.maps if defaults else ()))
        # A field's name → the name it was last sent by.
        self.sent_as: ChainMap[str, str] = ChainMap({}, *(defaults.sent_as.maps if defaults else ()))
        self.ignored: dict[str, None] = {}  # names, in order
        self.ignored_defaults = list(defaults.ignored) if defaults else []
        self._parts: dict[str, str] = {}  # of an object that is sent in parts: name → text
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str, text: str) -> None:
        """Take one field. Raises a RequestError whose param is the field's name as it was sent."""
        found = self._find(name)
        if found is not None:
            self._take(*found, name, text)
        elif self.refuses_unknown:
            raise UnknownField(shown(name))
        elif not self._take_extra(name, text):
            self.ignored[name] = None
        if RESPONSE_FORMAT.name in self.values:
            for rule in RULES:
                self._hold(rule)
        self.check(self.options())

    def knows(self, name: str) -> bool:
        """Whether a field of this name is text that means something here."""
        return self._find(name) is not None or (name in _EXTRAS and not self.refuses_unknown)

    def finish(self) -> Options:
        """What remains to be said once all fields are known. Raises a RequestError for fields that contradict."""
        for rule in RULES:
            self._hold(rule)
        self.fold()
        options = self.options()
        self.check(options)
        return options

    def fold(self) -> None:
        """Make one value of an object that came in parts. Raises a RequestError."""
        if self._parts:
            self.own[CHUNKING.name] = self._chunking_of(self._parts, f"{CHUNKING.name}[%s]")

    def options(self) -> Options:
        """What the fields so far ask of a model."""
        value = self.values.get
        keywords = [*value(KEYWORDS.name, ()), value(HOTWORDS.name, "")]
        is_translation = self.task == "translate" or value(TASK.name) == "translate" or value(TRANSLATE.name)
        return Options(
            task="translate" if is_translation else "transcribe",
            language=value(LANGUAGE.name),
            languages=tuple(value(LANGUAGES_HEARD.name, ())),
            prompt=value(PROMPT.name) or value(INITIAL_PROMPT.name),
            temperature=temperatures(value(TEMPERATURE.name, 0.0), value(STEP.name)),
            word_timestamps="word" in self.granularities,
            keywords=tuple(word.strip() for word in keywords if word),
            logprobs="logprobs" in value(INCLUDE.name, ()),
            chunking=value(CHUNKING.name) or (Chunking() if value(VAD_FILTER.name) else None),
            uncut=value(VAD_FILTER.name) is False,
            beam_size=value(BEAM_SIZE.name, 0),
            without_timestamps=bool(value(UNTIMED.name) or value(UNTIMED_CPP.name)),
            seed=value(SEED.name, 0),
        )

    @property
    def response_format(self) -> str:
        """One of formats.FORMATS."""
        return str(self.values.get(RESPONSE_FORMAT.name, RESPONSE_FORMAT.default))

    @property
    def granularities(self) -> Sequence[str]:
        """What verbose_json is to time; nothing said is segments."""
        timed = tuple(self.values.get(TIMED.name, ()))
        if not timed and self.values.get(WORDS.name) and self.response_format == "verbose_json":
            return ("segment", "word")
        return timed

    @property
    def stream(self) -> bool:
        """Whether the answer is to be a stream."""
        return bool(self.values.get(STREAM.name))

    @property
    def warning(self) -> str:
        """Which fields were ignored, for a header; empty where none was."""
        return _warning([*self.ignored_defaults, *self.ignored])

    @property
    def log_line(self) -> str:
        """The same for the log, without the names of an address: a secret may stand there as one."""
        named = _warning([*self.ignored])
        return (named or "ignored fields:") + (" (and in the address)" if self.ignored_defaults else "")

    def _find(self, name: str) -> tuple[Field, str, bool] | None:
        """The field of this name on the wire, which part of it, and whether it has brackets; None for no field."""
        match = NAME.fullmatch(name)
        field = self.table.get(match[1]) if match else None
        if match is None or field is None or field.kind == "binary":
            return None
        part = match[2] or ""
        if match[2] is None or (field.is_list and (not part or (part.isascii() and part.isdigit()))):
            return field, "", match[2] is not None
        return (field, part, True) if part in {row.name for row in field.parts} else None

    def _take(self, field: Field, part: str, is_bracketed: bool, name: str, text: str) -> None:
        self._seen[name] += 1
        if not field.is_list and self._seen[name] > 1:
            raise InvalidValue(f"The form field '{shown(name)}' is there twice.", param=name)
        if not text.strip() or (field is LANGUAGE and text.strip().lower() == DETECTED):
            return
        if field.refusal:
            raise UnsupportedValue(field.refusal, param=name)
        self.sent_as[field.name] = name
        if field is CHUNKING:
            self._chunking(part, name, text)
        elif field.is_list:
            values = self.own.setdefault(field.name, [])
            for item in field.items(text, is_bracketed=is_bracketed):
                if item.strip():
                    values.append(field.read(item.strip() if field.choices else item, name))
            if field.most and len(values) > field.most:
                raise InvalidValue(f"There are more than {field.most} values of {field.name}.", param=name)
        else:
            value = field.read(text, name)
            if field is MODEL:
                self.take_model(text.strip())
            self.own[field.name] = value

    def _take_extra(self, name: str, text: str) -> bool:
        """Take a field of another server's API, the last of a name; False for what is none or cannot be used."""
        field = _EXTRAS.get(name)
        if field is None:
            return False
        if not text.strip():
            return True
        try:
            value = field.read(text.strip(), name)
            if field is HOTWORDS:
                value = ", ".join(field.items(value, is_bracketed=True))
        except RequestError:
            return False
        if field is STEP and 0 < value < MIN_STEP:
            return False
        self.own[name] = value
        return True

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
            self.own[CHUNKING.name] = self._chunking_of(self._parsed(text, name), name)
        else:
            CHUNKING.read(text.strip(), name)
            self.own[CHUNKING.name] = Chunking()
        if self._parts and CHUNKING.name in self.own:
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


def _warning(ignored: Sequence[str]) -> str:
    names = [UNSAFE.sub("?", name[:MAX_NAME]) or "(no name)" for name in ignored[:MAX_WARNED]]
    more = len(ignored) - len(names)
    return f"ignored fields: {', '.join(names)}{f' and {more} more' if more else ''}" if names else ""


def temperatures(first: float, step: float | None) -> tuple[float, ...]:
    """What a window is tried at: without a step OpenAI's way, Whisper's ladder from 0, or one temperature alone."""
    if step is None:
        return (first,) if first else TEMPERATURES
    n_steps = math.floor((1.0 - first) / step + 1e-6) if step else 0
    return tuple(round(first + step * n, 6) for n in range(n_steps + 1))
