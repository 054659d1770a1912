"""A transcription as json, text, verbose_json, srt or vtt, in the form that OpenAI's clients expect."""

import json
import math
import re
import string
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from service.models.languages import language_name
from service.transcription.types import Segment, Token, Transcription

MEDIA_TYPES = {  # never text/html: a transcript is foreign text
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
AUDIO_TOKENS_PER_S = 10
INNER_PUNCTUATION = string.punctuation + "’"  # starts a word of openai/whisper without a space before it


def render(
    result: Transcription, response_format: str, granularities: Collection[str] = (), *, logprobs: bool = False
) -> str:
    """The response body in one of FORMATS; verbose_json contains the `granularities`, by default segments.

    `logprobs`: whether json and verbose_json include those of the tokens.
    """
    match response_format:
        case "json" | "verbose_json":
            body = {"text": result.text, "languages": language_objects(result), "usage": usage(result)}
            if response_format == "verbose_json":
                body = verbose(result, granularities)
            if logprobs:
                body["logprobs"] = logprob_objects(token for segment in result.segments for token in segment.logprobs)
            return json.dumps(body, ensure_ascii=False)
        case "text":
            return result.text + "\n"
        case "srt":
            return srt(result)
        case "vtt":
            return vtt(result)
    raise ValueError(f"unknown format: {response_format}")


def usage(result: Transcription) -> dict[str, Any]:
    """OpenAI's unit of billing: seconds, rounded up."""
    return {"type": "duration", "seconds": math.ceil(result.duration)}


def token_usage(result: Transcription) -> dict[str, Any]:
    """The usage in a stream's last event, which OpenAI's clients expect in tokens: one per started 100 ms of audio."""
    audio, text = math.ceil(result.duration * AUDIO_TOKENS_PER_S), sum(len(s.tokens) for s in result.segments)
    return {
        "type": "tokens",
        "input_tokens": audio,
        "input_token_details": {"audio_tokens": audio, "text_tokens": 0},
        "output_tokens": text,
        "total_tokens": audio + text,
    }


def language_objects(result: Transcription) -> list[dict[str, str]]:
    """The spoken language, as OpenAI's newest responses list it."""
    return [{"code": result.language}]


def verbose(result: Transcription, granularities: Collection[str] = ()) -> dict[str, Any]:
    """OpenAI's verbose_json with segments, words or both."""
    timed: dict[str, Any] = {}
    if "segment" in granularities or "word" not in granularities:
        timed["segments"] = [segment_object(segment) for segment in spoken(result.segments)]
    if "word" in granularities:
        timed["words"] = word_objects(result.segments)
    return {**verbose_head(result), "languages": language_objects(result), **timed, "usage": usage(result)}


def verbose_head(result: Transcription) -> dict[str, Any]:
    """verbose_json's fields about the whole. A translation is in English."""
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


def word_objects(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """The segments' words with OpenAI's keys, each as in the text.

    openai/whisper ends words before punctuation: "grown", "-up" and "10", ",000" are one word each here.
    """
    words: list[dict[str, Any]] = []
    for word in (word for segment in segments for word in segment.words if word.word.strip()):
        if words and word.word[0] in INNER_PUNCTUATION:
            words[-1]["word"] += word.word.strip()
            words[-1]["end"] = round(word.end, 3)
        else:
            words.append({"word": word.word.strip(), "start": round(word.start, 3), "end": round(word.end, 3)})
    return words


def logprob_objects(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Tokens with OpenAI's keys. A segment's bytes joined are the text, including the space before it."""
    return [{"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)} for token in tokens]


def timestamp(seconds: float, decimal_mark: str) -> str:
    """3661.5 → `01:01:01,500`. Rounding to milliseconds carries into seconds, minutes and hours."""
    milliseconds = max(0, math.floor(seconds * 1000 + 0.5))
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{decimal_mark}{milliseconds % 1000:03d}"


def cue_text(text: str) -> str:
    """Text that cannot end its cue or look like a timing line: one line, no arrow."""
    return ARROW.sub("->", " ".join(text.split()))


def spoken(segments: Sequence[Segment]) -> list[Segment]:
    """The segments with words. Whisper also makes empty ones where it heard nothing."""
    return [segment for segment in segments if segment.text.strip()]


def cue_end(segment: Segment, result: Transcription) -> float:
    """End of a cue in seconds: within the recording, unlike Whisper's own times, unless it starts after its end."""
    duration = round(result.duration, 3)
    return min(segment.end, duration) if segment.start < duration else segment.end


def srt(result: Transcription) -> str:
    """SubRip: numbered cues; empty without speech."""
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(_cues(result, ","), start=1))


def vtt(result: Transcription) -> str:
    """WebVTT, with the characters escaped that would start a tag or an entity."""
    cues = (cue.replace("&", "&amp;").replace("<", "&lt;") for cue in _cues(result, "."))
    return "\n".join(["WEBVTT\n", *cues])


def _cues(result: Transcription, decimal_mark: str) -> Iterator[str]:
    for segment in spoken(result.segments):
        start, end = timestamp(segment.start, decimal_mark), timestamp(cue_end(segment, result), decimal_mark)
        yield f"{start} --> {end}\n{cue_text(segment.text)}\n"
