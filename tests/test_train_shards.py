"""Utterances of the training shards: read from disk, cut at their words, spoken slower and faster."""

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
        part = clip.crop(rng, 500)
        assert part.text is not None
        seen.add(part.text)
        first, last = part.start - 100, part.start - 100 + part.frames
        said = [(word, begin, end) for word, begin, end in WORDS if begin >= first and end <= last]
        assert part.text == " ".join(word for word, _, _ in said)
        assert not first <= 150 < last, "what nobody wrote down is heard in it"
        assert first % 2 == 0
        target = part.target()
        assert target is not None and target[0, 0] == part.start
    assert seen >= {"so it", "was over"}


def test_a_crop_is_no_longer_than_asked(clip: Utterance) -> None:
    rng = np.random.default_rng(1)
    assert max(clip.crop(rng, 130).frames for _ in range(100)) <= 130


def test_a_clip_without_words_gives_any_stretch_without_text(clip: Utterance) -> None:
    rng = np.random.default_rng(2)
    parts = [replace(clip, words=()).crop(rng, 300) for _ in range(50)]
    assert {part.text for part in parts} == {None}
    assert len({part.start for part in parts}) > 20
    assert all(part.start >= 100 and part.start + part.frames <= 700 for part in parts)


def test_slower_speech_has_more_frames_and_its_states_move_along(clip: Utterance) -> None:
    slower = clip.stretched(1.1)
    sound, target = slower.sound(), slower.target()
    assert target is not None
    assert (slower.frames, len(sound), len(target)) == (660, 660, 330)
    np.testing.assert_allclose(sound[330, 0], 400, atol=1)
    np.testing.assert_allclose(target[165, 0], 400, atol=2)
    assert (sound[0, 0], sound[-1, 0]) == (100, 699)
