"""A stream of real speech and silence, in blocks of any size: where utterances begin and end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import soxr

from service.audio.log_mel import SAMPLE_RATE, Samples
from service.errors import ClientGone, NothingToCommit
from service.transcription.chunking import Chunking
from service.transcription.listener import LEAD_S, Border, Listener, Started, Stopped
from service.transcription.types import Options
from tests.support.live import FakeTranscriber, T

SAMPLE = Path(__file__).parents[3] / "assets" / "sample.wav"
VAD = Chunking(silence_duration_ms=500)


def speech() -> Samples:
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    return cast(Samples, soxr.resample(samples, rate, SAMPLE_RATE))


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def run(session: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(cast(Any, session()), 60))


def listener(cutting: Chunking | None = VAD) -> Listener:
    transcriber = FakeTranscriber(lambda seconds, options: [] if options.settled else [T, 1])
    return Listener(cast(Any, transcriber), Options(), cutting=cutting, on_words=lambda *_: None)


async def borders(stream: Samples, size: int, cutting: Chunking | None = VAD) -> list[Border]:
    live = listener(cutting)
    found: list[Border] = []
    for first in range(0, len(stream), size):
        found += await live.hear(stream[first : first + size])
    live.close()
    return found


def kinds(found: Sequence[Border]) -> list[str]:
    return [type(border).__name__ for border in found]


def test_utterances_are_cut_at_silence_whatever_the_blocks() -> None:
    stream = np.concatenate((silence(1), speech(), silence(2), speech(), silence(1)))

    async def session() -> None:
        by_size = [await borders(stream, size) for size in (160, 800, 16_000, len(stream))]
        for found in by_size:
            assert kinds(found) == ["Started", "Stopped"] * 2
        assert len({tuple(border.at_s for border in found) for found in by_size}) == 1
        first, end, second, last = (border.at_s for border in by_size[0])
        length = len(speech()) / SAMPLE_RATE
        assert 0.6 < first < 1.1
        assert length + 1 < end + 0.5 < length + 3
        assert end < second < length + 3.1
        assert last - second == pytest.approx(end - first, abs=0.1)
        lengths = [border.utterance.seconds for border in by_size[0]]
        expected = [end - first + LEAD_S, last - second + LEAD_S]
        assert lengths[::2] == lengths[1::2] == pytest.approx(expected, abs=1e-3)

    run(session)


def test_quiet_speech_is_heard_and_hum_is_not() -> None:
    hum = np.sin(np.arange(5 * SAMPLE_RATE) * (2 * np.pi * 50 / SAMPLE_RATE)).astype(np.float32) * np.float32(0.1)
    noise = np.random.default_rng(0).normal(0, 0.01, 5 * SAMPLE_RATE).astype(np.float32)

    async def session() -> None:
        stream = np.concatenate((silence(1), speech() * np.float32(0.003), silence(1)))
        assert kinds(await borders(stream, 480)) == ["Started", "Stopped"]
        assert await borders(hum, 480) == await borders(noise, 480) == []

    run(session)


def test_without_cutting_only_a_commit_ends_an_utterance() -> None:
    async def session() -> None:
        live = listener(None)
        (started,) = await live.hear(np.concatenate((silence(1), speech(), silence(2))))
        assert isinstance(started, Started) and started.at_s == 0
        assert live.buffered_s > 0
        (stopped,) = live.commit()
        length = len(speech()) / SAMPLE_RATE + 3
        assert isinstance(stopped, Stopped) and stopped.at_s == pytest.approx(length)
        assert stopped.utterance is started.utterance
        heard = await stopped.utterance.result()
        assert heard.text == "w1"
        assert heard.seconds == pytest.approx(length)
        assert live.buffered_s == 0
        (second,) = await live.hear(silence(1))
        assert second.at_s == pytest.approx(length)

    run(session)


@pytest.mark.parametrize("cutting", [None, VAD])
def test_a_commit_needs_a_tenth_of_a_second(cutting: Chunking | None) -> None:
    async def session() -> None:
        live = listener(cutting)
        with pytest.raises(NothingToCommit):
            live.commit()
        await live.hear(silence(0.09))
        with pytest.raises(NothingToCommit):
            live.commit()
        await live.hear(silence(0.02))
        found = live.commit()
        assert kinds(found)[-1] == "Stopped"
        assert found[-1].utterance.seconds == pytest.approx(0.11)
        assert (await found[-1].utterance.result()).seconds == pytest.approx(0.11)
        with pytest.raises(NothingToCommit):
            live.commit()

    run(session)


def test_a_commit_in_the_middle_of_speech_loses_none_of_it() -> None:
    async def session() -> None:
        live = listener()
        half = len(speech()) // 2
        first = await live.hear(speech()[:half])
        first += live.commit()
        second = await live.hear(np.concatenate((speech()[half:], silence(1))))
        assert kinds(first) == kinds(second) == ["Started", "Stopped"]
        assert second[0].at_s == pytest.approx(first[1].at_s, abs=0.4)
        assert first[1].at_s == pytest.approx(half / SAMPLE_RATE)

    run(session)


def test_what_is_cleared_is_gone() -> None:
    async def session() -> None:
        live = listener()
        (started,) = await live.hear(speech()[: len(speech()) // 2])
        live.clear()
        with pytest.raises(ClientGone):
            await started.utterance.result()
        with pytest.raises(NothingToCommit):
            live.commit()
        assert live.buffered_s == 0
        assert kinds(await live.hear(np.concatenate((silence(1), speech(), silence(1))))) == ["Started", "Stopped"]
        live.close()
        live.close()

    run(session)


def test_new_rules_hold_from_the_next_sample_on() -> None:
    async def session() -> None:
        live = listener()
        await live.hear(speech())
        live.cutting = None
        assert await live.hear(silence(3)) == []
        live.cutting = VAD
        assert kinds(await live.hear(np.concatenate((speech(), silence(1))))) == ["Stopped"]

    run(session)
