"""The measurement of requests that decode together: it holds them to the same tokens."""

import pytest

from bench.together import Bench
from kernels.device import list_adapters
from tests.conftest import ROOT


def test_requests_choose_the_same_together_and_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    if not list_adapters():
        pytest.skip("no WebGPU adapter on this machine")
    bench = Bench(ROOT / "assets" / "embedded", n_tokens=3)
    assert bench.ratio(2) > 0
    request, calls = bench.request, list[int]()

    def another_each_time(number: int) -> list[int]:
        calls.append(number)
        return [*request(number), len(calls)]

    monkeypatch.setattr(bench, "request", another_each_time)
    with pytest.raises(RuntimeError, match="other tokens"):
        bench.ratio(1)
    bench.device.close()
