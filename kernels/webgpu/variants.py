"""Every variant of every kernel that an adapter can get, with a model's constants.

`python -m kernels.webgpu.variants FOLDER` writes them all, for a reader or a profiler.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kernels.checkpoints.load import Dimensions
from kernels.webgpu.decoder.kernels import HARDWARE, DecoderKernels, Tiling
from kernels.webgpu.encoder.program import SUBGROUP_SIZES, compiled
from kernels.webgpu.recording import Pipeline
from kernels.webgpu.wgsl import Parameters, expand, variant

DEFAULT_WORKGROUP_MEMORY = 16_384  # bytes: WebGPU's guaranteed minimum
MORE_WORKGROUP_MEMORY = 65_536  # enough for every kernel to take 4 rows
# The smallest and the largest Whisper: their sizes decide how many rows fit into workgroup memory.
TINY_EN = Dimensions(80, 1500, 384, 6, 4, 51_864, 448, 384, 6, 4)
LARGE_V3 = Dimensions(128, 1500, 1280, 20, 32, 51_866, 448, 1280, 20, 32)


@dataclass(frozen=True)
class Variant:
    """One WGSL text. `constants`: of the largest model that uses it at WebGPU's default limits; None if none does."""

    name: str
    parameters: Parameters
    constants: Mapping[str, float] | None

    @property
    def label(self) -> str:
        return variant(self.name, self.parameters)

    def source(self, *, enable_subgroups: bool = False) -> str:
        return expand(self.name, self.parameters, enable_subgroups=enable_subgroups)


@dataclass
class _Adapter:
    """Stands in for a device: records what it should compile. A whole token table fits one binding."""

    workgroup_memory: int
    asked: list[tuple[str, Parameters, Mapping[str, float]]] = field(default_factory=list)

    def row_ranges(self, n_rows: int, row_bytes: int) -> list[tuple[int, int]]:
        return [(0, n_rows)]

    def pipeline(
        self, name: str, parameters: Parameters | None = None, constants: Mapping[str, float] | None = None
    ) -> Pipeline:
        self.asked.append((name, parameters or {}, constants or {}))
        return Pipeline(name, None, None, 0)


def variants() -> list[Variant]:
    """Each once, by label."""
    usual, roomy = _Adapter(DEFAULT_WORKGROUP_MEMORY), _Adapter(MORE_WORKGROUP_MEMORY)
    for adapter in (usual, roomy):
        adapter.pipeline("subgroup_size")
        for lanes in (None, *SUBGROUP_SIZES):
            compiled(adapter, lanes)
        for dims in (TINY_EN, LARGE_V3):
            for tiling in (HARDWARE, *(Tiling.of_subgroup(size) for size in SUBGROUP_SIZES)):
                DecoderKernels(adapter, dims, tiling)
    found = {variant(name, parameters): Variant(name, parameters, None) for name, parameters, _ in roomy.asked}
    found |= {variant(asked[0], asked[1]): Variant(*asked) for asked in usual.asked}
    return [found[label] for label in sorted(found)]


def main() -> None:
    """Write every variant into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for each in variants():
        (folder / f"{each.label}.wgsl").write_text(each.source())


if __name__ == "__main__":
    main()
