"""A transcription as json, text, verbose_json, srt, vtt or server-sent events, as OpenAI's clients read them."""

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from service.errors import WispError
from service.languages import language_name
from service.transcriber import Segment, Transcription, Word

MEDIA_TYPES = {  # text/html is never among them: a transcript is someone else's words
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "text/plain; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
FORMATS = tuple(MEDIA_TYPES)
ARROW = re.compile("-{2,}>")
STREAMED_FORMATS = ("json", "text")  # the events hold text only
GRANULARITIES = ("segment", "word")  # what verbose_json can time


def render(result: Transcription, response_format: str, granularities: Collection[str] = ()) -> str:
    """The response body in one of FORMATS; verbose_json times what `granularities` names, segments by default."""
    match response_format:
        case "json":
            return json.dumps({"text": result.text, "usage": usage(result)}, ensure_ascii=False)
        case "verbose_json":
            return json.dumps(verbose(result, granularities), ensure_ascii=False)
        case "text":
            return result.text + "\n"
        case "srt":
            return srt(result.segments)
        case "vtt":
            return vtt(result.segments)
    raise ValueError(f"no such format: {response_format}")


def usage(result: Transcription) -> dict[str, Any]:
    """What OpenAI bills by: whole seconds, begun ones counted."""
    return {"type": "duration", "seconds": math.ceil(result.duration)}


def verbose(result: Transcription, granularities: Collection[str] = ()) -> dict[str, Any]:
    """OpenAI's verbose_json with segments, words or both."""
    timed: dict[str, Any] = {}
    if "segment" in granularities or "word" not in granularities:
        timed["segments"] = [segment_object(segment) for segment in result.segments]
    if "word" in granularities:
        timed["words"] = [word_object(word) for segment in result.segments for word in segment.words]
    return {
        "task": "transcribe",
        "language": language_name(result.language),
        "duration": round(result.duration, 3),
        "text": result.text,
        **timed,
        "usage": usage(result),
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


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues; empty when nothing was said."""
    cues = []
    for number, segment in enumerate(spoken(segments), start=1):
        start, end = timestamp(segment.start, ","), timestamp(segment.end, ",")
        cues.append(f"{number}\n{start} --> {end}\n{cue_text(segment.text)}\n")
    return "\n".join(cues)


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT, with the characters escaped that would open a tag or an entity."""
    cues = ["WEBVTT\n"]
    for segment in spoken(segments):
        start, end = timestamp(segment.start, "."), timestamp(segment.end, ".")
        text = cue_text(segment.text).replace("&", "&amp;").replace("<", "&lt;")
        cues.append(f"{start} --> {end}\n{text}\n")
    return "\n".join(cues)


def server_sent_event(data: dict[str, Any]) -> bytes:
    """A bare `data:` frame. In ASCII, as some clients end a line at U+2028 too."""
    return f"data: {json.dumps(data)}\n\n".encode()


def delta_event(segment: Segment, first: bool) -> bytes:
    """The words of one more segment; all deltas joined are the whole text."""
    text = segment.text.lstrip() if first else segment.text
    return server_sent_event({"type": "transcript.text.delta", "delta": text})


def done_event(result: Transcription) -> bytes:
    """The end of a stream: the whole text once more."""
    return server_sent_event({"type": "transcript.text.done", "text": result.text, "usage": usage(result)})


def error_event(error: WispError) -> bytes:
    """A failure after the stream has begun."""
    return server_sent_event(error.envelope())
