"""The WebGPU device: adapters, memory, compiled kernels, submitting and reading back. The only importer of wgpu.

A kernel is `kernels/webgpu/shaders/<name>.wgsl`; its bindings are group 0, numbered from 0: inputs, outputs, `params`.
Every compute is a job for the device's one thread: `device.run(job)`.
"""

import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import wgpu
from numpy.typing import ArrayLike, DTypeLike, NDArray
from wgpu.backends.wgpu_native import ffi, lib
from wgpu.backends.wgpu_native.extras import set_instance_extras

from kernels.webgpu.recording import Binding, Buffer, Copy, Dispatch, Pipeline, Recording, Tally, View, as_view
from kernels.webgpu.wgsl import Parameters, ShaderError, bindings, expand, variant

# Limits with these prefixes are raised to the adapter's maximum: kernels may need more than WebGPU's defaults.
WANTED_LIMITS = ("max-buffer-size", "max-storage-buffer", "max-compute", "min-storage-buffer")
WANTED_FEATURES = ("subgroup", "timestamp-query")
NO_PARAMETERS: Parameters = {}
NO_CONSTANTS: Mapping[str, float] = {}
_T = TypeVar("_T")
_KINDS = {"DiscreteGPU": "discrete", "IntegratedGPU": "integrated", "CPU": "software"}


class DeviceError(RuntimeError):
    """No adapter, no memory, a lost device, an invalid kernel: one sentence says which."""


@contextmanager
def _as_device_error(what: str) -> Iterator[None]:
    """Raise wgpu's errors as DeviceError: what failed, then wgpu's message."""
    try:
        yield
    except (wgpu.GPUError, RuntimeError) as error:
        raise DeviceError(f"{what}: {error}") from error


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter's own description. `kind`: discrete, integrated, other (an unknown hardware type) or software."""

    name: str
    vendor: str
    kind: str
    backend: str
    driver: str
    features: frozenset[str]
    limits: Mapping[str, int]

    @property
    def is_software(self) -> bool:
        return self.kind == "software"


@functools.cache
def _prepare_instance() -> None:
    """Set, once per process, what must be set before the first adapter call."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "avx512f" in cpuinfo.read_text():
        # lavapipe then runs 16-lane subgroups: the encoder takes little more than half the time.
        os.environ.setdefault("LP_NATIVE_VECTOR_WIDTH", "512")
    if "MESA_VK_DEVICE_SELECT" not in os.environ:
        # Mesa's device-selection layer looks for a display server, which a service lacks, and complains on stderr.
        os.environ.setdefault("NODEVICE_SELECT", "1")
    # OpenGL (the "secondary" backend) would list every adapter again, without useful compute.
    set_instance_extras(backends=["Primary"])


def _describe(adapter: Any) -> AdapterInfo:
    info, features, limits = adapter.info, frozenset(adapter.features), dict(adapter.limits)
    name, vendor, backend, driver = (info[key] for key in ("device", "vendor", "backend_type", "description"))
    return AdapterInfo(name, vendor, _KINDS.get(info["adapter_type"], "other"), backend, driver, features, limits)


def _enumerate() -> list[tuple[AdapterInfo, Any]]:
    _prepare_instance()
    with _as_device_error("the adapters cannot be listed"):
        found = [(_describe(adapter), adapter) for adapter in wgpu.gpu.enumerate_adapters_sync()]
    order = ["discrete", "integrated", "other", "software"]
    return sorted(found, key=lambda pair: order.index(pair[0].kind))


def list_adapters() -> list[AdapterInfo]:
    """All adapters, best first: hardware (discrete, integrated, other) before software.

    Raises DeviceError if the driver cannot list them.
    """
    return [info for info, _ in _enumerate()]


def open_device(adapter: Literal["any", "hardware", "software"] = "any") -> "Device":
    """A device on the best adapter of that kind. Raises DeviceError if there is none."""
    found = _enumerate()
    for info, handle in found:
        if adapter == "any" or info.is_software == (adapter == "software"):
            with _as_device_error(f"the adapter {info.name} gave no device"):
                return Device(info, handle)
    raise DeviceError(f"no {'' if adapter == 'any' else adapter + ' '}WebGPU adapter among the {len(found)} found")


class Device:
    """One open WebGPU device. Thread-safe; close() is idempotent, and use after it raises DeviceError."""

    def __init__(self, info: AdapterInfo, adapter: Any) -> None:
        limits = {name: value for name, value in info.limits.items() if name.startswith(WANTED_LIMITS)}
        features = [name for name in WANTED_FEATURES if name in info.features]
        self._handle: Any = adapter.request_device_sync(required_limits=limits, required_features=features)
        self.info = info
        self._tally = Tally()
        self.offset_alignment: int = self._handle.limits["min-storage-buffer-offset-alignment"]
        self.max_binding: int = self._handle.limits["max-storage-buffer-binding-size"]  # bytes
        self.workgroup_memory: int = self._handle.limits["max-compute-workgroup-storage-size"]  # bytes
        self._thread = ThreadPoolExecutor(1, "wisp-device")
        self._thread_id = self._thread.submit(threading.get_ident).result()
        self._lock = threading.Lock()
        self._modules: dict[str, tuple[Any, Any, int]] = {}
        self._pipelines: dict[tuple[str, tuple[tuple[str, float], ...]], Pipeline] = {}
        self._staging: dict[int, list[Any]] = {}
        self._subgroup_size: int | None = None

    @property
    def handle(self) -> Any:
        """wgpu's device. Raises DeviceError after close()."""
        if self._handle is None:
            raise DeviceError("the device is closed")
        return self._handle

    @property
    def held_bytes(self) -> int:
        """Of all its buffers that are open."""
        return self._tally.held_bytes

    @property
    def has_subgroups(self) -> bool:
        return "subgroup" in self.handle.features

    @property
    def subgroup_size(self) -> int:
        """Lanes of a subgroup, as a kernel on this device sees them; 1 without subgroups."""
        if self._subgroup_size is None:
            self._subgroup_size = 1
            if self.has_subgroups:
                recording, out = Recording(self), self.buffer(4)
                recording.dispatch(self.pipeline("subgroup_size"), [out], 1)
                self.submit(recording)
                self._subgroup_size = int(self.read(out, np.uint32)[0])
                out.close()
        return self._subgroup_size

    def run(self, job: Callable[[], _T]) -> _T:
        """Run `job` on the device's thread, after the jobs already waiting; returns its result or raises its error."""
        return job() if threading.get_ident() == self._thread_id else self.enqueue(job).result()

    def enqueue(self, job: Callable[[], _T]) -> Future[_T]:
        """Queue `job` for the device's thread, after the jobs already waiting. Raises DeviceError after close()."""
        try:
            return self._thread.submit(job)
        except RuntimeError as error:
            raise DeviceError("the device is closed") from error

    def buffer(self, contents: ArrayLike | int, *, uniform: bool = False) -> Buffer:
        """Device memory holding an array's bytes, or that many zeros: storage, or a uniform (for `params`)."""
        usage = wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        usage |= wgpu.BufferUsage.UNIFORM if uniform else wgpu.BufferUsage.STORAGE
        array = np.zeros(0, np.uint8) if isinstance(contents, int) else np.ascontiguousarray(contents)
        nbytes = contents if isinstance(contents, int) else array.nbytes
        allocated = max(16, -(-nbytes // 16) * 16)
        if allocated > self.info.limits["max-buffer-size"]:
            raise DeviceError(f"a buffer of {nbytes} bytes is over this device's limit")
        with _as_device_error(f"the device has no memory for a buffer of {nbytes} bytes"):
            made = Buffer(self.handle.create_buffer(size=allocated, usage=usage), nbytes, allocated, self._tally)
        self.write(made, array)
        return made

    def write(self, target: Binding, array: ArrayLike) -> None:
        """Queue a copy of the array's bytes, padded to 4, into the buffer. Later submits see it."""
        view = as_view(target)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if data.nbytes > view.nbytes:
            raise ValueError(f"{data.nbytes} bytes for a buffer of {view.nbytes}")
        if data.nbytes % 4:
            data = np.concatenate([data, np.zeros(-data.nbytes % 4, np.uint8)])
        if data.nbytes:
            with _as_device_error("the device took no data"):
                self.handle.queue.write_buffer(view.buffer.handle, view.offset, data)

    def row_ranges(self, n_rows: int, row_bytes: int) -> list[tuple[int, int]]:
        """Row ranges [start, stop) of a matrix that each fit one aligned binding; several for a large table."""
        step = self.offset_alignment // math.gcd(self.offset_alignment, row_bytes)
        most = self.max_binding // row_bytes // step * step
        if most == 0:
            raise DeviceError(f"a row of {row_bytes} bytes is over this device's binding limit")
        return [(start, min(start + most, n_rows)) for start in range(0, n_rows, most)]

    def pipeline(
        self, name: str, parameters: Parameters = NO_PARAMETERS, constants: Mapping[str, float] = NO_CONSTANTS
    ) -> Pipeline:
        """The kernel's template expanded with `parameters`, its override constants set to `constants`; compiled once.

        Raises DeviceError with the compiler's message.
        """
        label = variant(name, parameters)
        key = (label, tuple(sorted(constants.items())))
        if (found := self._pipelines.get(key)) is not None:
            return found
        with self._lock:
            if label not in self._modules:
                try:
                    source = expand(name, parameters)
                except ShaderError as error:
                    raise DeviceError(str(error)) from error
                self._modules[label] = self.shader_module(source, label)
            module, layout, n_bindings = self._modules[label]
        with _as_device_error(f"kernel {label} with {dict(constants)} does not compile"):
            handle = self.handle.create_compute_pipeline(
                label=label,
                layout=self.handle.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={"module": module, "entry_point": "main", "constants": dict(constants)},
            )
        return self._pipelines.setdefault(key, Pipeline(label, handle, layout, n_bindings))

    def shader_module(self, source: str, name: str) -> tuple[Any, Any, int]:
        """WGSL → (module, bind group layout, number of bindings). Raises DeviceError for invalid WGSL."""
        try:
            kinds = [kind for kind, _ in bindings(source)]
        except ValueError as error:
            raise DeviceError(f"kernel {name}: {error}") from error
        entries = [
            {"binding": number, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}
            for number, kind in enumerate(kinds)
        ]
        with _as_device_error(f"kernel {name} is not valid WGSL"):
            module = self.handle.create_shader_module(label=name, code=source)
            return module, self.handle.create_bind_group_layout(entries=entries), len(kinds)

    def bind_group(self, pipeline: Pipeline, views: Sequence[View]) -> Any:
        """The views as bindings 0, 1, 2… of that pipeline."""
        if len(views) != pipeline.n_bindings:
            raise ValueError(f"{pipeline.name} has {pipeline.n_bindings} bindings, {len(views)} given")
        entries = [
            {"binding": i, "resource": {"buffer": v.buffer.handle, "offset": v.offset, "size": v.nbytes}}
            for i, v in enumerate(views)
        ]
        with _as_device_error(pipeline.name):
            return self.handle.create_bind_group(layout=pipeline.layout, entries=entries)

    def submit(self, recording: Recording, *, reads: Sequence[Binding] = ()) -> list[NDArray[np.uint8]]:
        """Submit the recording as one command buffer. With `reads`, wait and return the bytes of each, padded to 4."""
        views = [as_view(view) for view in reads]
        sizes = [-(-view.nbytes // 4) * 4 for view in views]
        starts = [0, *itertools.accumulate(sizes)]
        with _as_device_error("the device refused the work"):
            encoder = self.handle.create_command_encoder()
            _replay(encoder, recording.steps)
            if not views:
                self.handle.queue.submit([encoder.finish()])
                return []
            capacity, staging = self._take_staging(starts[-1])
            for view, start, size in zip(views, starts, sizes, strict=False):
                encoder.copy_buffer_to_buffer(view.buffer.handle, view.offset, staging, start, size)
            self.handle.queue.submit([encoder.finish()])
            # NOSYNC: a plain READ would submit another, empty, command buffer first.
            promise = staging.map_async("READ_NOSYNC", 0, starts[-1])
        with _as_device_error("the device was lost"):
            promise.sync_wait()
        mapped = np.frombuffer(staging.read_mapped(copy=False), np.uint8)
        parts = [mapped[start : start + size].copy() for start, size in zip(starts, sizes, strict=False)]
        del mapped
        staging.unmap()
        with self._lock:
            self._staging.setdefault(capacity, []).append(staging)
        return parts

    def read(self, source: Binding, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The bytes of a buffer or view, once all submitted work is done, as a flat array of `dtype`."""
        view = source if isinstance(source, View) else source.view(0, source.nbytes)
        [found] = self.submit(Recording(self), reads=[view])
        return found[: view.nbytes].view(dtype)

    def _take_staging(self, nbytes: int) -> tuple[int, Any]:
        """A mappable buffer of at least nbytes, a returned one if one fits: → (capacity, buffer)."""
        capacity = max(256, 1 << (nbytes - 1).bit_length())
        with self._lock:
            if self._staging.get(capacity):
                return capacity, self._staging[capacity].pop()
        return capacity, self.handle.create_buffer(size=capacity, usage="COPY_DST|MAP_READ")

    def close(self) -> None:
        """Finish the waiting jobs and free everything on the device. Not from a job."""
        if self._handle is not None:
            self._thread.shutdown()
            handle, self._handle = self._handle, None
            self._pipelines.clear()
            self._modules.clear()
            self._staging.clear()
            handle.destroy()


def _replay(encoder: Any, steps: Sequence[Dispatch | Copy]) -> None:
    """Record the steps into a command encoder, one compute pass per series of launches.

    The launches go straight to wgpu-native: a token is dozens of them, and wgpu-py's own calls take 3 times as long.
    Their errors are reported when the encoder finishes. An encoder cannot be submitted twice.
    """
    set_pipeline, set_group = lib.wgpuComputePassEncoderSetPipeline, lib.wgpuComputePassEncoderSetBindGroup
    launch, nothing = lib.wgpuComputePassEncoderDispatchWorkgroups, ffi.NULL
    compute = None
    for step in steps:
        if isinstance(step, Dispatch):
            if compute is None:
                compute = encoder.begin_compute_pass()
                native = compute._internal
            set_pipeline(native, step.pipeline.handle._internal)
            set_group(native, 0, step.group._internal, 0, nothing)
            launch(native, *step.workgroups)
            continue
        if compute is not None:
            compute.end()
            compute = None
        source, target = step.source, step.target
        size = min(source.nbytes, target.nbytes)
        encoder.copy_buffer_to_buffer(source.buffer.handle, source.offset, target.buffer.handle, target.offset, size)
    if compute is not None:
        compute.end()
