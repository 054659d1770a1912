"""Small texts, utterances and runs for the tests of the training."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tools.train.tokenizer import train_tokenizer

LINES = ["The train leaves at nine o'clock.", "Where is the old red bicycle?", "Thank you very much!"] * 3


def small_tokenizer(seconds: int = 1) -> Tokenizer:
    """A tokenizer of 300 pieces for windows of `seconds`."""
    return train_tokenizer(LINES, n_pieces=300, window_seconds=seconds)


def utterances(tokens: int = 3, frames: int = 30) -> list[Any]:
    """Three utterances of one passage, `frames` long each, of noise."""
    pytest.importorskip("torch", reason="training needs torch")
    pytest.importorskip("scipy", reason="training needs scipy")
    from tools.train.shards import Utterance

    mel = np.random.default_rng(0).normal(size=(frames * tokens, 80)).astype(np.float16)
    states = np.zeros((frames * tokens // 2, 384), np.float16)
    return [Utterance(LINES[n], "a", n * frames, frames, mel, states, n * frames // 2) for n in range(tokens)]


def maker(seed: int = 0, n_frames: int = 100) -> Any:
    """A maker of one-second windows."""
    from tools.train.windows import Examples, Stage

    stage = Stage(1000, joined=1.0, full=1.0, human=0.0, silent=0.0, frames=500, changed=1.0, prompts=0.5)
    return Examples(small_tokenizer(n_frames // 100), n_frames, seed, stage)


def small_run(seed: int = 0) -> Any:
    """A run over tiny dims."""
    torch = pytest.importorskip("torch", reason="training needs torch")
    from tools.train.model import Dims
    from tools.train.student import Student
    from tools.train.train import Run

    torch.manual_seed(seed)
    n_vocab = small_tokenizer().get_vocab_size()
    dims = Dims(n_vocab, 80, 50, 128, 2, 1, 64, 128, 2, 2)
    return Run(Student(dims, torch.randn(384, 128)), "joint", "cpu")
