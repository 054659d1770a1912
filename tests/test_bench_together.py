"""The measurement of requests that decode together: it holds them to the same tokens."""

import pytest

from bench.together import Bench
from kernels.device import list_adapters
from tests.conftest import ROOT


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_requests_give_the_same_together_and_in_turn(what: str) -> None:
    if not list_adapters():
        pytest.skip("no WebGPU adapter on this machine")
    bench = Bench(ROOT / "assets" / "embedded", n_tokens=3, n_audio=2)
    work, calls = getattr(bench, what), list[int]()
    assert bench.ratio(work, 2) > 0

    def another_each_time(number: int) -> list[int]:
        calls.append(number)
        return [*work(number), len(calls)]

    with pytest.raises(RuntimeError, match="something else"):
        bench.ratio(another_each_time, 1)
    bench.device.close()
