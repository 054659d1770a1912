"""Stretches of speech from probabilities, and chunks from those: every option, and every edge."""

import pytest

from service.transcription.chunking import MIN_GAP_S, Chunking, chunks, clip_timestamps, stretches

STEP = 0.1  # seconds


def heard(pattern: str, **knobs: float | int) -> list[tuple[float, float]]:
    """Stretches where each character is a step: `#` certain speech, `.` silence, a digit its tenth."""
    scale = {"#": 1.0, ".": 0.0} | {str(tenth): tenth / 10 for tenth in range(10)}
    bare: dict[str, float | int] = {"prefix_padding_ms": 0, "silence_duration_ms": 200}
    chunking = Chunking(**(bare | knobs))  # type: ignore[arg-type]
    return [
        (round(start, 3), round(end, 3))
        for start, end in stretches((scale[character] for character in pattern), STEP, chunking)
    ]


def test_speech_is_above_the_threshold() -> None:
    assert heard("..........") == heard("") == []
    assert heard("..###.....") == [(0.2, 0.7)]
    assert heard("..444.....") == []
    assert heard("..444.....", threshold=0.3) == [(0.2, 0.7)]
    assert heard("..999.....", threshold=1.0) == []
    assert heard("..........", threshold=0.0) == [(0.0, 1.2)]


def test_started_speech_continues_slightly_below_the_threshold() -> None:
    assert heard("..5444.....") == [(0.2, 0.8)]
    assert heard("..5333.....") == [(0.2, 0.5)]


def test_silence_must_last_to_end_speech() -> None:
    assert heard("#.#..#....") == [(0.0, 0.5), (0.5, 0.8)]
    assert heard("#.#..#....", silence_duration_ms=300) == [(0.0, 0.9)]
    assert heard("#.#..#....", silence_duration_ms=100) == [(0.0, 0.2), (0.2, 0.4), (0.5, 0.7)]


def test_padding_goes_before_speech_but_not_into_what_was_there_before() -> None:
    assert heard("....##........##", prefix_padding_ms=300) == [(0.1, 0.8), (1.1, 1.8)]
    assert heard(".##...##........", prefix_padding_ms=500) == [(0.0, 0.5), (0.5, 1.0)]


def test_a_click_is_not_speech() -> None:
    assert list(stretches([0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0.03, Chunking())) == []


def test_stretches_with_a_short_silence_between_them_are_one_chunk() -> None:
    assert list(chunks([(0.0, 4.0), (4.5, 8.0), (9.9, 95.0)])) == [(0.0, 95.0)]
    assert list(chunks([(0.0, 1.0), (1.0 + MIN_GAP_S, 4.0)])) == [(0.0, 1.0), (1.0 + MIN_GAP_S, 4.0)]
    assert list(chunks([])) == []


@pytest.mark.parametrize(
    ("pattern", "clips"),
    [
        ("....", [0.0, 0.0]),
        (".###", [0.07, 0.45]),
        ("####....", [0.0, 0.6]),
    ],
)
def test_clips_are_whole_frames_within_the_audio(pattern: str, clips: list[float]) -> None:
    probabilities = (1.0 if character == "#" else 0.0 for character in pattern)
    chunking = Chunking(prefix_padding_ms=25)
    assert clip_timestamps(probabilities, STEP, chunking, duration_s=len(pattern) * STEP + 0.05) == clips
