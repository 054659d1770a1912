"""Live speech heard by a script: what settles, when passes are made, and that nothing is lost."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from service.audio.log_mel import Samples
from service.errors import ClientGone, DeadlineExceeded, InternalError, QueueFull, WispError
from service.transcription.types import Options
from service.transcription.utterance import Heard, Utterance, Words
from tests.support.live import FakeTokenizer, FakeTranscriber, T

Hears = Callable[[float, Options], Sequence[int] | WispError | None]


def second(n: float = 1.0) -> Samples:
    return np.zeros(int(16_000 * n), np.float32)


def word_a_second(seconds: float, options: Options) -> list[int]:
    """Word n is said in second n of the window."""
    n_settled = sum(token < T for token in options.settled or ())
    return [*([] if options.settled else [T]), *range(n_settled + 1, int(seconds) + 1)]


class Session:
    """One utterance, and what it says."""

    def __init__(self, hears: Hears = word_a_second, **options: Any) -> None:
        self.transcriber = FakeTranscriber(hears)
        self.words: list[Words] = []
        self.utterance = Utterance(
            cast(Any, self.transcriber), Options(**options), lambda _, words: self.words.append(words)
        )

    async def say(self, seconds: int) -> None:
        for _ in range(seconds):
            self.utterance.add(second())
            await self.utterance.idle()

    async def end(self) -> Heard:
        self.utterance.stop()
        heard = await self.utterance.result()
        assert heard.text == "".join(words.settled for words in self.words)
        return heard


def run(session: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(cast(Any, session()), 20))


def test_words_settle_while_one_speaks() -> None:
    async def session() -> None:
        live = Session(logprobs=True)
        await live.say(4)
        assert [(words.settled, words.rest) for words in live.words] == [
            ("", "w1"),
            ("w1", " w2"),
            (" w2", " w3"),
            (" w3", " w4"),
        ]
        assert [[token.logprob for token in words.logprobs] for words in live.words] == [[], [-0.01], [-0.02], [-0.03]]
        heard = await live.end()
        assert (heard.text, heard.seconds, heard.language) == ("w1 w2 w3 w4", 4.0, "en")
        assert [token.logprob for token in heard.logprobs] == [-0.01, -0.02, -0.03, -0.04]
        greedy = {options.temperature for _, options in live.transcriber.passes[:-1]}
        assert (greedy, live.transcriber.passes[-1][1].temperature) == ({(0.0,)}, Options().temperature)

    run(session)


def test_the_pass_at_a_pause_is_the_last_one_if_no_more_is_said() -> None:
    async def session() -> None:
        live = Session()
        await live.say(2)
        live.utterance.add(second(0.7))
        live.utterance.add(second(0.3), has_speech=False)
        live.utterance.pause()
        await live.utterance.idle()
        n = len(live.transcriber.passes)
        live.utterance.add(second(0.3), has_speech=False)
        live.utterance.pause()
        assert (await live.end()).text == "w1 w2 w3"
        assert len(live.transcriber.passes) == n

    run(session)


def test_speech_after_a_pause_is_heard() -> None:
    async def session() -> None:
        live = Session()
        await live.say(2)
        live.utterance.pause()
        await live.utterance.idle()
        live.utterance.add(second())
        assert (await live.end()).text == "w1 w2 w3"

    run(session)


def test_a_long_silence_at_the_end_is_heard_too() -> None:
    async def session() -> None:
        live = Session()
        live.utterance.add(second(5), has_speech=False)
        await live.utterance.idle()
        assert live.transcriber.passes == []
        assert (await live.end()).text == "w1 w2 w3 w4 w5"

    run(session)


@pytest.mark.parametrize("has_pairs", [False, True])
def test_hours_are_heard_in_windows(has_pairs: bool) -> None:
    """Each second has a word of its own, which is in the result once; the audio kept is bounded."""
    live: Session

    def hears(seconds: float, options: Options) -> list[int]:
        n_settled = sum(token < T for token in options.settled or ())
        found: list[int] = [] if options.settled else [T]
        for n in range(n_settled, int(seconds)):
            if has_pairs and n and n % 5 == 0:
                found += [T + 50 * n, T + 50 * n]
            found.append((live.utterance._n_before // 16_000 + n) % 50 + 1)
        return found

    async def session() -> None:
        await live.say(100)
        assert len(live.utterance._samples) <= 31 * 16_000
        heard = await live.end()
        assert heard.text == " ".join(f"w{n % 50 + 1}" for n in range(100))
        assert max(seconds for seconds, _ in live.transcriber.passes) <= (16 if has_pairs else 30)
        prompts = [options.prompt for _, options in live.transcriber.passes if options.prompt]
        assert prompts and heard.text.startswith(prompts[0])

    async def with_session() -> None:
        nonlocal live
        live = Session(hears)
        await session()

    run(with_session)


def test_a_burst_is_heard_window_by_window() -> None:
    async def session() -> None:
        live = Session(lambda seconds, options: [T, *range(1, int(seconds) + 1)])
        live.utterance.add(second(70))
        heard = await live.end()
        counted = [*range(1, 31), *range(1, 31), *range(1, 11)]
        assert heard.text == " ".join(f"w{n}" for n in counted)
        assert live.utterance.unheard_s == 0

    run(session)


def test_what_follows_a_segment_that_the_decoder_closes_is_heard() -> None:
    """It says the end of text after two seconds of any window, with a pair of timestamps."""

    def hears(seconds: float, options: Options) -> list[int]:
        said = [token for token in options.settled or () if token < T]
        start = live.utterance._n_before // 16_000
        found = [start + n + 1 for n in range(len(said), min(2, int(seconds)))]
        is_closed = len(options.settled or ()) > 1 and (options.settled or ())[-1] >= T
        end = [T + 100, T + 100] if seconds >= 2 and not is_closed else []
        return [*([] if options.settled else [T]), *found, *end]

    live: Session

    async def session() -> None:
        nonlocal live
        for pauses in (False, True):
            live = Session(hears)
            await live.say(7)
            if pauses:
                live.utterance.pause()
                await live.utterance.idle()
            assert (await live.end()).text == "w1 w2 w3 w4 w5 w6 w7"

    run(session)


def test_unsure_passes_settle_nothing() -> None:
    async def session() -> None:
        live = Session()
        live.transcriber.avg_logprob = -1.5
        await live.say(3)
        assert live.words == []
        assert (await live.end()).text == "w1 w2 w3"

    run(session)


def test_without_a_place_a_step_is_skipped_and_nothing_lost() -> None:
    refusals = [QueueFull(1), None, QueueFull(1), QueueFull(1), None]

    def hears(seconds: float, options: Options) -> Sequence[int] | WispError:
        refusal = refusals.pop(0) if refusals else None
        return refusal or word_a_second(seconds, options)

    async def session() -> None:
        live = Session(hears)
        await live.say(3)
        live.utterance.pause()
        await live.utterance.idle()
        assert (live.utterance.n_skipped, live.utterance.n_passes) == (2, 1)
        assert (await live.end()).text == "w1 w2 w3"

    run(session)


def test_a_busy_server_skips_steps_but_not_all() -> None:
    async def session() -> None:
        live = Session()
        live.transcriber.is_busy = True
        await live.say(4)
        live.utterance.pause()
        await live.utterance.idle()
        assert live.transcriber.passes == []
        await live.say(1)
        assert [seconds for seconds, _ in live.transcriber.passes] == [5]
        assert live.utterance.n_skipped == 4
        assert (await live.end()).text == "w1 w2 w3 w4 w5"

    run(session)


def test_a_slow_pass_skips_steps() -> None:
    async def session() -> None:
        live = Session()
        live.transcriber.held = True
        for _ in range(5):
            live.utterance.add(second())
            await asyncio.sleep(0)
        assert live.utterance.unheard_s == 5
        live.transcriber.held = False
        live.transcriber.release()
        await live.utterance.idle()
        assert live.utterance.unheard_s == 0
        assert [seconds for seconds, _ in live.transcriber.passes] == [1, 5]
        assert live.utterance.n_skipped == 3
        assert (await live.end()).text == "w1 w2 w3 w4 w5"

    run(session)


def test_silence_says_nothing() -> None:
    async def session() -> None:
        live = Session(lambda *_: None)
        await live.say(3)
        assert await live.end() == Heard("", "en", 3.0, ())
        assert live.words == []

    run(session)


def test_a_failed_step_is_skipped_and_a_failed_end_is_reported() -> None:
    async def session() -> None:
        errors: list[WispError] = [DeadlineExceeded(1)]
        live = Session(lambda *of: errors.pop() if errors else word_a_second(*of))
        await live.say(3)
        assert live.utterance.n_skipped == 1
        errors.append(InternalError())
        live.utterance.stop()
        with pytest.raises(InternalError):
            await live.utterance.result()
        live.utterance.add(second())
        assert live.utterance.seconds == 3, "no audio is kept for nobody"

    run(session)


def test_a_cancelled_utterance_ends_at_once() -> None:
    async def session() -> None:
        live = Session()
        live.transcriber.held = True
        live.utterance.add(second(2))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(live.utterance.result())
        await asyncio.sleep(0)
        live.utterance.cancel()
        live.utterance.cancel()
        with pytest.raises(ClientGone):
            await waiting
        live.utterance.add(second(2))
        assert live.words == []
        assert live.utterance.unheard_s == 0

    run(session)


def following(session: Session, hears: Hears, gap: float, **options: Any) -> Session:
    """A session's next utterance."""
    after = Session(hears)
    after.utterance.cancel()
    after.utterance = Utterance(
        cast(Any, after.transcriber),
        Options(**options),
        lambda _, words: after.words.append(words),
        session.utterance,
        int(gap * 16_000),
    )
    return after


@pytest.mark.parametrize("goes_on", [True, False])
def test_an_utterance_is_heard_after_the_one_that_it_continues(goes_on: bool) -> None:
    """The decoder may also take the first one for all; then the second is heard alone."""

    def on(seconds: float, options: Options) -> list[int]:
        said = [token for token in options.settled or () if token < T]
        if said[:2] == [1, 2]:
            return list(range(len(said) + 1, int(seconds) + 1)) if goes_on else []
        return [*([] if options.settled else [T]), *range(len(said) + 3, int(seconds) + 3)]

    async def session() -> None:
        first = Session()
        await first.say(2)
        await first.end()
        second = following(first, on, 0.0)
        await second.say(2)
        assert (await second.end()).text == "w3 w4"
        seconds, options = second.transcriber.passes[0]
        assert (seconds, options.settled) == (3.0, (T, 1, 2))
        assert second.transcriber.passes[-1][1].prompt == (None if goes_on else "w1 w2")

    run(session)


def test_words_that_are_said_are_not_heard_anew() -> None:
    """The decoder says two words after the utterance before, and then nothing more."""

    def hears(seconds: float, options: Options) -> list[int]:
        said = [token for token in options.settled or () if token < T]
        if said[:2] == [1, 2]:
            return [3, 4] if len(said) == 2 else []
        return [*([] if options.settled else [T]), 3, 4]

    async def session() -> None:
        first = Session()
        await first.say(2)
        await first.end()
        second = following(first, hears, 0.0)
        await second.say(4)
        assert (await second.end()).text == "w3"

    run(session)


@pytest.mark.parametrize("language", [None, "en"])
def test_a_language_that_is_to_be_detected_is_not_the_one_before(language: str | None) -> None:
    async def session() -> None:
        first = Session(language=language)
        FakeTokenizer.languages = {"en": 1, "de": 2}
        await first.say(2)
        await first.end()
        second = following(first, word_a_second, 0.0, language=language)
        await second.say(1)
        assert bool(second.transcriber.passes[0][1].settled) == (language is not None)
        await second.end()

    try:
        run(session)
    finally:
        FakeTokenizer.languages = {}


def test_a_long_or_failed_utterance_before_is_not_heard_again() -> None:
    async def session() -> None:
        long, failed = Session(), Session(lambda *_: InternalError())
        await long.say(14)
        await long.end()
        await failed.say(1)
        failed.utterance.stop()
        with pytest.raises(InternalError):
            await failed.utterance.result()
        for before, prompt in ((long, "w1 w2"), (failed, None)):
            second = following(before, word_a_second, 1.0)
            await second.say(2)
            assert (await second.end()).text == "w1 w2"
            assert [seconds for seconds, _ in second.transcriber.passes] == [1, 2, 2]
            assert (second.transcriber.passes[0][1].prompt or "").startswith(prompt or "")

    run(session)
