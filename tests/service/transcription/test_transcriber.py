"""The transcriber: words from sound, and what happens if there are too many jobs or the guest fails."""

import gc
import json
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from service.audio.decode import SAMPLE_RATE, Audio, decode
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    UnreadableAudio,
    UnsupportedValue,
)
from service.guest.wasi_nn import WasiNnError
from service.models.target import Target
from service.transcription.reading import audio_of
from service.transcription.run import Run
from service.transcription.shared import default_workers
from service.transcription.transcriber import TEMPERATURES, Options, Segment, Transcriber
from tests.support import serving, synthetic
from tests.support.serving import engine_for, settings_for, tone, tone_audio


@pytest.fixture(scope="module")
def transcriber(folder: Path) -> Iterator[Transcriber]:
    with engine_for(settings_for(folder, workers=1)) as engine:
        yield engine.load()


def test_the_guest_gets_the_requested_options(transcriber: Transcriber) -> None:
    asked = transcriber.argument(Options(prompt="A letter.", keywords=("Wisp", "lavapipe")))["options"]
    assert (asked["initial_prompt"], asked["carry_initial_prompt"]) == ("Wisp, lavapipe. A letter.", True)
    asked = transcriber.argument(Options(beam_size=3, without_timestamps=True, seed=7))["options"]
    assert (asked["beam_size"], asked["without_timestamps"], asked["seed"]) == (3, True, 7)
    assert transcriber.argument(Options(beam_size=1))["options"]["beam_size"] is None
    plain = transcriber.argument(Options())["options"]
    assert (plain["initial_prompt"], plain["carry_initial_prompt"], plain["word_timestamps"]) == (None, False, False)
    assert plain["temperature"] == list(TEMPERATURES)


@pytest.mark.parametrize(("says", "setting", "told"), [(1, 0, None), (1, 4, 4), (5, 0, 5), (5, 1, None), (5, 2, 2)])
def test_beams_are_the_setting_s_else_the_model_s(tmp_path: Path, says: int, setting: int, told: int | None) -> None:
    folder = synthetic.save_synthetic(tmp_path / "synthetic")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"num_beams": says}))
    with engine_for(settings_for(folder, beam_size=setting)) as engine:
        transcriber = engine.load()
        assert transcriber.argument(Options())["options"]["beam_size"] == told
        found = transcriber.transcribe(tone_audio(1.0), Options(logprobs=True))
    assert found.text == synthetic.SENTENCE
    assert "".join(token.text for token in found.segments[0].logprobs).strip() == synthetic.SENTENCE


@pytest.mark.parametrize("says", [True, False])
def test_the_model_decides_whether_the_previous_text_prompts_a_window(tmp_path: Path, says: bool) -> None:
    folder = synthetic.save_synthetic(tmp_path / "synthetic")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"condition_on_prev_tokens": says}))
    with engine_for(settings_for(folder)) as engine:
        assert engine.load().argument(Options())["options"]["condition_on_previous_text"] is says


def test_a_gpu_computes_for_more_at_once_than_few_cores_do() -> None:
    assert default_workers(Target("cpu", ""), n_cores=1) == default_workers(Target("cpu", ""), n_cores=8) == 2
    assert default_workers(Target("cpu", ""), n_cores=64) == 16
    assert default_workers(Target("gpu", ""), n_cores=2) == 16
    assert default_workers(Target("gpu", "", is_software=True), n_cores=2) == 2


@pytest.fixture
def hostile(folder: Path) -> Iterator[Transcriber]:
    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=1, deadline_floor_s=2.0, deadline_factor=0.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        yield engine.load()


def test_every_window_gives_its_segment(transcriber: Transcriber) -> None:
    heard: list[Segment] = []
    result = transcriber.transcribe(tone_audio(7.5), Options(), heard.append)
    assert result.text == " ".join([synthetic.SENTENCE] * 3)
    assert (result.language, result.duration) == ("en", 7.5)
    assert tuple(heard) == result.segments
    assert [s.id for s in result.segments] == [0, 1, 2]
    assert [(s.start, s.end) for s in result.segments] == [(0.0, 2.0), (3.0, 5.0), (6.0, 7.5)], (
        "no later than the recording"
    )
    assert [s.seek for s in result.segments] == [0, 300, 600]
    for segment in result.segments:
        assert segment.text == " " + synthetic.SENTENCE
        assert -0.1 < segment.avg_logprob <= 0 and segment.no_speech_prob < 0.1 and segment.compression_ratio > 0


def test_sound_in_blocks_is_sound(transcriber: Transcriber) -> None:
    samples = tone(3.0)
    audio = Audio(3.0, "PCM", lambda: iter(np.array_split(samples, 7)))
    assert transcriber.transcribe(audio, Options()).text == synthetic.SENTENCE


@pytest.mark.parametrize(("seconds", "said"), [(1.0, ", 1 segment"), (4.0, ", 2 segments")])
def test_the_log_counts_segments(
    transcriber: Transcriber, seconds: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        transcriber.transcribe(tone_audio(seconds), Options())
    assert caplog.messages[-1].endswith(said)


def test_jobs_run_at_once_and_each_gets_its_own_answer(transcriber: Transcriber) -> None:
    lengths = [1.0, 4.0, 7.0, 2.0, 5.0]
    futures = [transcriber.submit(tone_audio(s), Options()).future for s in lengths]
    counts = [len(future.result(timeout=60).segments) for future in futures]
    assert counts == [1, 2, 3, 1, 2]


def test_an_english_model_refuses_another_language(transcriber: Transcriber) -> None:
    with pytest.raises(UnsupportedValue, match="German") as raised:
        transcriber.check(Options(language="de"))
    assert raised.value.param == "language"
    transcriber.check(Options(language="en"))


def test_a_multilingual_model_reports_the_detected_language(tmp_path: Path) -> None:
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
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine, pytest.raises(DeadlineExceeded, match=r"\b2 s\b"):
        engine.load().transcribe(tone_audio(0.5), Options(prompt=serving.LOOP))


def loop(transcriber: Transcriber) -> Run:
    """A job that runs until it is cancelled."""
    return transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP))


def test_one_job_more_than_fits_is_refused_and_fits_once_another_has_left(folder: Path) -> None:
    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=1, deadline_floor_s=60.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        transcriber = engine.load()
        running, waiting = loop(transcriber), loop(transcriber)
        with pytest.raises(QueueFull) as raised:
            loop(transcriber)
        assert raised.value.retry_after_s >= 1
        waiting.cancel()
        assert isinstance(waiting.future.exception(0), ClientGone)
        following = transcriber.submit(tone_audio(0.5), Options()).future
        running.cancel()
        with pytest.raises(ClientGone):
            running.future.result(timeout=60)
        assert following.result(timeout=60).text == "All is well."


def test_a_withdrawn_job_gives_up_its_audio_before_a_worker_is_free(folder: Path) -> None:
    settings = settings_for(folder, workers=1, open_jobs=1, deadline_floor_s=60.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        transcriber = engine.load()
        running = loop(transcriber)
        audio = tone_audio(0.5)
        kept = weakref.ref(audio)
        waiting = transcriber.submit(audio, Options())
        del audio
        assert kept() is not None
        waiting.cancel()
        gc.collect()
        assert kept() is None
        running.cancel()


def test_closing_stops_running_and_waiting_jobs(folder: Path) -> None:
    settings = settings_for(folder, workers=1, open_jobs=1, deadline_floor_s=60.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        transcriber = engine.load()
        runs = loop(transcriber), loop(transcriber)
        engine.shared.stop()
        for run in runs:
            with pytest.raises(ClientGone):
                run.future.result(timeout=60)


def test_a_file_that_breaks_while_it_is_read_is_the_files_fault(transcriber: Transcriber) -> None:
    def blocks() -> Iterator[NDArray[np.float32]]:
        yield tone(1.0)
        raise UnreadableAudio("The file breaks off.")

    with pytest.raises(UnreadableAudio, match="breaks off"):
        transcriber.transcribe(Audio(2.0, "WAV", blocks), Options())


def test_a_long_recording_is_read_no_further_once_its_client_has_left(transcriber: Transcriber) -> None:
    run, n_read = Run(), 0

    def blocks() -> Iterator[NDArray[np.float32]]:
        nonlocal n_read
        for n_read in range(1, 1001):
            if n_read == 3:
                run.cancel()
            yield tone(1.0)

    with pytest.raises(ClientGone):
        transcriber.transcribe(Audio(1000.0, "WAV", blocks), Options(), run=run)
    assert n_read == 3


def test_a_recording_that_takes_too_long_to_read_meets_the_deadline(folder: Path) -> None:
    def blocks() -> Iterator[NDArray[np.float32]]:
        while True:
            yield tone(1.0)

    settings = settings_for(folder, deadline_floor_s=1.0, deadline_factor=0.0)
    with engine_for(settings) as engine, pytest.raises(DeadlineExceeded):
        engine.load().transcribe(Audio(1000.0, "WAV", blocks), Options())


def test_our_own_fault_is_logged_in_full_and_raised_as_an_internal_error(
    transcriber: Transcriber, caplog: pytest.LogCaptureFixture
) -> None:
    def blocks() -> Iterator[NDArray[np.float32]]:
        raise OSError("the disk is gone")

    with caplog.at_level(logging.ERROR), pytest.raises(InternalError) as raised:
        transcriber.transcribe(Audio(2.0, "WAV", blocks), Options())
    assert "the disk is gone" in caplog.text
    assert "disk" not in str(raised.value)


@pytest.fixture(scope="module")
def tiny_en(tiny_en: Path) -> Iterator[Transcriber]:
    with engine_for(settings_for(tiny_en)) as engine:
        yield engine.load()


def test_jfk_is_understood(tiny_en: Transcriber, shared: Path) -> None:
    with (shared / "speech" / "jfk.wav").open("rb") as file:
        result = tiny_en.transcribe(decode(file), Options())
    assert "ask not what your country can do for you" in result.text.lower().replace(",", "")
    assert result.duration == pytest.approx(11.0, abs=0.01)
    assert result.segments and result.segments[0].start < 1.0


def expected(shared: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (shared / "expected" / name).read_text().splitlines()]


def assert_same_segments(found: tuple[Segment, ...], segments: list[dict[str, Any]]) -> None:
    """Except for the times, which respect silence."""
    assert [s.tokens for s in found] == [tuple(s["tokens"]) for s in segments]
    assert [(s.seek, s.text) for s in found] == [(s["seek"], s["text"]) for s in segments]
    for key in ("avg_logprob", "no_speech_prob", "compression_ratio"):
        assert [getattr(s, key) for s in found] == pytest.approx([s[key] for s in segments], abs=1e-3), key
    for ours, theirs in zip(found, segments, strict=True):
        assert theirs["start"] - 1e-3 <= ours.start <= ours.end <= theirs["end"] + 1e-3


def test_a_minute_of_speech_gives_openai_whispers_segments(tiny_en: Transcriber, shared: Path) -> None:
    reference = next(r for r in expected(shared, "transcribe-long.jsonl") if r["options"] == {"temperature": 0.0})
    pieces: list[NDArray[np.float32]] = []
    for name in reference["files"]:
        samples, rate = soundfile.read(shared / "speech" / name, dtype="float32")
        assert rate == SAMPLE_RATE
        pieces += [samples, np.zeros(int(reference["gap_s"] * SAMPLE_RATE), np.float32)]
    result = tiny_en.transcribe(audio_of(np.concatenate(pieces)), Options(temperature=(0.0,)))
    assert_same_segments(result.segments, reference["segments"])
    assert result.text == reference["text"].strip()


def test_without_the_check_quiet_gives_openai_whispers_output(tiny_en: Transcriber, shared: Path) -> None:
    sounds = {
        "zeros-5s": np.zeros(5 * SAMPLE_RATE, np.float32),
        "noise-10s": (np.random.default_rng(0).standard_normal(160_000) * 0.01).astype(np.float32),
    }
    references = {r["name"]: r for r in expected(shared, "transcribe-quiet.jsonl")}
    for name, samples in sounds.items():
        assert_same_segments(tiny_en.transcribe(audio_of(samples), Options()).segments, references[name]["segments"])


def test_the_whole_graph_turns_pcm_into_text(transcriber: Transcriber) -> None:
    """In the only turn, which its guest's run already holds."""
    run = Run()
    with run.working(transcriber.computing), transcriber.graphs(run) as graphs:
        context = graphs[transcriber.model.name].init_execution_context({})
        context.set_input(0, tone(1.0)[None])
        context.compute()
        assert context.get_output(0).tobytes().decode() == synthetic.SENTENCE
        assert transcriber.computing.n_held == 1
        run.cancel()
        with pytest.raises(WasiNnError, match="closed the connection"):
            context.compute()
        context.close()


def test_words_are_timed_on_request(tiny_en: Transcriber, shared: Path) -> None:
    with (shared / "speech" / "jfk.wav").open("rb") as file:
        result = tiny_en.transcribe(decode(file), Options(temperature=(0.0,), word_timestamps=True))
    words = [word for segment in result.segments for word in segment.words]
    assert "".join(word.word for word in words).strip() == result.text
    (ask, *_) = (word for word in words if word.word == " ask")
    assert 0.2 < words[0].start < 0.4 and words[0].word == " And"
    assert 3.1 < ask.start < 3.4 < ask.end < 4.0, "it is said after a second of silence"
    assert 10.3 < words[-1].end < 10.8, "the recording ends at 11 s"
    assert all(0 < word.probability <= 1 for word in words)
