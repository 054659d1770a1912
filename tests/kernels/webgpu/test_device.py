"""The WebGPU device: adapters, memory, kernels, recordings and its thread, on the real adapter of this machine."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.webgpu import wgsl
from kernels.webgpu.device import Device, DeviceError, list_adapters, open_device
from kernels.webgpu.recording import Recording
from tests.conftest import ROOT

FILL = """
@group(0) @binding(0) var<storage, read> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@group(0) @binding(2) var<uniform> params: vec4<u32>;
override FACTOR = 1u;
@compute @workgroup_size(4)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  out[id.x] = source[id.x] * FACTOR + params.x;
}
"""


@pytest.fixture
def own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wgsl, "SHADERS", tmp_path)
    return tmp_path


def test_an_adapter_describes_itself(device: Device) -> None:
    info = list_adapters()[0]
    assert info == device.info
    assert info.name and info.backend and info.kind in ("discrete", "integrated", "other", "software")
    assert info.limits["max-storage-buffer-binding-size"] >= 1 << 27
    assert info.is_software == (info.kind == "software")


def test_hardware_comes_before_software() -> None:
    software = [info.is_software for info in list_adapters()]
    assert software == sorted(software)


def test_an_adapter_that_is_not_there_is_a_clear_error() -> None:
    wanted = "hardware" if all(info.is_software for info in list_adapters()) else "software"
    if any(info.is_software == (wanted == "software") for info in list_adapters()):
        pytest.skip("both sorts of adapter are here")
    with pytest.raises(DeviceError, match=f"no {wanted} WebGPU adapter"):
        open_device("hardware" if wanted == "hardware" else "software")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.uint8])
@pytest.mark.parametrize("size", [1, 3, 129, 40_000])
def test_what_is_written_comes_back(device: Device, dtype: type, size: int) -> None:
    array: NDArray[Any] = (np.arange(size) % 200).astype(dtype)
    buffer = device.buffer(array)
    assert np.array_equal(device.read(buffer, dtype), array)
    buffer.close()


def test_a_new_buffer_is_zero_and_a_view_is_a_part_of_it(device: Device) -> None:
    buffer = device.buffer(4096)
    device.write(buffer.view(1024, 16), np.arange(4, dtype=np.uint32))
    assert device.read(buffer.view(1024, 32), np.uint32).tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
    assert not device.read(buffer.view(0, 1024)).any()
    with pytest.raises(ValueError, match="20 bytes for a buffer of 16"):
        device.write(buffer.view(1024, 16), np.arange(5, dtype=np.uint32))
    buffer.close()
    buffer.close()
    with pytest.raises(ValueError, match="closed"):
        device.read(buffer)


def test_a_buffer_over_the_limit_is_refused(device: Device) -> None:
    with pytest.raises(DeviceError, match="over this device's limit"):
        device.buffer(device.info.limits["max-buffer-size"] + 1)


def test_a_recording_is_replayed_in_order_and_counted(device: Device, own_kernels: Path) -> None:
    (own_kernels / "fill.wgsl").write_text(FILL)
    source, middle, out = (device.buffer(np.arange(8, dtype=np.uint32)) for _ in range(3))
    params = device.buffer(np.array([5, 0, 0, 0], np.uint32), uniform=True)
    recording = Recording(device)
    recording.dispatch(device.pipeline("fill", {}, {"FACTOR": 3}), [source, middle, params], 2)
    recording.dispatch(device.pipeline("fill"), [middle, out, params], 2)
    recording.copy(out.view(0, 32), source)
    assert len(recording.dispatches) == 2
    device.submit(recording)
    found = device.submit(recording, reads=[out.view(0, 8), middle.view(16, 16)])
    once = np.arange(8) * 3 + 10
    first, middles = (part.view(np.uint32) for part in found)
    assert first.tolist() == (once * 3 + 10)[:2].tolist()
    assert middles.tolist() == (once * 3 + 5)[4:].tolist()
    assert device.pipeline("fill", {}, {"FACTOR": 3}) is device.pipeline("fill", {}, {"FACTOR": 3})


def test_a_recording_outlives_the_close_of_its_buffers(device: Device, own_kernels: Path) -> None:
    (own_kernels / "fill.wgsl").write_text(FILL)
    source, out = device.buffer(np.arange(8, dtype=np.uint32)), device.buffer(32)
    recording = Recording(device)
    params = device.buffer(np.array([5, 0, 0, 0], np.uint32), uniform=True)
    recording.dispatch(device.pipeline("fill"), [source, out, params], 2)
    source.close()
    params.close()
    device.submit(recording)
    assert device.read(out, np.uint32).tolist() == list(range(5, 13))


def test_misuse_of_a_kernel_is_an_error(device: Device, own_kernels: Path) -> None:
    (own_kernels / "fill.wgsl").write_text(FILL)
    (own_kernels / "wrong.wgsl").write_text("fn main( {")
    (own_kernels / "gap.wgsl").write_text(FILL.replace("binding(2)", "binding(3)"))
    out, pipeline, recording = device.buffer(16), device.pipeline("fill"), Recording(device)
    with pytest.raises(ValueError, match="fill has 3 bindings, 1 given"):
        recording.dispatch(pipeline, [out], 1)
    with pytest.raises(ValueError, match="workgroups"):
        recording.dispatch(pipeline, [out, out, out], 0)
    with pytest.raises(ValueError, match="workgroups"):
        recording.dispatch(pipeline, [out, out, out], 1 << 16)
    with pytest.raises(DeviceError, match="kernel wrong is not valid WGSL"):
        device.pipeline("wrong")
    with pytest.raises(DeviceError, match="kernel gap: bindings"):
        device.pipeline("gap")
    with pytest.raises(DeviceError, match="no kernel named absent"):
        device.pipeline("absent")
    (own_kernels / "of_rows.wgsl").write_text("const ROWS = {{ rows }}u;")
    with pytest.raises(DeviceError, match="kernel of_rows_2 does not expand: 'rows' is undefined"):
        device.pipeline("of_rows", {"row": 2})
    with pytest.raises(DeviceError, match="does not compile"):
        device.pipeline("fill", {}, {"NO_SUCH_CONSTANT": 1})


@pytest.mark.parametrize(("n_rows", "row_bytes"), [(51_864, 768), (51_866, 5120), (10, 12), (0, 4)])
def test_large_tables_are_cut_into_ranges_that_bind(device: Device, n_rows: int, row_bytes: int) -> None:
    ranges = device.row_ranges(n_rows, row_bytes)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(n_rows))
    for start, stop in ranges:
        assert (stop - start) * row_bytes <= device.max_binding
        assert start * row_bytes % device.offset_alignment == 0


def test_a_row_over_the_limit_is_refused(device: Device) -> None:
    with pytest.raises(DeviceError, match="binding limit"):
        device.row_ranges(2, device.max_binding * 2)


def test_jobs_of_many_threads_run_one_at_a_time(device: Device) -> None:
    running, most, done = [], [], []

    def job(number: int) -> int:
        running.append(number)
        most.append(len(running))
        buffer = device.buffer(np.full(100, number, np.int32))
        done.append(int(device.read(buffer, np.int32).sum()))
        buffer.close()
        running.remove(number)
        return device.run(lambda: number)  # a job may ask for another

    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(device.run(lambda: job(n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))
    assert sorted(done) == [100 * n for n in range(8)]
    assert max(most) == 1


def test_a_jobs_error_reaches_its_caller_and_the_next_job_runs(device: Device) -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        device.run(fail)
    assert device.run(lambda: 7) == 7


def test_a_closed_device_says_so() -> None:
    if not list_adapters():
        pytest.skip("no WebGPU adapter on this machine")
    device = open_device()
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.buffer(4)
    with pytest.raises(DeviceError, match="closed"):
        device.run(lambda: 1)


@pytest.mark.parametrize(("width", "lanes"), [("128", "4"), ("256", "8")])
def test_the_users_vector_width_is_kept(width: str, lanes: str) -> None:
    if not any(info.is_software for info in list_adapters()):
        pytest.skip("no software adapter on this machine")
    program = (
        "from kernels.webgpu.device import open_device\n"
        "import sys\n"
        "device = open_device('software')\n"
        "sys.stdout.write(f'{device.info.name}|{device.subgroup_size}')\n"
        "device.close()\n"
    )
    environment = os.environ | {"LP_NATIVE_VECTOR_WIDTH": width}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    name, size = done.stdout.split("|")
    if "llvmpipe" not in name:
        pytest.skip(f"{name} does not read LP_NATIVE_VECTOR_WIDTH")
    assert size == lanes
