"""A live session's items: reports each utterance in OpenAI's events, from its first words to its transcript."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from service.errors import ClientGone, InternalError, WispError
from service.http.formats import logprob_objects
from service.http.realtime.events import new_id, server_event
from service.http.realtime.names import TRANSCRIPTION
from service.http.realtime.places import Observer
from service.transcription.listener import Border, Started, Stopped
from service.transcription.types import Token
from service.transcription.utterance import Heard, Utterance, Words

log = logging.getLogger("wisp")

MOST_AWAITED = 16  # committed items without a transcript, beyond which no more audio is read


@dataclass(eq=False)
class Item:
    """One utterance's item. `text` and `n_logprobs`: what its deltas contain so far."""

    utterance: Utterance
    has_border: bool  # whether speech_started was sent
    id: str = field(default_factory=lambda: new_id("item"))
    text: str = ""
    n_logprobs: int = 0


class Items:
    """One session's items. For the event loop's thread."""

    def __init__(self, send: Callable[[str], None], observer: Observer) -> None:
        self._send, self._observer = send, observer
        self._items: dict[Utterance, Item] = {}  # unfinished ones
        self._early: dict[Utterance, list[Words]] = {}  # of utterances whose start hasn't been reported
        self._results: dict[Item, asyncio.Task[None]] = {}
        self._previous: str | None = None  # the item committed last
        self.n_committed = 0
        self.has_hypotheses = False  # whether the client wants words that may still change

    def take(self, borders: list[Border], offset_s: float, *, has_vad: bool) -> None:
        """Send the events of utterances that begin and end.

        `offset_s`: start of the listener's time within the session. `has_vad`: whether voice-activity detection found
        the beginnings.
        """
        for border in borders:
            milliseconds = round((offset_s + border.at_s) * 1000)
            if isinstance(border, Started):
                self._started(border, milliseconds, has_vad=has_vad)
            else:
                self._stopped(border, milliseconds)

    def _started(self, border: Started, milliseconds: int, *, has_vad: bool) -> None:
        item = self._items[border.utterance] = Item(border.utterance, has_vad)
        if has_vad:
            self._send(server_event("input_audio_buffer.speech_started", audio_start_ms=milliseconds, item_id=item.id))
        for words in self._early.pop(border.utterance, ()):
            self.words(border.utterance, words)

    def _stopped(self, border: Stopped, milliseconds: int) -> None:
        item = self._items[border.utterance]
        if item.has_border:
            self._send(server_event("input_audio_buffer.speech_stopped", audio_end_ms=milliseconds, item_id=item.id))
        self._send(server_event("input_audio_buffer.committed", item_id=item.id, previous_item_id=self._previous))
        content = [{"type": "input_audio", "transcript": None}]
        described = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": content,
        }
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._send(server_event(kind, previous_item_id=self._previous, item=described))
        self._previous = item.id
        self.n_committed += 1
        self._results[item] = asyncio.create_task(self._end(item))

    def words(self, utterance: Utterance, words: Words) -> None:
        """Send what a pass has found."""
        item = self._items.get(utterance)
        if item is None:
            self._early.setdefault(utterance, []).append(words)
            return
        if words.settled:
            self._observer.words_settled(words.delay_s)
            self._delta(item, words.settled, words.logprobs)
        if self.has_hypotheses:
            self._send(server_event(f"{TRANSCRIPTION}.hypothesis", item_id=item.id, content_index=0, text=words.rest))

    def _delta(self, item: Item, text: str, logprobs: tuple[Token, ...]) -> None:
        if not item.text:
            text = text.lstrip()
        item.text += text
        item.n_logprobs += len(logprobs)
        known = {"logprobs": logprob_objects(logprobs)} if logprobs else {}
        if text or logprobs:
            self._send(server_event(f"{TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=text, **known))

    async def _end(self, item: Item) -> None:
        try:
            heard = await item.utterance.result()
        except ClientGone:
            self._ended(item, "cancelled")
        except WispError as error:
            self._fail(item, error)
        except Exception:
            log.exception("a live utterance failed")
            self._fail(item, InternalError())
        else:
            self._complete(item, heard)

    def _complete(self, item: Item, heard: Heard) -> None:
        transcript = heard.text.lstrip()
        if rest := transcript[len(item.text) :]:
            self._delta(item, rest, heard.logprobs[item.n_logprobs :])
        known = {"logprobs": logprob_objects(heard.logprobs)} if heard.logprobs else {}
        self._send(
            server_event(
                f"{TRANSCRIPTION}.completed",
                item_id=item.id,
                content_index=0,
                transcript=transcript,
                usage={"type": "duration", "seconds": round(heard.seconds, 3)},
                languages=[{"code": heard.language}],
                **known,
            )
        )
        self._ended(item, "done")

    def _fail(self, item: Item, error: WispError) -> None:
        log.warning("a live utterance ends with an error: %s", error)
        described = error.envelope()["error"]
        self._send(server_event(f"{TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=described))
        self._ended(item, "failed")

    def _ended(self, item: Item, outcome: str) -> None:
        self._items.pop(item.utterance, None)
        self._results.pop(item, None)
        self._observer.utterance_ended(outcome, item.utterance.n_skipped)

    def forget_uncommitted(self) -> None:
        """End the uncommitted item, whose audio has been cleared, without a transcript."""
        for item in [item for item in self._items.values() if item not in self._results]:
            item.utterance.cancel()
            self._ended(item, "cancelled")
        self._early.clear()

    @property
    def is_full(self) -> bool:
        """Whether too many committed items have no transcript yet."""
        return len(self._results) >= MOST_AWAITED

    async def completed(self) -> None:
        """Wait until every committed item has its transcript or its failure."""
        while self._results:
            await asyncio.wait(set(self._results.values()))

    def give_up(self, error: WispError) -> None:
        """Fail the committed items that have no transcript, and close."""
        for item, task in list(self._results.items()):
            task.cancel()
            self._fail(item, error)
        self.close()

    def close(self) -> None:
        """End all items and send nothing more. Idempotent."""
        for task in self._results.values():
            task.cancel()
        for item in list(self._items.values()):
            item.utterance.cancel()
            self._ended(item, "cancelled")
        self._early.clear()
