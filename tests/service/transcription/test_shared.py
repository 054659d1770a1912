"""What models share: one room for all in the machine's memory, another for a GPU with memory of its own."""

from pathlib import Path
from typing import Any

import pytest

from service.models.loaded import Model, read_model
from service.models.names import ModelSpec
from service.models.sizes import machine_bytes
from service.models.target import Target
from service.settings import Settings
from service.transcription import shared as module
from service.transcription.shared import Shared

CPU, GPU, SOFTWARE = Target("cpu", ""), Target("gpu", ""), Target("gpu", "", is_software=True)


def no_guest() -> Any:
    raise AssertionError("none is needed")


@pytest.mark.parametrize(
    ("own", "target", "is_one"),
    [(None, GPU, True), (0, GPU, True), (10**9, GPU, False), (10**9, SOFTWARE, True)],
    ids=["integrated", "driver that says 0", "own memory", "software"],
)
def test_there_is_a_second_room_for_memory_of_its_own_only(
    monkeypatch: pytest.MonkeyPatch, own: int | None, target: Target, is_one: bool
) -> None:
    monkeypatch.setattr(module, "device_bytes", lambda: own)
    shared = Shared(Settings(), no_guest)
    assert (shared.room(target) is shared.room(CPU)) == is_one
    assert shared.room(target) is shared.room(target)
    assert shared.room(target).limits.alone == (machine_bytes() if is_one else own)
    given = Shared(Settings(model_memory=10**6), no_guest)
    assert given.room(target) is given.room(CPU) and given.room(target).limits.together == 10**6


def test_a_model_that_falls_back_to_the_cpu_takes_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(module, "device_bytes", lambda: 10**9)
    shared = Shared(Settings(), no_guest)
    model = Model(read_model(ModelSpec("synthetic", folder), "cpu"), room=shared.room(GPU))
    try:
        model.load()
        assert shared.room(GPU).n_bytes() > 0
        shared.house(model)
        assert model.room is shared.room(CPU) and shared.room(GPU).n_bytes() == 0
        assert shared.room(CPU).n_bytes() == model.occupant.n_bytes > 0
        assert model.room.unload(model.occupant) and not model.is_loaded
    finally:
        model.close()
