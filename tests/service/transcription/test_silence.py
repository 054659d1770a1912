"""No words out of silence, no word of speech lost; words and segments that end where their sound ends."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from service.audio.log_mel import SAMPLE_RATE
from service.transcription.reading import audio_of
from service.transcription.transcriber import Options, Transcriber, Transcription
from tests.support.serving import engine_for, settings_for
from tests.support.sounds import Floats, pink_noise, without_speech

JFK = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
SOUNDS = without_speech(35.0)


@pytest.fixture(scope="module")
def tiny_en(tiny_en: Path) -> Iterator[Transcriber]:
    with engine_for(settings_for(tiny_en, vad="skip")) as engine:
        yield engine.load()


@pytest.fixture(scope="module")
def jfk(shared: Path) -> Floats:
    return read(shared / "speech" / "jfk.wav")


def read(file: Path) -> Floats:
    samples, rate = soundfile.read(file, dtype="float32")
    assert rate == SAMPLE_RATE
    return np.asarray(samples, np.float32)


def silence(seconds: float) -> Floats:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def hear(transcriber: Transcriber, *sounds: Floats, vad: str = "skip", words: bool = False) -> Transcription:
    transcriber.vad = vad
    options = Options(word_timestamps=words, temperature=(0.0,)) if words else Options()
    return transcriber.transcribe(audio_of(np.concatenate(sounds)), options)


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").strip()


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_without_speech_is_no_words(tiny_en: Transcriber, name: str) -> None:
    found = hear(tiny_en, SOUNDS[name])
    assert (found.text, found.segments) == ("", ())


def test_left_to_the_model_they_would_be(tiny_en: Transcriber) -> None:
    assert hear(tiny_en, SOUNDS["zeros"], vad="off").text != ""


@pytest.mark.parametrize("name", ["zeros", "faint white noise", "hum of 50 Hz", "fan", "music"])
def test_nothing_follows_speech_that_ends(tiny_en: Transcriber, jfk: Floats, name: str) -> None:
    sound = SOUNDS[name]
    found = hear(tiny_en, jfk, sound, sound[: 5 * SAMPLE_RATE])
    assert plain(found.text) == JFK
    assert found.segments[-1].end <= 11.2


def test_ten_minutes_of_silence_repeat_nothing(tiny_en: Transcriber, jfk: Floats) -> None:
    assert plain(hear(tiny_en, jfk, silence(600)).text) == JFK
    heard = hear(tiny_en, silence(600), jfk)
    assert plain(heard.text) == JFK and heard.segments[0].start == pytest.approx(600.27, abs=0.2)


@pytest.mark.parametrize("kind", ["quiet", "noisy", "telephone", "late", "alone", "quiet after loud"])
def test_speech_is_heard_as_without_the_check(tiny_en: Transcriber, jfk: Floats, kind: str) -> None:
    word = jfk[round(3.25 * SAMPLE_RATE) : round(3.9 * SAMPLE_RATE)]  # "ask", which the model takes for "Yes!"
    match kind:
        case "quiet":  # −50 dB
            sound = jfk * np.float32(0.003 / np.sqrt(np.mean(jfk**2)))
        case "noisy":
            sound = jfk + pink_noise(jfk.size / SAMPLE_RATE, 0.05)
        case "telephone":
            spectrum = np.fft.rfft(jfk)
            frequencies = np.fft.rfftfreq(jfk.size, 1 / SAMPLE_RATE)
            spectrum[(frequencies < 300) | (frequencies > 3400)] = 0
            sound = np.fft.irfft(spectrum, jfk.size).astype(np.float32)
        case "late":
            sound = np.concatenate([silence(27.0), jfk[round(0.2 * SAMPLE_RATE) : round(2.2 * SAMPLE_RATE)]])
        case "alone":
            sound = pink_noise(30.0, 0.001)
            sound[14 * SAMPLE_RATE :][: word.size] += word
        case _:
            sound = np.concatenate([jfk, pink_noise(25.0, 0.0003), jfk * np.float32(0.01)])
    found, reference = hear(tiny_en, sound), hear(tiny_en, sound, vad="off")
    assert found.text and [s.tokens for s in found.segments] == [s.tokens for s in reference.segments]


def test_speech_gives_the_same_tokens_with_the_check(tiny_en: Transcriber, shared: Path) -> None:
    files = sorted((shared / "speech-unlabelled").glob("*.flac"))[::50]
    joined = np.concatenate([read(file) for file in files])
    for sound in (*(read(file) for file in files[:4]), joined):
        found, reference = hear(tiny_en, sound), hear(tiny_en, sound, vad="off")
        assert [(s.seek, s.tokens) for s in found.segments] == [(s.seek, s.tokens) for s in reference.segments]


def pauses(sound: Floats) -> list[int]:
    """The middles of the pauses of 60 ms and more, in samples."""
    power = np.sqrt(np.mean(sound[: sound.size // 160 * 160].reshape(-1, 160) ** 2, axis=1))
    edges = np.flatnonzero(np.diff(np.pad(power < 0.02 * np.percentile(power, 98), 1).astype(np.int8)))
    return [160 * int(a + b) // 2 for a, b in edges.reshape(-1, 2) if b - a >= 6 and a > 0 and b < power.size]


def test_no_word_covers_silence_or_begins_after_its_sound(tiny_en: Transcriber, shared: Path) -> None:
    rng, n_compared = np.random.default_rng(0), 0
    for file in [shared / "speech" / "jfk.wav", *sorted((shared / "speech" / "librispeech").glob("*.flac"))[::10]]:
        sound = read(file)
        places = sorted(rng.permutation(pauses(sound))[:3])
        lengths = rng.uniform(0.3, 3.0, len(places))
        pieces = np.split(sound, places)
        inserted = [pieces[0]]
        gaps: list[tuple[float, float]] = []
        for piece, length in zip(pieces[1:], lengths, strict=True):
            start = sum(part.size for part in inserted) / SAMPLE_RATE
            inserted += [silence(length), piece]
            gaps.append((start, start + length))
        before, after = hear(tiny_en, sound, words=True), hear(tiny_en, *inserted, words=True)
        words = [word for segment in after.segments for word in segment.words]
        for word in words:
            assert sum(max(0.0, min(word.end, b) - max(word.start, a)) for a, b in gaps) <= 0.15, word
        assert all(a.start <= a.end <= b.start <= b.end for a, b in itertools.pairwise(words))
        for segment in after.segments:
            assert not any(a + 0.1 < segment.end < b or a < segment.start < b - 0.1 for a, b in gaps), segment
        spoken = [word for segment in before.segments for word in segment.words]
        if [plain(word.word) for word in words] == [plain(word.word) for word in spoken]:
            n_compared += 1
            for word, of_before in zip(words, spoken, strict=True):
                silent = sum(max(0.0, min(word.start, b) - a) for a, b in gaps if word.start > a)
                assert word.start - silent <= of_before.start + 0.5, (word, of_before)
    assert n_compared >= 3


def test_segments_end_with_their_sound_without_word_times_too(tiny_en: Transcriber, jfk: Floats) -> None:
    found = hear(tiny_en, silence(2.0), jfk[: round(7.7 * SAMPLE_RATE)], silence(6.0))
    assert 2.1 < found.segments[0].start < 2.5 and 9.4 < found.segments[-1].end < 9.8
    ends = [time for segment in found.segments for time in (segment.start, segment.end)]
    assert ends == sorted(ends)
