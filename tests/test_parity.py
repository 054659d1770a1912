"""WebGPU's greedy tokens through the guest against openai/whisper's, on a few clips; `make parity` takes all."""

from pathlib import Path

import pytest

from bench.parity import KINDS, NEAR_TIE, Target, differences
from kernels.device import DeviceError, open_device
from service.app import Engine
from service.settings import Settings

FILES = {"jfk.wav", "librivox/0930.wav", "librispeech/1688-142285-0003.flac"}


def test_webgpu_says_what_openai_whisper_says(shared: Path) -> None:
    try:
        open_device().close()
    except DeviceError as error:
        pytest.skip(f"no WebGPU adapter: {error}")
    engine = Engine(Settings(model=str(shared / "models" / "tiny_en"), target="gpu"))
    try:
        found = list(differences(Target(engine.load()), shared, KINDS, FILES))
    finally:
        engine.close()
    assert len(found) == len(FILES) * len(KINDS)
    parted = [difference for difference in found if difference is not None]
    assert all(abs(difference.gap) < NEAR_TIE for difference in parted), parted
    assert len(parted) <= 1, parted
