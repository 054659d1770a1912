"""A transcription as json, text, verbose_json, srt or vtt, as OpenAI's clients read them."""

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from service.languages import language_name
from service.transcription import Segment, Token, Transcription, Word

MEDIA_TYPES = {  # text/html is never among them: a transcript is someone else's words
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "text/plain; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
FORMATS = tuple(MEDIA_TYPES)
ARROW = re.compile("-{2,}>")
STREAMED_FORMATS = ("json", "text", "verbose_json")  # subtitles are files
GRANULARITIES = ("segment", "word")  # what verbose_json can time


def render(
    result: Transcription, response_format: str, granularities: Collection[str] = (), *, logprobs: bool = False
) -> str:
    """The response body in one of FORMATS; verbose_json times what `granularities` names, segments by default.

    `logprobs`: whether json is to have those of the tokens.
    """
    match response_format:
        case "json":
            body: dict[str, Any] = {"text": result.text, "usage": usage(result)}
            if logprobs:
                body["logprobs"] = logprob_objects(result.segments)
            return json.dumps(body, ensure_ascii=False)
        case "verbose_json":
            return json.dumps(verbose(result, granularities), ensure_ascii=False)
        case "text":
            return result.text + "\n"
        case "srt":
            return srt(result)
        case "vtt":
            return vtt(result)
    raise ValueError(f"no such format: {response_format}")


def usage(result: Transcription) -> dict[str, Any]:
    """What OpenAI bills by: whole seconds, begun ones counted."""
    return {"type": "duration", "seconds": math.ceil(result.duration)}


def verbose(result: Transcription, granularities: Collection[str] = ()) -> dict[str, Any]:
    """OpenAI's verbose_json with segments, words or both."""
    timed: dict[str, Any] = {}
    if "segment" in granularities or "word" not in granularities:
        timed["segments"] = [segment_object(segment) for segment in spoken(result.segments)]
    if "word" in granularities:
        timed["words"] = [word_object(word) for segment in result.segments for word in segment.words]
    return {**verbose_head(result), **timed, "usage": usage(result)}


def verbose_head(result: Transcription) -> dict[str, Any]:
    """What verbose_json says of the whole. A translation is in English."""
    return {
        "task": result.task,
        "language": language_name("en" if result.task == "translate" else result.language),
        "duration": round(result.duration, 3),
        "text": result.text,
    }


def segment_object(segment: Segment) -> dict[str, Any]:
    """A segment with OpenAI's keys, in OpenAI's order."""
    return {
        "id": segment.id,
        "seek": segment.seek,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def word_object(word: Word) -> dict[str, Any]:
    """A word with OpenAI's keys."""
    return {"word": word.word.strip(), "start": round(word.start, 3), "end": round(word.end, 3)}


def logprob_objects(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """The segments' tokens with OpenAI's keys. Their bytes joined are the text, with the space before it."""
    return [logprob_object(token) for segment in segments for token in segment.logprobs]


def logprob_object(token: Token) -> dict[str, Any]:
    """A token with OpenAI's keys."""
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


def timestamp(seconds: float, decimal_mark: str) -> str:
    """3661.5 → `01:01:01,500`. The rounding to milliseconds carries into seconds, minutes and hours."""
    milliseconds = max(0, math.floor(seconds * 1000 + 0.5))
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{decimal_mark}{milliseconds % 1000:03d}"


def cue_text(text: str) -> str:
    """Text that cannot end its cue or look like a timing line: one line, no arrow."""
    return ARROW.sub("->", " ".join(text.split()))


def spoken(segments: Sequence[Segment]) -> list[Segment]:
    """The segments with words. Whisper also makes some without, where it heard nothing."""
    return [segment for segment in segments if segment.text.strip()]


def cue_end(segment: Segment, result: Transcription) -> float:
    """Where a cue ends: not after the recording, as Whisper's own times may, unless it begins there. In seconds."""
    duration = round(result.duration, 3)
    return min(segment.end, duration) if segment.start < duration else segment.end


def srt(result: Transcription) -> str:
    """SubRip: numbered cues; empty when nothing was said."""
    cues = []
    for number, segment in enumerate(spoken(result.segments), start=1):
        start, end = timestamp(segment.start, ","), timestamp(cue_end(segment, result), ",")
        cues.append(f"{number}\n{start} --> {end}\n{cue_text(segment.text)}\n")
    return "\n".join(cues)


def vtt(result: Transcription) -> str:
    """WebVTT, with the characters escaped that would open a tag or an entity."""
    cues = ["WEBVTT\n"]
    for segment in spoken(result.segments):
        start, end = timestamp(segment.start, "."), timestamp(cue_end(segment, result), ".")
        text = cue_text(segment.text).replace("&", "&amp;").replace("<", "&lt;")
        cues.append(f"{start} --> {end}\n{text}\n")
    return "\n".join(cues)
