"""Utterances of the training shards: read from disk, cut at their words, spoken slower and faster."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tools.train.shards import Utterance, load_shard

FRAMES = 600
WORDS = (("so", 40, 70), ("it", 80, 95), ("", 100, 220), ("was", 230, 300), ("over", 310, 400))


@pytest.fixture
def clip(tmp_path: Path) -> Utterance:
    """Six seconds whose mel and states hold their own number, after another utterance in the shard."""
    number = np.arange(100 + FRAMES)
    np.repeat(number[:, None], 80, axis=1).astype(np.float16).tofile(tmp_path / "human.mel")
    np.repeat(number[::2, None], 384, axis=1).astype(np.float16).tofile(tmp_path / "human.states")
    first = {"text": "No.", "passage": "a", "start": 0, "frames": 100}
    second = {"text": None, "passage": "b", "start": 100, "frames": FRAMES, "words": WORDS}
    (tmp_path / "human.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    return load_shard(tmp_path / "human.mel")[1]


def test_a_shard_s_second_utterance_has_its_own_sound_and_states(clip: Utterance) -> None:
    target = clip.target()
    assert target is not None
    assert (clip.sound()[0, 0], clip.sound()[-1, 0], target[0, 0]) == (100, 699, 100)
    assert (len(clip.sound()), len(target)) == (FRAMES, FRAMES // 2)


def test_a_crop_holds_whole_known_words_and_no_others(clip: Utterance) -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        parts = clip.crop(rng, 500)
        for part, following in itertools.pairwise(parts):
            assert part.start + part.frames == following.start
        seen.add(" | ".join(part.text or "" for part in parts))
        first, last = parts[0].start - 100, parts[-1].start - 100 + parts[-1].frames
        said = [(word, begin, end) for word, begin, end in WORDS if begin >= first and end <= last]
        assert " ".join(part.text or "" for part in parts) == " ".join(word for word, _, _ in said)
        assert not first <= 150 < last, "what nobody wrote down is heard in it"
        for part in parts:
            assert part.start % 2 == 0
            target = part.target()
            assert target is not None and target[0, 0] == part.start
            for word, begin, end in part.words:
                assert (word, begin + part.start - 100, end + part.start - 100) in WORDS
    assert seen >= {"so it", "was over", "was", "over"}


def test_a_crop_is_cut_at_its_pauses(clip: Utterance) -> None:
    words = (("so", 40, 70), ("it", 80, 95), ("was", 130, 200), ("over", 205, 300))
    rng = np.random.default_rng(0)
    seen = {tuple(part.text for part in replace(clip, words=words).crop(rng, 500)) for _ in range(100)}
    assert ("so it", "was over") in seen
    assert not any("it was" in (text or "") for texts in seen for text in texts)


def test_a_crop_is_no_longer_than_asked(clip: Utterance) -> None:
    rng = np.random.default_rng(1)
    lengths = [sum(part.frames for part in clip.crop(rng, 130)) for _ in range(100)]
    assert max(lengths) <= 130
    over = [sum(part.frames for part in clip.crop(rng, 130, over=100)) for _ in range(100)]
    assert 130 < max(over) <= 230


def test_a_clip_without_words_gives_any_stretch_without_text(clip: Utterance) -> None:
    rng = np.random.default_rng(2)
    parts = [part for _ in range(50) for part in replace(clip, words=()).crop(rng, 300)]
    assert {part.text for part in parts} == {None}
    assert len({part.start for part in parts}) > 20
    assert all(part.start >= 100 and part.start + part.frames <= 700 for part in parts)


def test_the_text_before_a_frame_is_whole_words(clip: Utterance) -> None:
    spoken = replace(clip, text="so it was over", words=tuple(word for word in WORDS if word[0]))
    assert [spoken.text_until(frame) for frame in (69, 70, 299, 399, FRAMES)] == [
        "",
        "so",
        "so it",
        "so it was",
        "so it was over",
    ]
    unplaced = replace(spoken, words=())
    assert [unplaced.text_until(frame) for frame in (0, FRAMES // 2, FRAMES)] == ["", "so it", "so it was over"]


def test_slower_speech_has_more_frames_and_its_states_move_along(clip: Utterance) -> None:
    slower = clip.stretched(1.1)
    assert slower.words[0] == ("so", 44, 77)
    sound, target = slower.sound(), slower.target()
    assert target is not None
    assert (slower.frames, len(sound), len(target)) == (660, 660, 330)
    np.testing.assert_allclose(sound[330, 0], 400, atol=1)
    np.testing.assert_allclose(target[165, 0], 400, atol=2)
    assert (sound[0, 0], sound[-1, 0]) == (100, 699)
