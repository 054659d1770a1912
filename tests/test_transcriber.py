"""The transcriber: words out of sound, and what happens when there is too much of it or the guest fails."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.audio import Audio, decode
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    UnreadableAudio,
    UnsupportedValue,
)
from service.transcriber import Options, Segment, Transcriber, Transcription
from tests import serving, synthetic
from tests.serving import engine_for, settings_for, tone, tone_audio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")


@pytest.fixture(scope="module")
def transcriber(folder: Path) -> Iterator[Transcriber]:
    with engine_for(settings_for(folder)) as engine:
        yield engine.load()


@pytest.fixture
def hostile(folder: Path) -> Iterator[Transcriber]:
    settings = settings_for(folder, workers=1, queue_length=1, deadline_floor_s=2.0, deadline_factor=0.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        yield engine.load()


def test_every_window_gives_its_segment(transcriber: Transcriber) -> None:
    heard: list[Segment] = []
    result = transcriber.transcribe(tone_audio(7.5), Options(), heard.append)
    assert result.text == " ".join([synthetic.SENTENCE] * 3)
    assert (result.language, result.duration) == ("en", 7.5)
    assert tuple(heard) == result.segments
    assert [s.id for s in result.segments] == [0, 1, 2]
    assert [(s.start, s.end) for s in result.segments] == [(0.0, 2.0), (3.0, 5.0), (6.0, 8.0)]
    assert [s.seek for s in result.segments] == [0, 300, 600]
    for segment in result.segments:
        assert segment.text == " " + synthetic.SENTENCE
        assert -0.1 < segment.avg_logprob <= 0 and segment.no_speech_prob < 0.1 and segment.compression_ratio > 0


def test_sound_in_blocks_is_sound(transcriber: Transcriber) -> None:
    samples = tone(3.0)
    audio = Audio(3.0, "PCM", lambda: iter(np.array_split(samples, 7)))
    assert transcriber.transcribe(audio, Options()).text == synthetic.SENTENCE


def test_jobs_run_at_once_and_each_gets_its_own_answer(transcriber: Transcriber) -> None:
    lengths = [1.0, 4.0, 7.0, 2.0, 5.0]
    futures = [transcriber.submit(tone_audio(s), Options(), None, threading.Event()) for s in lengths]
    counts = [len(future.result(timeout=60).segments) for future in futures]
    assert counts == [1, 2, 3, 1, 2]


def test_an_english_model_refuses_another_language(transcriber: Transcriber) -> None:
    with pytest.raises(UnsupportedValue, match="German") as raised:
        transcriber.check(Options(language="de"))
    assert raised.value.param == "language"
    transcriber.check(Options(language="en"))


def test_a_multilingual_model_tells_the_language_it_heard(tmp_path: Path) -> None:
    folder = synthetic.save_synthetic(tmp_path / "both", multilingual=True)
    with engine_for(settings_for(folder)) as engine:
        transcriber = engine.load()
        assert transcriber.transcribe(tone_audio(1.0), Options()).language == "de"
        asked = transcriber.transcribe(tone_audio(1.0), Options(language="en"))
        assert (asked.language, asked.text) == ("en", synthetic.SENTENCE)
        with pytest.raises(UnsupportedValue):
            transcriber.check(Options(language="fr"))


@pytest.mark.parametrize("prompt", [serving.TRAP, serving.EAT, serving.EXIT])
def test_a_guest_that_fails_is_an_internal_error_and_the_next_run_is_well(
    hostile: Transcriber, prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InternalError):
        hostile.transcribe(tone_audio(0.5), Options(prompt=prompt))
    if prompt == serving.TRAP:
        assert "window_that_traps" in caplog.text
    assert hostile.transcribe(tone_audio(0.5), Options()).text == "All is well."


def test_a_guest_without_end_is_stopped_at_its_deadline(hostile: Transcriber) -> None:
    with pytest.raises(DeadlineExceeded):
        hostile.transcribe(tone_audio(0.5), Options(prompt=serving.LOOP))
    assert hostile.transcribe(tone_audio(0.5), Options()).text == "All is well."


def test_the_deadline_grows_with_the_audio(folder: Path) -> None:
    settings = settings_for(folder, deadline_floor_s=1.0, deadline_factor=2.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine, pytest.raises(DeadlineExceeded, match=" 2 s "):
        engine.load().transcribe(tone_audio(0.5), Options(prompt=serving.LOOP))


def loop(transcriber: Transcriber) -> "tuple[Future[Transcription], threading.Event]":
    """A job that runs until it is cancelled."""
    cancelled = threading.Event()
    return transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP), None, cancelled), cancelled


def test_one_job_more_than_fits_is_refused_and_fits_once_another_has_left(folder: Path) -> None:
    settings = settings_for(folder, workers=1, queue_length=1, deadline_floor_s=60.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        transcriber = engine.load()
        running, stop = loop(transcriber)
        waiting, withdraw = loop(transcriber)
        with pytest.raises(QueueFull) as raised:
            loop(transcriber)
        assert raised.value.retry_after_s >= 1
        withdraw.set()
        assert waiting.cancel()
        following = transcriber.submit(tone_audio(0.5), Options(), None, threading.Event())
        stop.set()
        with pytest.raises(ClientGone):
            running.result(timeout=60)
        assert following.result(timeout=60).text == "All is well."


def test_closing_stops_what_runs_and_what_waits(folder: Path) -> None:
    settings = settings_for(folder, workers=1, deadline_floor_s=60.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        transcriber = engine.load()
        running, _ = loop(transcriber)
        waiting, _ = loop(transcriber)
        transcriber.close()
        with pytest.raises(ClientGone):
            running.result(timeout=60)
        assert waiting.cancelled() or isinstance(waiting.exception(), ClientGone)


def test_a_file_that_breaks_while_it_is_read_is_the_files_fault(transcriber: Transcriber) -> None:
    def blocks() -> Iterator[NDArray[np.float32]]:
        yield tone(1.0)
        raise UnreadableAudio("The file breaks off.")

    with pytest.raises(UnreadableAudio, match="breaks off"):
        transcriber.transcribe(Audio(2.0, "WAV", blocks), Options())


def test_a_fault_of_ours_is_logged_whole_and_told_as_an_internal_error(
    transcriber: Transcriber, caplog: pytest.LogCaptureFixture
) -> None:
    def blocks() -> Iterator[NDArray[np.float32]]:
        raise OSError("the disk is gone")

    with caplog.at_level(logging.ERROR), pytest.raises(InternalError) as raised:
        transcriber.transcribe(Audio(2.0, "WAV", blocks), Options())
    assert "the disk is gone" in caplog.text
    assert "disk" not in str(raised.value)


def test_jfk_is_understood(shared: Path) -> None:
    settings = settings_for(shared / "models" / "tiny_en")
    with engine_for(settings) as engine, (shared / "speech" / "jfk.wav").open("rb") as file:
        result = engine.load().transcribe(decode(file), Options())
    assert "ask not what your country can do for you" in result.text.lower().replace(",", "")
    assert result.duration == pytest.approx(11.0, abs=0.01)
    assert result.segments and result.segments[0].start < 1.0


def test_the_whole_graph_turns_pcm_into_text(transcriber: Transcriber) -> None:
    model = transcriber.model
    context = model.graphs[model.name].init_execution_context({})
    context.set_input(0, tone(1.0)[None])
    context.compute()
    assert context.get_output(0).tobytes().decode() == synthetic.SENTENCE
    context.close()
