"""What training makes of utterances: other voices, batches, and where the words of a text are in the sound."""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.training import LINES, maker, small_run, small_tokenizer, utterances


def test_a_shorter_vocal_tract_moves_every_formant_up() -> None:
    pytest.importorskip("scipy", reason="augmentation needs scipy")
    from tools.train.augment import band_centres, warp_bands

    raw = np.zeros((1, 80), np.float32)
    raw[0, 30] = 1.0
    hz = band_centres()
    for factor in (0.85, 1.0, 1.18):
        warped = warp_bands(raw, factor)[0]
        assert float((warped * hz).sum() / warped.sum()) == pytest.approx(factor * hz[30], rel=0.03)


def write_shard(folder: Path, name: str, frames: int, rows: list[dict[str, Any]], taught: bool) -> None:
    """A shard of noise, `frames` an utterance."""
    mel = np.random.default_rng(0).normal(size=(frames * len(rows), 80)).astype(np.float16)
    mel.tofile(folder / f"{name}.mel")
    if taught:
        np.ones((frames * len(rows) // 2, 384), np.float16).tofile(folder / f"{name}.states")
    full = [{"passage": 0, "start": number * frames, "frames": frames} | row for number, row in enumerate(rows)]
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in full) + "\n")


def test_batches_mix_spoken_and_human_sound_as_the_stage_says(tmp_path: Path) -> None:
    utterances()
    from tools.train.batches import SILENCE_MATTERS, batches
    from tools.train.windows import Stage

    write_shard(tmp_path, "shard-000", 60, [{"text": line} for line in LINES], taught=False)
    write_shard(tmp_path, "human", 60, [{"text": None, "words": [["Yes", 10, 50]]}], taught=True)
    make = maker()
    make.stage = Stage(90, joined=0.0, full=0.0, human=0.5, silent=0.0, frames=500, changed=0.0, prompts=0.0)
    source = batches(tmp_path, make)
    written = human = 0
    for _ in range(8):
        batch = next(source)
        assert batch.mel.shape[2] == 2 * batch.states.shape[1]
        for heard, states, length in zip(batch.heard, batch.states, batch.ctc_lengths, strict=True):
            taught = bool((states != 0).any())
            human += taught
            written += not taught
            assert length > 0
            # What the teacher has not heard must not count as silence.
            assert heard.min() == (pytest.approx(SILENCE_MATTERS) if taught and heard.min() < 1 else heard.min())
            assert taught or float(heard.min()) == 0.0
    assert 0.3 < human / (human + written) < 0.7


def spoken_letters(text: str, states_a_letter: int = 4) -> Any:
    """(n_states, 29) log-probabilities of a CTC head that hears `text`, each letter every so many states."""
    from tools.train.windows import CTC_SYMBOLS

    probabilities = np.full((states_a_letter * len(text) + 20, len(CTC_SYMBOLS) + 1), 0.001)
    probabilities[:, 0] = 1.0
    for number, letter in enumerate(text.lower()):
        row = 10 + states_a_letter * number
        probabilities[row, 0], probabilities[row, CTC_SYMBOLS.index(letter) + 1] = 0.01, 1.0
    return np.log(probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)


def test_words_are_found_where_their_letters_are_heard() -> None:
    pytest.importorskip("torch", reason="alignment needs torch")
    pytest.importorskip("scipy", reason="alignment needs scipy")
    from tools.train.align import LEAD, TAIL, timed

    words = timed("All is well.", spoken_letters("all is well"))
    assert [word for word, _, _ in words] == ["All", "is", "well."]
    for (_, first, last), (begin, end) in zip(words, ((0, 2), (4, 5), (7, 10)), strict=True):
        assert first == 2 * (10 + 4 * begin - LEAD)
        assert last == 2 * (10 + 4 * end + TAIL)


def test_words_that_are_not_heard_stay_nameless() -> None:
    pytest.importorskip("torch", reason="alignment needs torch")
    pytest.importorskip("scipy", reason="alignment needs scipy")
    from tools.train.align import timed

    heard = "the quick brown fox jumps over the lazy dog and the cat sleeps"
    text = "the quick brown fox zzzzz qqqqq xxxxx zzqqx zzxxq kkkkk sleeps"
    words = [word for word, _, _ in timed(text, spoken_letters(heard))]
    assert words[:2] == ["the", "quick"]
    assert "" in words
    assert not {"qqqqq", "xxxxx", "zzqqx"} & set(words)


def test_a_long_gap_is_not_taken_for_silence() -> None:
    pytest.importorskip("torch", reason="alignment needs torch")
    pytest.importorskip("scipy", reason="alignment needs scipy")
    from tools.train.align import with_gaps

    assert with_gaps([("so", 10, 40), ("it", 300, 320)], 350) == [("so", 10, 40), ("", 40, 300), ("it", 300, 320)]


def test_a_run_follows_the_hours_heard_or_the_clock() -> None:
    pytest.importorskip("torch", reason="training needs torch")
    from tools.train.train import Schedule

    run = small_run()
    run.heard = 2 * 3600.0
    assert Schedule(run, 8.0).progress() == 0.25
    assert 0.25 <= Schedule(run, 8.0, minutes=1e6).progress() < 0.26
    assert Schedule(run, 8.0, minutes=1e-9).progress() >= 1.0


def test_a_run_that_is_terminated_saves_where_it_is(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    spoken = utterances()
    from tools.train.batches import Batch, collate
    from tools.train.train import Schedule, follow

    make = maker()
    batch = collate([make.example(make.place(spoken, 0, False), True, [])], make.ids)

    def until_terminated() -> Iterator[Batch]:
        yield batch
        os.kill(os.getpid(), signal.SIGTERM)
        yield batch
        raise AssertionError("it went on")

    run, resumed = small_run(), small_run(seed=3)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            follow(run, until_terminated(), 1.0, Schedule(run, 8.0), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    resumed.load(tmp_path / "state.pt")
    assert (resumed.steps, resumed.heard) == (run.steps, run.heard) == (1, batch.seconds)


def test_a_step_weighs_the_gradients_that_are_there_by_their_sound() -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from tools.train.train import Run, WorkerGradients

    alone = small_run()
    size = sum(value.numel() for value in alone.trained)
    others = [
        WorkerGradients(torch.cat([torch.full((size,), 3.0), torch.tensor([20.0])]), multiprocessing.Event())
        for _ in range(2)
    ]
    others[0].ready.set()
    run = Run(alone.student, "joint", "cpu", others)
    for value in run.trained[1:]:
        value.grad = torch.ones_like(value)
    assert run.take_gradients(10.0) == 30.0
    assert not others[0].ready.is_set()
    for value in run.trained[1:]:
        torch.testing.assert_close(value.grad, torch.full_like(value, (10 + 3 * 20) / 30))
    torch.testing.assert_close(run.trained[0].grad, torch.full_like(run.trained[0], 2.0))
    assert run.take_gradients(10.0) == 10.0


def test_a_second_worker_gives_gradients_of_the_weights_as_they_are(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    spoken = utterances(frames=60)
    from tools.train.train import WorkerGradients, work

    rows = [{"text": one.text, "passage": one.passage, "start": one.start, "frames": one.frames} for one in spoken]
    (tmp_path / "shard-000.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    spoken[0].mel.tofile(tmp_path / "shard-000.mel")
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    run = small_run()
    run.student.share_memory()
    size = sum(value.numel() for value in run.trained)
    context = torch.multiprocessing.get_context("spawn")
    gradients, progress = (
        WorkerGradients(torch.zeros(size + 1).share_memory_(), context.Event()),
        torch.zeros(1).share_memory_(),
    )
    options = argparse.Namespace(part="joint", data=tmp_path)
    worker = context.Process(target=work, args=(run.student, gradients, progress, options, 1), daemon=True)
    worker.start()
    try:
        for _ in range(2):  # the second is made after the first was taken
            assert gradients.ready.wait(120)
            assert gradients.values.isfinite().all()
            assert gradients.values[:-1].norm() > 0
            assert 0.5 < float(gradients.values[-1]) < 72
            gradients.values.zero_()
            gradients.ready.clear()
    finally:
        worker.terminate()
        worker.join(10)


def test_what_goes_wrong_with_the_data_ends_the_training() -> None:
    pytest.importorskip("torch", reason="training needs torch")
    from tools.train.train import prefetched

    def source() -> Iterator[Any]:
        yield "one"
        raise OSError("a shard is gone")

    made: Iterator[Any] = prefetched(source())
    assert next(made) == "one"
    with pytest.raises(OSError, match="a shard is gone"):
        next(made)
    assert list(prefetched(iter(()))) == []


def test_training_goes_on_from_an_exported_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from tools.train.export import export
    from tools.train.train import initialise

    trained, fresh = small_run(), small_run(seed=3)
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    export(trained.average, trained.student.model.dims, tmp_path / "tokenizer.json", tmp_path)
    initialise(fresh.student, tmp_path)
    for name, value in fresh.student.model.state_dict().items():
        torch.testing.assert_close(value, trained.student.model.state_dict()[name].half().float())


def test_no_two_made_variants_are_alike() -> None:
    pytest.importorskip("soxr", reason="resampling needs soxr")
    from tools.train.voices import made_variant

    rng = random.Random(0)
    variants = [made_variant(rng) for _ in range(50)]
    assert len(set(variants)) == 50
    for variant in variants:
        assert variant.startswith("language variant\n")
        assert variant.count("\nformant ") == 9


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs Debian's espeak-ng")
def test_espeak_speaks_with_a_made_variant() -> None:
    from tools.train.voices import Voice, made_variant, speak

    text = "The train leaves at nine."
    usual, low, high = (
        speak([text], Voice("espeak", "en-us+made", 1.0, 50, 1.0, variant))[0]
        for variant in (
            "language variant\nname made\n",
            "language variant\nname made\npitch 60 70\n",
            made_variant(random.Random(1)),
        )
    )
    assert min(len(audio) for audio in (usual, low, high)) > 16_000
    assert len({audio.tobytes() for audio in (usual, low, high)}) == 3
