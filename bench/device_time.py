"""Measures each kernel of a window and of a token by the device's clock, and how close it is to the device's limit.

A timestamp is taken before and after every launch, each in its own compute pass. This makes a launch slightly more
expensive, but its own time is measured on the device. A kernel's limit is its arithmetic at the device's peak of
multiply-adds, or its bytes at the peak of reading, whichever takes longer; two plain kernels here measure both peaks.
The bytes are those of all bound buffers, an upper bound: a launch that reads only a part can seem to exceed the limit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines import Files
from bench.wisp import Wisp
from kernels.checkpoints.load import Dimensions
from kernels.webgpu.device import Device
from kernels.webgpu.recording import Binding, Copy, Recording, as_view

TOKENS = 8  # averaged for a token's figures
PEAK_INVOCATIONS, PEAK_STEPS = 1 << 16, 256
PEAK_BYTES = 1 << 26
MULTIPLY_ADDS = """
@group(0) @binding(0) var<storage, read_write> out: array<vec4f>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
  var a = vec4f(f32(id.x)); var b = a + 1.0; var c = a + 2.0; var d = a + 3.0;
  let m = vec4f(0.999);
  for (var i = 0u; i < STEPSu; i++) { a = fma(a, m, m); b = fma(b, m, m); c = fma(c, m, m); d = fma(d, m, m); }
  out[id.x] = a + b + c + d;
}""".replace("STEPS", str(PEAK_STEPS))
READS = """
@group(0) @binding(0) var<storage, read_write> data: array<vec4f>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
  var sum = vec4f();
  for (var i = 0u; i < 16u; i++) { sum += data[id.x + i * INVOCATIONSu]; }
  if (sum.x == 1.5) { data[id.x] = sum; }
}""".replace("INVOCATIONS", str(PEAK_BYTES // 16 // 16))


@dataclass
class KernelTime:
    """All launches of one kernel in one window or token."""

    launches: float = 0
    seconds: float = 0.0
    nbytes: float = 0.0

    def as_row(self, flops: float, peak: dict[str, float]) -> dict[str, float]:
        """For the report: launches, µs, MB, GFLOP and the share of the device's limit."""
        limit = max(flops / peak["flops"], self.nbytes / peak["bytes"])
        return {
            "launches": self.launches,
            "us": self.seconds * 1e6,
            "mb": self.nbytes / 1e6,
            "gflop": flops / 1e9,
            "of_limit": limit / self.seconds if self.seconds else 0.0,
        }


class TimedSubmits:
    """Replaces a device's `submit`: the same work, each launch in its own pass between two timestamps."""

    def __init__(self, device: Device) -> None:
        self.device, self.submit = device, device.submit
        self.kernels: dict[str, KernelTime] = {}

    def __call__(self, recording: Recording, *, reads: Sequence[Binding] = ()) -> Any:
        launches = recording.dispatches
        if launches:
            timed = TimedPasses(self.device, len(launches))
            for step in recording.steps:
                if isinstance(step, Copy):
                    timed.copy(step)
                else:
                    timed.launch(step.pipeline.handle, step.group, step.workgroups)
            for launch, seconds in zip(launches, timed.submit(), strict=True):
                kernel = self.kernels.setdefault(launch.pipeline.name, KernelTime())
                kernel.launches += 1
                kernel.seconds += seconds
                kernel.nbytes += sum(as_view(view).nbytes for view in launch.views)
        return self.submit(Recording(self.device), reads=reads)


class TimedPasses:
    """One command buffer of `count` launches, each in its own pass between two timestamps."""

    def __init__(self, device: Device, count: int) -> None:
        self.handle, self.count, self.n_launched = device.handle, count, 0
        self.queries = self.handle.create_query_set(type="timestamp", count=2 * count)
        self.encoder = self.handle.create_command_encoder()

    def copy(self, step: Copy) -> None:
        source, target = step.source, step.target
        places = (source.buffer.handle, source.offset, target.buffer.handle, target.offset)
        self.encoder.copy_buffer_to_buffer(*places, min(source.nbytes, target.nbytes))

    def launch(self, pipeline: Any, group: Any, workgroups: Sequence[int]) -> None:
        first = 2 * self.n_launched
        compute = self.encoder.begin_compute_pass(
            timestamp_writes={
                "query_set": self.queries,
                "beginning_of_pass_write_index": first,
                "end_of_pass_write_index": first + 1,
            }
        )
        compute.set_pipeline(pipeline)
        compute.set_bind_group(0, group)
        compute.dispatch_workgroups(*workgroups)
        compute.end()
        self.n_launched += 1

    def submit(self) -> list[float]:
        """Seconds of each launch."""
        resolved = self.handle.create_buffer(size=16 * self.count, usage="QUERY_RESOLVE|COPY_SRC")
        self.encoder.resolve_query_set(self.queries, 0, 2 * self.count, resolved, 0)
        self.handle.queue.submit([self.encoder.finish()])
        times = np.frombuffer(self.handle.queue.read_buffer(resolved), np.uint64).reshape(-1, 2)
        return [(end - begin) / 1e9 for begin, end in times.tolist()]  # WebGPU's timestamps are nanoseconds


def _peaks(device: Device) -> dict[str, float]:
    """{"flops", "bytes"} a second: the best of five runs of the two plain kernels."""
    handle = device.handle

    def seconds(code: str, nbytes: int, invocations: int) -> float:
        buffer = handle.create_buffer(size=nbytes, usage="STORAGE")
        module = handle.create_shader_module(code=code)
        pipeline = handle.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": "main"})
        entries = [{"binding": 0, "resource": {"buffer": buffer, "offset": 0, "size": nbytes}}]
        group = handle.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
        timed = TimedPasses(device, 5)
        for _ in range(timed.count):
            timed.launch(pipeline, group, (invocations // 64,))
        return min(timed.submit())

    operations = PEAK_INVOCATIONS * PEAK_STEPS * 4 * 4 * 2  # multiplications and additions of 4 vectors of 4
    return {
        "flops": operations / seconds(MULTIPLY_ADDS, 16 * PEAK_INVOCATIONS, PEAK_INVOCATIONS),
        "bytes": PEAK_BYTES / seconds(READS, PEAK_BYTES, PEAK_BYTES // 16 // 16),
    }


def _flops(dims: Dimensions) -> dict[str, float]:
    """Multiplications and additions of a window, by the kernel name's prefix; a token is limited by its bytes."""
    n_ctx, n_state = dims.n_audio_ctx, dims.n_audio_state
    square = 2.0 * n_ctx * n_state * n_state  # of a square linear map over the window
    return {
        # out, the MLP's second map, the second convolution
        "encoder_product_residual": (dims.n_audio_layer * 5 + 3) * square,
        "encoder_norm_product": dims.n_audio_layer * 7 * square,  # queries, keys and values, and the MLP's first map
        # the first convolution, cross-attention's keys and values
        "encoder_product": 12.0 * n_ctx * dims.n_mels * n_state + dims.n_text_layer * 2 * square,
        "encoder_attention": dims.n_audio_layer * 4.0 * n_ctx * n_ctx * n_state,
    }


def measure_kernels(files: Files, clip: Path) -> dict[str, Any]:
    """{"adapter", "encode": {kernel: figures}, "token": …}; {} without an adapter that has timestamps."""
    from service.errors import WispError

    try:
        wisp = Wisp(files, clip, "gpu")
    except WispError:
        return {}
    model = wisp.transcriber.model
    device: Device = model.graphs[f"{model.name}/encoder"].program.device  # type: ignore[attr-defined]
    if "timestamp-query" not in device.handle.features:
        return {}
    timed, peak = TimedSubmits(device), _peaks(device)

    def measured(call: Callable[[], object], count: int, flops: dict[str, float]) -> dict[str, dict[str, float]]:
        timed.kernels = {}
        call()
        rows = {}
        for name, k in timed.kernels.items():
            work = next((flops[start] for start in flops if name.startswith(start)), 0.0)
            rows[name] = KernelTime(k.launches / count, k.seconds / count, k.nbytes / count).as_row(work, peak)
        return rows

    wisp.encode(), wisp.token()
    wisp.rules[0] = TOKENS
    device.submit = timed  # type: ignore[method-assign]
    return {
        "adapter": device.info.name,
        "gflop_per_s": peak["flops"] / 1e9,
        "gb_per_s": peak["bytes"] / 1e9,
        "encode": measured(wisp.encode, 1, _flops(model.dims)),
        "token": measured(wisp.token, TOKENS, {}),
    }
