"""The encoder graph on a WebGPU device: any dims, against the CPU target; its result, its memory, its misuse."""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checkpoints.common import expected_shapes
from kernels.checkpoints.load import Checkpoint, Dimensions, load_checkpoint
from kernels.cpu.model import CpuModel
from kernels.webgpu.device import Device, DeviceError
from kernels.webgpu.encoder.graph import EncoderContext, EncoderGraph
from kernels.webgpu.encoder.memory import floats_a_window, windows_that_fit
from kernels.webgpu.encoder.program import choose_windows
from kernels.webgpu.recording import Recording
from kernels.webgpu.wgsl import Reduction
from tests.support.closeness import assert_close, random
from tests.support.waiting import until

Array = NDArray[Any]
NEAR = 1e-4  # how far from NumPy's a result may be, relative to the largest value


def checkpoint(**changed: int) -> Checkpoint:
    """A small Whisper of random weights that f16 holds exactly."""
    names = Dimensions.__dataclass_fields__
    base = dict(zip(names, (80, 50, 128, 2, 2, 300, 16, 128, 2, 3), strict=True))
    dims = Dimensions(**base | changed)
    arrays = {}
    for seed, (name, shape) in enumerate(expected_shapes(dims).items()):
        scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        arrays[name] = (random(seed, *shape) * scale + name.endswith(("ln.weight", "ln_post.weight"))).astype(
            np.float16
        )
    return Checkpoint(dims, arrays, "{}", (), False)


def mel_for(dims: Dimensions, seed: int) -> NDArray[np.float32]:
    return (random(seed, 1, dims.n_mels, 2 * dims.n_audio_ctx) * 0.5).astype(np.float32)


def cross_of(graph: EncoderGraph, context: EncoderContext) -> Array:
    """(n_text_layer, 2, n_audio_ctx, n_text_state): keys and values as a decoder reads them."""
    dims, device = graph.dims, graph.device
    layers = []
    for keys, values, scales in graph.cross_of(context).layers:
        k = device.read(keys, np.int16).reshape(-1, dims.n_audio_ctx, 8).transpose(1, 0, 2)
        both = np.stack([k.reshape(dims.n_audio_ctx, -1), device.read(values, np.int16).reshape(dims.n_audio_ctx, -1)])
        scale = device.read(scales).reshape(2, -1, dims.n_audio_ctx).transpose(0, 2, 1)
        layers.append((both.reshape(*scale.shape, -1) * scale[..., None]).reshape(both.shape))
    return np.array(layers, np.float64)


def assert_encodes_as_numpy(graph: EncoderGraph, model: Checkpoint, mel: NDArray[np.float32]) -> None:
    context = graph.init_execution_context({})
    context.set_input(0, mel)
    context.compute()
    cpu = CpuModel(model, use_library=False)
    oracle = cpu.encoder.init_execution_context({})
    oracle.set_input(0, mel)
    oracle.compute()
    assert_close(context.get_output(0), oracle.get_output(0), NEAR)
    assert oracle.encoded is not None
    dims, heads = model.dims, oracle.encoded.cross.transpose(0, 1, 3, 2, 4)
    assert_close(cross_of(graph, context), heads.reshape(dims.n_text_layer, 2, dims.n_audio_ctx, -1), NEAR)
    context.close()
    cpu.close()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {
            "n_mels": 128,
            "n_audio_ctx": 75,
            "n_audio_state": 192,
            "n_text_state": 192,
            "n_audio_head": 3,
            "n_text_head": 3,
        },
        {"n_mels": 5, "n_audio_ctx": 1, "n_audio_layer": 1, "n_text_layer": 1},
        {"n_audio_ctx": 37, "n_audio_head": 4, "n_text_head": 4, "n_audio_layer": 1},
    ],
    ids=["plain", "128 mels, 3 heads", "one position", "narrow heads"],
)
def test_encoder_of_any_dims(device: Device, reduction: Reduction, changed: dict[str, int]) -> None:
    model = checkpoint(**changed)
    graph = EncoderGraph(device, model, reduction)
    assert_encodes_as_numpy(graph, model, mel_for(model.dims, 0))
    graph.close()


def test_cross_memory_over_the_binding_limit_is_split(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint()
    whole = EncoderGraph(device, model)
    monkeypatch.setattr(device, "max_binding", 70_000)
    split = EncoderGraph(device, model)
    assert split.program.n_dispatches > whole.program.n_dispatches
    assert_encodes_as_numpy(split, model, mel_for(model.dims, 0))
    split.close()
    whole.close()


def test_a_held_result_outlives_its_context_and_the_next_window(device: Device) -> None:
    model = checkpoint()
    graph = EncoderGraph(device, model)
    context = graph.init_execution_context({})
    context.set_input(0, mel_for(model.dims, 0))
    context.compute()
    first = cross_of(graph, context)
    held = graph.cross_of(context).hold()
    first_keys, first_scales = device.read(held.layers[0][0], np.int16), device.read(held.layers[0][2])
    context.set_input(0, mel_for(model.dims, 1))
    context.compute()
    assert not np.array_equal(cross_of(graph, context), first)
    context.close()
    context.close()
    keys, scales = device.read(held.layers[0][0], np.int16), device.read(held.layers[0][2])
    assert np.array_equal(keys, first_keys) and np.array_equal(scales, first_scales)
    held.release()
    again = graph.init_execution_context({})
    again.set_input(0, mel_for(model.dims, 0))
    again.compute()
    assert np.array_equal(cross_of(graph, again), first)
    again.close()
    graph.close()


def computed_together(
    graph: EncoderGraph, mels: Sequence[NDArray[np.float32]]
) -> list[tuple[EncoderContext, Future[None]]]:
    """A context for each window and what came of its compute; all began while the device was busy."""
    contexts = [graph.init_execution_context({}) for _ in mels]
    for context, mel in zip(contexts, mels, strict=True):
        context.set_input(0, mel)
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        is_held.set()
        is_over.wait()

    graph.device.enqueue(hold)
    with ThreadPoolExecutor(len(mels)) as threads:
        try:
            assert is_held.wait(60)  # jobs that earlier windows have left would take some of these
            computed = [threads.submit(context.compute) for context in contexts]
            until(lambda: len(graph._waiting) == len(mels), "all windows wait")
        finally:
            is_over.set()
    return list(zip(contexts, computed, strict=True))


def outputs(graph: EncoderGraph, context: EncoderContext) -> tuple[Array, Array]:
    return context.get_output(0), cross_of(graph, context)


@pytest.mark.parametrize("n_audio_ctx", [50, 37])  # windows end in the middle of a tile
def test_windows_together_give_what_each_gives_alone(
    device: Device, reduction: Reduction, n_audio_ctx: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(n_audio_ctx=n_audio_ctx)
    mels = [mel_for(model.dims, seed) for seed in range(7)]
    graph = EncoderGraph(device, model, reduction, windows=3)
    alone = [outputs(graph, context) for mel in mels for context, _ in computed_together(graph, [mel])]
    submit, n_launches = device.submit, list[int]()

    def noted(recording: Recording, **options: Any) -> Any:
        n_launches.append(len(recording.dispatches))
        return submit(recording, **options)

    monkeypatch.setattr(device, "submit", noted)
    for (context, computed), (states, cross) in zip(computed_together(graph, mels), alone, strict=True):
        computed.result()
        assert np.array_equal(context.get_output(0), states)
        assert np.array_equal(cross_of(graph, context), cross)
    by_itself = graph.program.n_dispatches
    assert [n for n in n_launches if n] == [by_itself + 2 * 3, by_itself + 2 * 3, by_itself]
    graph.close()


@pytest.mark.parametrize("fits", [0, 1, 2])
def test_without_memory_for_all_windows_as_many_as_fit_go_together(
    device: Device, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    model = checkpoint()
    mels = [mel_for(model.dims, seed) for seed in range(3)]
    graph = EncoderGraph(device, model, windows=4)
    alone = [context.get_output(0) for mel in mels for context, _ in computed_together(graph, [mel])]
    largest = max(floats_a_window(model.dims, is_normed_apart=True).values())
    limits = {**device.info.limits, "max-buffer-size": 4 * largest * fits or 4 * largest - 16}
    monkeypatch.setattr(device, "info", replace(device.info, limits=limits))
    together = computed_together(graph, mels)
    assert graph.program.most_windows == max(1, fits)
    if fits == 0:  # until there is room again
        assert all(isinstance(computed.exception(), DeviceError) for _, computed in together)
        monkeypatch.undo()
        together = computed_together(graph, mels)
    for (context, computed), states in zip(together, alone, strict=True):
        computed.result()
        assert np.array_equal(context.get_output(0), states)
    graph.close()


def test_what_fails_is_told_to_the_window_it_belongs_to(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint()
    mels = [mel_for(model.dims, seed) for seed in range(3)]
    graph = EncoderGraph(device, model, windows=3)
    made, made_so_far = graph.program.result, list[int]()

    def second_fails() -> Any:
        made_so_far.append(1)
        if len(made_so_far) == 2:
            raise DeviceError("no memory for a result")
        return made()

    with monkeypatch.context() as patch:
        patch.setattr(graph.program, "result", second_fails)
        errors = [computed.exception() for _, computed in computed_together(graph, mels)]
    assert sorted(str(error) for error in errors) == ["None", "None", "no memory for a result"]

    def all_fail(windows: Sequence[Any]) -> None:
        raise DeviceError(f"lost with {len(windows)}")

    with monkeypatch.context() as patch:
        patch.setattr(graph.program, "compute", all_fail)
        errors = [computed.exception() for _, computed in computed_together(graph, mels)]
    assert [str(error) for error in errors] == ["lost with 3"] * 3
    assert [computed.exception() for _, computed in computed_together(graph, mels)] == [None] * 3
    graph.close()


@pytest.mark.parametrize(
    ("sizes", "nbytes", "windows"),
    [((384, 6), 512 << 20, 18), ((1280, 20), 512 << 20, 5), ((1280, 20), 1, 1)],
    ids=["tiny", "large", "no room"],
)
def test_how_many_windows_fit_working_memory(sizes: tuple[int, int], nbytes: int, windows: int) -> None:
    state, n_head = sizes
    dims = replace(checkpoint().dims, n_audio_ctx=1500, n_audio_state=state, n_audio_head=n_head)
    floats = floats_a_window(dims, is_normed_apart=False)
    assert windows_that_fit(floats, 1 << 31, nbytes) == windows
    assert windows_that_fit(floats, 4 * max(floats.values()), nbytes) == 1


@pytest.mark.parametrize(("kind", "windows"), [("discrete", 16), ("integrated", 4), ("other", 4), ("software", 1)])
def test_how_many_windows_suit_an_adapter(
    device: Device, monkeypatch: pytest.MonkeyPatch, kind: str, windows: int
) -> None:
    monkeypatch.setattr(device, "info", replace(device.info, kind=kind))
    assert choose_windows(device, floats_a_window(checkpoint().dims, is_normed_apart=False)) == windows


def test_only_the_devices_thread_uses_the_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = EncoderGraph(device, checkpoint(n_audio_layer=1))
    used: set[int] = set()

    def noted(name: str) -> None:
        method = getattr(device, name)

        def call(*arguments: Any, **named: Any) -> Any:
            used.add(threading.get_ident())
            return method(*arguments, **named)

        monkeypatch.setattr(device, name, call)

    for name in ("buffer", "write", "bind_group", "submit"):
        noted(name)
    context = graph.init_execution_context({})
    context.set_input(0, mel_for(graph.dims, 0))
    context.compute()
    context.get_output(0)
    context.close()
    graph.close()
    assert used == {device.run(threading.get_ident)}


def test_misuse_of_a_context_is_told(device: Device) -> None:
    model = checkpoint()
    graph, other = EncoderGraph(device, model), EncoderGraph(device, model)
    context = graph.init_execution_context({})
    mel = mel_for(model.dims, 0)
    with pytest.raises(ValueError, match="mel is not set"):
        context.compute()
    with pytest.raises(ValueError, match="nothing is computed"):
        context.get_output(0)
    with pytest.raises(ValueError, match="not computed"):
        graph.cross_of(context)
    with pytest.raises(ValueError, match="no input 1"):
        context.set_input(1, mel)
    with pytest.raises(ValueError, match=r"mel must be f32 \[1, 80, 100\]"):
        context.set_input(0, mel[:, :, 1:])
    with pytest.raises(ValueError, match="not finite"):
        context.set_input(0, np.where(mel > 1, np.float32(np.nan), mel))
    with pytest.raises(ValueError, match="not an encoder context of this model"):
        other.cross_of(context)
    context.set_input(0, mel)
    context.compute()
    with pytest.raises(ValueError, match="no output 1"):
        context.get_output(1)
    context.close()
    with pytest.raises(ValueError, match="closed"):
        context.compute()
    with pytest.raises(ValueError, match="closed"):
        context.set_input(0, mel)
    graph.close()
    graph.close()
    other.close()


def test_tiny_en_in_at_most_26_launches(device: Device, shared: Path) -> None:
    model = load_checkpoint(shared / "models" / "tiny_en")
    graph = EncoderGraph(device, model)
    assert graph.program.n_dispatches <= 26
    with np.load(shared / "expected" / "features-jfk.npz") as features:
        mel = features[features.files[0]].astype(np.float32)
    window = np.zeros((1, 80, 3000), np.float32)
    window[0, :, : mel.shape[1]] = mel[:, :3000]
    assert_encodes_as_numpy(graph, model, window)
    graph.close()
