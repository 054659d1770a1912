"""A live session's configuration: OpenAI's nested form, the older flat one, how updates are merged, what they mean.

Unsupported features (noise reduction, the delay, an idle timeout) are silently accepted, because clients give up on an
error. An invalid value is an error, and the update changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidValue
from service.http.form.fields import DETECTED
from service.http.form.table import CHUNKING, KEYWORDS, LANGUAGE, is_unset, shown
from service.http.realtime.audio import ALAW, DEFAULT, G711_RATE, PCM, ULAW, Format
from service.http.realtime.names import LOGPROBS, SILENCE_MS
from service.transcription.chunking import Chunking
from service.transcription.types import Options

Json = dict[str, Any]

# Stands in for a model of turns: the silence that ends one.
EAGERNESS_MS = {"low": 2000, "medium": 1000, "auto": 1000, "high": 500}
SELF_COMMITTED = ("gpt-live-transcribe", "gpt-realtime-whisper")  # clients of these commit unless they ask for VAD
RATES = (8_000, 48_000)  # of PCM; OpenAI accepts 24,000 only
FLAT_FORMATS = {"pcm16": PCM, "g711_ulaw": ULAW, "g711_alaw": ALAW}
FLAT = {  # the beta's names → those of audio.input
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
INPUT = "session.audio.input"
MAX_INCLUDED = 16
_VAD = {part.name: part for part in CHUNKING.parts}


def nested(session: Mapping[str, Any]) -> Json:
    """An update in either form → its `include` and its parts of audio.input. Raises InvalidValue."""
    found = {name: session[flat] for flat, name in FLAT.items() if flat in session}
    audio = _object(session.get("audio"), "session.audio")
    found |= {name: value for name, value in _object(audio.get("input"), INPUT).items() if name in FLAT.values()}
    if "include" in session:
        found["include"] = session["include"]
    return found


def merged(old: Mapping[str, Any], update: Mapping[str, Any]) -> Json:
    """`old` updated: objects are merged, null clears a value. An object of another `type` replaces the old one."""
    new = dict(old)
    for name, value in update.items():
        before = new.get(name)
        if isinstance(value, dict) and isinstance(before, dict) and value.get("type") in (None, before.get("type")):
            new[name] = merged(before, value)
        else:
            new[name] = value
    return new


@dataclass(frozen=True)
class Configuration:
    """A session's settings. `model` is the name that the client gave."""

    format: Format = DEFAULT
    model: str = ""
    language: str | None = None
    languages: tuple[str, ...] = ()
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    delay: str | None = None
    noise_reduction: Mapping[str, Any] | None = None
    detects_turns: bool | None = None  # None: the model decides
    turn_detection: Mapping[str, Any] | None = None
    include: tuple[str, ...] = ()

    def updated(self, session: object) -> "Configuration":
        """Apply an update's `session`, in either form. Raises InvalidValue."""
        parts = merged(self._parts(), nested(_object(session, "session")))
        spoken = _object(parts.get("transcription"), f"{INPUT}.transcription")
        turns = parts.get("turn_detection")
        return Configuration(
            format=_format(parts.get("format")),
            model=_text(spoken, "model") or "",
            language=_language(_text(spoken, "language"), "language"),
            languages=tuple(
                code for text in _texts(spoken, "languages") if (code := _language(text, "languages")) is not None
            ),
            prompt=_text(spoken, "prompt"),
            keywords=_texts(spoken, "keywords", most=KEYWORDS.most),
            delay=_text(spoken, "delay"),
            noise_reduction=_noise_reduction(parts.get("noise_reduction")),
            detects_turns=turns is not None if "turn_detection" in parts else None,
            turn_detection=_turn_detection(turns) if turns is not None else None,
            include=_texts(parts, "include", "session", most=MAX_INCLUDED),
        )

    def _parts(self) -> Json:
        """The values set so far, as nested() returns them."""
        parts: Json = {"format": self._format(), "transcription": self._transcription(), "include": list(self.include)}
        if self.noise_reduction is not None:
            parts["noise_reduction"] = dict(self.noise_reduction)
        if self.detects_turns is not None:
            parts["turn_detection"] = dict(self.turn_detection) if self.turn_detection is not None else None
        return parts

    def _format(self) -> Json:
        return {"type": self.format.type, "rate": self.format.rate}

    def _transcription(self) -> Json:
        values = {
            "model": self.model,
            "language": self.language,
            "languages": list(self.languages),
            "prompt": self.prompt,
            "keywords": list(self.keywords),
            "delay": self.delay,
        }
        return {name: value for name, value in values.items() if value}

    def _turns(self) -> Json | None:
        """The turn detection in force."""
        if self.detects_turns is None:
            commits = self.model.strip().lower().rpartition("/")[2] in SELF_COMMITTED
            return None if commits else _turn_detection({})
        return dict(self.turn_detection) if self.turn_detection is not None else None

    @property
    def cutting(self) -> Chunking | None:
        """How silence ends an utterance; None if only a commit does."""
        turns = self._turns()
        if turns is None:
            return None
        if turns["type"] == "semantic_vad":
            return Chunking(silence_duration_ms=EAGERNESS_MS[turns["eagerness"]])
        return Chunking(**{name: turns[name] for name in _VAD if name != "type"})

    @property
    def options(self) -> Options:
        """The options of transcriptions."""
        return Options(
            language=self.language,
            languages=self.languages,
            prompt=self.prompt,
            keywords=self.keywords,
            logprobs=LOGPROBS in self.include,
        )

    def shown(self, default_model: str) -> Json:
        """OpenAI's session object, without id and time. `default_model`: shown if the client named none."""
        heard = {
            "format": self._format(),
            "transcription": {"model": default_model} | self._transcription(),
            "noise_reduction": dict(self.noise_reduction) if self.noise_reduction is not None else None,
            "turn_detection": self._turns(),
        }
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "include": list(self.include),
            "audio": {"input": heard},
        }

    def shown_flat(self, default_model: str) -> Json:
        """The beta's session object."""
        heard = self.shown(default_model)["audio"]["input"]
        names = {kind: flat for flat, kind in FLAT_FORMATS.items()}
        return {
            "object": "realtime.transcription_session",
            "modalities": ["audio", "text"],
            "include": list(self.include),
            **{flat: heard[name] for flat, name in FLAT.items()},
            "input_audio_format": names[self.format.type],
        }


def _object(value: object, param: str) -> Json:
    """An object, or {} for null. Raises InvalidValue."""
    if value is not None and not isinstance(value, dict):
        raise InvalidValue(f"{param} must be an object.", param=param)
    return value or {}


def _text(values: Mapping[str, Any], name: str, within: str = f"{INPUT}.transcription") -> str | None:
    value, param = values.get(name), f"{within}.{name}"
    if value is not None and not isinstance(value, str):
        raise InvalidValue(f"{param} must be text.", param=param)
    return None if value is None or is_unset(value) else value


def _texts(
    values: Mapping[str, Any], name: str, within: str = f"{INPUT}.transcription", *, most: int = 0
) -> tuple[str, ...]:
    value, param = values.get(name), f"{within}.{name}"
    if isinstance(value, str):
        value = [value]
    if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise InvalidValue(f"{param} must be a list of texts.", param=param)
    found = tuple(item for item in value or () if not is_unset(item))
    if most and len(found) > most:
        raise InvalidValue(f"{param} may have {most} entries at most.", param=param)
    return found


def _language(text: str | None, name: str) -> str | None:
    if text is None or text.strip().lower() == DETECTED:
        return None
    code: str = LANGUAGE.read(text, f"{INPUT}.transcription.{name}")
    return code


def _format(value: object) -> Format:
    param = f"{INPUT}.format"
    values = {"type": value} if isinstance(value, str) else _object(value, param)
    kind = _text(values, "type", param) or PCM
    kind = FLAT_FORMATS.get(kind, kind)
    if kind in (ULAW, ALAW):
        return Format(kind, G711_RATE)
    if kind != PCM:
        raise InvalidValue(f"{param} is '{shown(kind)}'; it must be one of {PCM}, {ULAW}, {ALAW}.", param=param)
    rate = values.get("rate")
    rate = DEFAULT.rate if rate is None else rate
    if isinstance(rate, bool) or not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise InvalidValue(f"{param}.rate must be a whole number from {RATES[0]} to {RATES[1]}.", param=f"{param}.rate")
    return Format(PCM, rate)


def _noise_reduction(value: object) -> Json | None:
    """The parts that are shown again. They have no effect."""
    if not isinstance(value, dict):
        return None
    kind, strength = value.get("type"), value.get("strength")
    found: Json = {"type": shown(kind)} if isinstance(kind, str) else {}
    return found | ({"strength": strength} if isinstance(strength, int | float) else {})


def _turn_detection(value: object) -> Json:
    param = f"{INPUT}.turn_detection"
    values = _object(value, param)
    kind = _text(values, "type", param) or "server_vad"
    if kind == "semantic_vad":
        eagerness = _text(values, "eagerness", param) or "auto"
        if eagerness not in EAGERNESS_MS:
            raise InvalidValue(
                f"{param}.eagerness is '{shown(eagerness)}'; it must be one of {', '.join(EAGERNESS_MS)}.",
                param=f"{param}.eagerness",
            )
        return {"type": kind, "eagerness": eagerness}
    if kind != "server_vad":
        raise InvalidValue(
            f"{param}.type is '{shown(kind)}'; it must be server_vad or semantic_vad.", param=f"{param}.type"
        )
    defaults = {"threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": SILENCE_MS}
    sent = {
        name: part.read(str(values[name]), f"{param}.{name}")
        for name, part in _VAD.items()
        if name in defaults and values.get(name) is not None
    }
    return {"type": kind, **defaults, **sent}
