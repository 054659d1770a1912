"""A model on the GPU that is loaded and unloaded again and again: the device gets all of it back."""

import gc
from pathlib import Path

from kernels.webgpu.device import Device
from service.models.loaded import Model, read_model
from service.models.names import ModelSpec


def test_each_load_takes_the_same_of_the_device_and_gives_all_back(folder: Path, device: Device) -> None:
    gc.collect()
    before, model = open_devices(), Model(read_model(ModelSpec("synthetic", folder), "gpu"))
    taken = set()
    for _ in range(6):
        model.load()
        taken.add(model.device_bytes())
        assert model.unload() and model.device_bytes() == 0
        assert open_devices() == before, (
            "the driver's memory of a device goes with the object, not with its destruction"
        )
    assert len(taken) == 1 and taken.pop() > 0
    model.close()


def test_what_the_device_says_counts_where_it_is_more_than_the_estimate(folder: Path, device: Device) -> None:
    model = Model(read_model(ModelSpec("synthetic", folder), "gpu"), workers=4)
    estimated = model.occupant.n_bytes
    model.load()
    assert 0 < model.device_bytes() < estimated == model.occupant.n_bytes
    model.room.measured(model.occupant, estimated + 1)
    assert model.occupant.n_bytes == estimated + 1
    model.close()


def open_devices() -> int:
    """wgpu's devices that are in memory."""
    return sum(type(found).__name__ == "GPUDevice" for found in gc.get_objects())
