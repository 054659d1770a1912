"""The measurement of requests that decode together: it holds them to the same tokens."""

import numpy as np
import pytest

from bench.together import Bench
from kernels.webgpu.device import list_adapters
from tests.conftest import ROOT


def test_requests_give_the_same_together_and_in_turn() -> None:
    if not list_adapters():
        pytest.skip("no WebGPU adapter on this machine")
    bench, calls = Bench(ROOT / "assets" / "embedded", n_tokens=3, n_audio=2, windows=2), list[int]()
    assert bench.ratio(bench.encode, 2) > 0 and bench.ratio(bench.decode, 2) > 0

    def another_token_each_time(number: int) -> list[int]:
        calls.append(number)
        return [*bench.decode(number), len(calls)]

    def another_window_each_time(number: int) -> None:
        calls.append(number)
        mel = np.full((1, bench.model.dims.n_mels, 2 * bench.model.dims.n_audio_ctx), len(calls), np.float32)
        bench.encoders[number].set_input(0, mel)
        bench.encode(number)

    for work in (another_token_each_time, another_window_each_time):
        with pytest.raises(RuntimeError, match="something else"):
            bench.ratio(work, 1)
    bench.device.close()
