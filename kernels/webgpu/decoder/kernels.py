"""The decoder's compiled kernels and their constants for a model's dims, all made when the model loads.

Every multiplying kernel has a variant for one row of activations and one for four: a token of one sequence uses the
first, a prompt or several sequences the second. Both are compiled before the first request, on several threads.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from kernels.checkpoints.load import Dimensions
from kernels.webgpu.device import Device
from kernels.webgpu.recording import Binding, Compiler, Pipeline, Recording
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP, Parameters, Reduction

VEC4_BYTES = 16
ROWS = (1, 4)  # rows of activations that a workgroup multiplies by the weights it loads
OUTPUTS = 4  # neighbouring outputs that an invocation sums together


@dataclass(frozen=True)
class Tiling:
    """How the work is divided, for a kind of adapter. The two reductions are in shaders/shared.wgsl."""

    reduction: Reduction
    lanes: int  # invocations that share a row of weights and add their sums in workgroup memory; 1 if SUBGROUP
    workgroup: int  # invocations of a matrix-vector workgroup: the subgroup size if SUBGROUP
    workgroups: int  # per matrix-vector launch, about: each one repeats the layer norm
    logits_tiles: int  # tiles of the token table per workgroup
    attention_workgroup: int
    splits: int  # of the audio in cross-attention
    steps_per_submit: int

    @classmethod
    def of(cls, device: Device) -> "Tiling":
        """The tiling for the adapter: measured for lavapipe, from published kernels for hardware."""
        if device.info.is_software and device.has_subgroups:
            return cls.of_subgroup(device.subgroup_size)
        return HARDWARE

    @classmethod
    def of_subgroup(cls, size: int) -> "Tiling":
        """For a software adapter with subgroups of `size` lanes."""
        return cls(SUBGROUP, 1, size, 16, 128 // size, size, 1, 2)

    @property
    def per_tile(self) -> int:
        """Outputs that a workgroup computes together."""
        return OUTPUTS * self.workgroup // self.lanes

    def tiles(self, n_out: int) -> int:
        """Tiles of n_out outputs per workgroup, for about `workgroups` of them."""
        return max(1, n_out // (self.per_tile * self.workgroups))

    def constants(self) -> dict[str, float]:
        return {"LANES": self.lanes, "WORKGROUP": self.workgroup}


HARDWARE = Tiling(WORKGROUP, 64, 256, 1024, 4, 64, 24, 16)


class Part(NamedTuple):
    """Tokens [start, stop) of the token table, which fit a binding, and their first entry in `partials`."""

    start: int
    stop: int
    first_group: int


@dataclass(frozen=True)
class _Kernel:
    """A kernel with its parameters and constants, launched `across` by ceil(rows / tile_rows) by `splits`."""

    name: str
    parameters: Parameters
    constants: Mapping[str, float]
    across: int
    tile_rows: int
    splits: int = 1


class DecoderKernels:
    """Every pipeline of a model's decoder, by use. Raises DeviceError if one does not compile."""

    def __init__(self, device: Compiler, dims: Dimensions, tiling: Tiling) -> None:
        self._device, self._dims, self._tiling = device, dims, tiling
        self.parts: list[Part] = []
        self.n_groups = 0  # entries in `partials`, one per workgroup of the logits
        for start, stop in device.row_ranges(dims.n_vocab, 2 * dims.n_text_state):
            self.parts.append(Part(start, stop, self.n_groups))
            self.n_groups += -(-(stop - start) // (tiling.per_tile * tiling.logits_tiles))
        self._kernels: dict[tuple[str, int], _Kernel] = {}
        self._add_layer()
        self._add_tokens()
        with ThreadPoolExecutor() as threads:
            made = {
                use: threads.submit(device.pipeline, kernel.name, kernel.parameters, kernel.constants)
                for use, kernel in self._kernels.items()
            }
        self._pipelines: dict[tuple[str, int], Pipeline] = {use: future.result() for use, future in made.items()}

    def launch(self, recording: Recording, use: str, n_rows: int, bindings: Sequence[Binding]) -> None:
        """Record the kernel for that `use` over n_rows rows."""
        key = use, ROWS[n_rows > 1]
        kernel = self._kernels[key]
        rows = -(-n_rows // kernel.tile_rows)
        recording.dispatch(self._pipelines[key], bindings, kernel.across, rows, kernel.splits)

    def _add_layer(self) -> None:
        dims, splits = self._dims, self._tiling.splits
        n, head8 = dims.n_text_state, dims.n_text_state // dims.n_text_head // 8
        scale = (n // dims.n_text_head) ** -0.5
        self._add_product("qkv", "ln_qkv", n, 3 * n, {"SCALE": scale, "N_TEXT_CTX": dims.n_text_ctx})
        self._add_attention("self", dims.n_text_ctx)
        self._add_product("out", "linear_residual", n, n)
        self._add_product("cross_query", "ln_linear", n, n, {"SCALE": scale})
        self._add_attention("cross", dims.n_audio_ctx)
        self._add_product("cross_out", "combine_residual", n, n, {"SPLITS": splits, "HEAD8": head8})
        self._add_product("fc1", "ln_linear", n, 4 * n, {"GELU": 1})
        self._add_product("fc2", "linear_residual", 4 * n, n)

    def _add_tokens(self) -> None:
        dims, tiling = self._dims, self._tiling
        n, sizes = dims.n_text_state, {"N_VOCAB": dims.n_vocab, "N_GROUPS": self.n_groups}
        own: dict[str, float] = {"WORKGROUP": tiling.attention_workgroup, "N_IN": n}
        for start, stop, first_group in self.parts:
            place = {"FIRST": start, "FIRST_GROUP": first_group, **sizes}
            self._add_product(f"logits {start}", "ln_logits", n, stop - start, place, tiling.logits_tiles)
            for rows in ROWS:
                constants = {**own, "FIRST": start, "N_RANGE": stop - start}
                self._kernels[f"embed {start}", rows] = _Kernel("decoder_embed", {}, constants, 1, 1)
        own |= {**sizes, "N_RANGE": self.parts[0].stop, "N_TEXT_CTX": dims.n_text_ctx}
        self._kernels["choose", 1] = _Kernel("decoder_choose", {}, own, 1, 1)

    def _add_product(
        self,
        use: str,
        kernel: str,
        n_in: int,
        n_out: int,
        own: Mapping[str, float] | None = None,
        tiles: int | None = None,
    ) -> None:
        t = self._tiling
        tiles = tiles or t.tiles(n_out)
        constants = {**t.constants(), "TILES": tiles, "N_IN": n_in, "N_OUT": n_out, **(own or {})}
        sums = t.workgroup * VEC4_BYTES if t.reduction == WORKGROUP else 0
        for rows in ROWS:
            staged = 0 if kernel == "linear_residual" else rows * n_in * 4
            tile_rows = self._tile_rows(rows, staged + sums)
            parameters: Parameters = {"reduction": t.reduction, "rows": tile_rows}
            across = -(-n_out // (t.per_tile * tiles))
            self._kernels[use, rows] = _Kernel(f"decoder_{kernel}", parameters, constants, across, tile_rows)

    def _add_attention(self, use: str, n_ctx: int) -> None:
        t, dims = self._tiling, self._dims
        splits = t.splits if use == "cross" else 1
        constants: dict[str, float] = {"WORKGROUP": t.attention_workgroup, "N_HEAD": dims.n_text_head, "N_CTX": n_ctx}
        constants |= {"HEAD8": dims.n_text_state // dims.n_text_head // 8, "SPLITS": splits}
        scores = -(-n_ctx // splits // 4) * VEC4_BYTES
        sums = t.attention_workgroup * VEC4_BYTES if t.reduction == WORKGROUP else 0
        mixes = 2 * t.attention_workgroup * VEC4_BYTES
        for rows in ROWS:
            tile_rows = 1 if use == "self" else self._tile_rows(rows, rows * scores + sums + mixes)
            parameters: Parameters = {"over": use, "reduction": t.reduction, "rows": tile_rows}
            kernel = _Kernel("decoder_attention", parameters, constants, dims.n_text_head, tile_rows, splits)
            self._kernels[f"{use}_attention", rows] = kernel

    def _tile_rows(self, rows: int, memory: int) -> int:
        """Rows per workgroup: one if the adapter's workgroup memory is too small for more."""
        return rows if memory <= self._device.workgroup_memory else 1
