"""A transcription as server-sent events in OpenAI's form: deltas, then the whole text."""

import json
from collections.abc import Collection
from typing import Any

from service.errors import WispError
from service.http.formats import (
    language_objects,
    logprob_objects,
    segment_object,
    spoken,
    token_usage,
    verbose_head,
    word_objects,
)
from service.transcription.types import Segment, Transcription

MEDIA_TYPE = "text/event-stream"
COMMENT = b":\n\n"  # clients ignore it; it shows proxies that the stream is alive


def frame(data: dict[str, Any]) -> bytes:
    """A bare `data:` frame. In ASCII, because some clients end a line at U+2028 too."""
    return f"data: {json.dumps(data)}\n\n".encode()


class EventStream:
    """The frames of one stream; call `segment` with each in order, then `done` or `error`.

    With verbose_json each segment also has a `transcript.text.segment` event, and the last event has verbose_json's
    fields about the whole. OpenAI has segment events for diarized_json only, where a segment's id is a string.
    """

    def __init__(
        self, response_format: str = "json", granularities: Collection[str] = (), *, logprobs: bool = False
    ) -> None:
        self._is_verbose = response_format == "verbose_json"
        self._has_words = "word" in granularities
        self._logprobs = logprobs
        self._is_first = True

    def segment(self, segment: Segment) -> bytes:
        """The next segment's text. The deltas joined are the whole text; no frame for a segment without words."""
        if not spoken([segment]):
            return b""
        text = segment.text.lstrip() if self._is_first else segment.text
        self._is_first = False
        identity = f"seg_{segment.id}"
        event: dict[str, Any] = {"type": "transcript.text.delta", "delta": text, "segment_id": identity}
        if self._logprobs:
            event["logprobs"] = logprob_objects(segment.logprobs)
        frames = frame(event)
        if self._is_verbose:
            words = {"words": word_objects([segment])} if self._has_words else {}
            frames += frame({"type": "transcript.text.segment", **segment_object(segment), "id": identity, **words})
        return frames

    def done(self, result: Transcription) -> bytes:
        """The end: the whole text again."""
        head = verbose_head(result) if self._is_verbose else {"text": result.text}
        event = {
            "type": "transcript.text.done",
            **head,
            "languages": language_objects(result),
            "usage": token_usage(result),
        }
        if self._logprobs:
            event["logprobs"] = logprob_objects(token for segment in result.segments for token in segment.logprobs)
        return frame(event)

    @staticmethod
    def error(error: WispError) -> bytes:
        """The end, if something failed after the stream had started."""
        return frame(error.envelope())
