"""The check of the kernels: ours pass it, it covers every variant, and it names each fault."""

from pathlib import Path
from typing import Any

import pytest

from kernels.webgpu import variants as variants_module
from kernels.webgpu.decoder.kernels import HARDWARE, DecoderKernels, Tiling
from kernels.webgpu.decoder.state import ROW, SEQUENCE, STATE
from kernels.webgpu.device import Device
from kernels.webgpu.encoder.program import choose_reduction, compiled
from kernels.webgpu.variants import LARGE_V3, TINY_EN, Variant, variants
from kernels.webgpu.wgsl import SUBGROUP, Parameters, expand, variant
from tools import kernels_check, tint


class Written(Variant):
    """A kernel whose text doesn't come from a template."""

    def source(self, *, enable_subgroups: bool = False) -> str:
        return self.name


def test_every_variant_is_valid_in_naga_and_has_its_head(device: Device) -> None:
    assert kernels_check.problems(device, variants()) == []


def test_faults_are_named(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "left.wgsl").touch()
    monkeypatch.setattr(kernels_check, "SHADERS", tmp_path)
    source = "// y = 2x\n//   x  (n,) f32  in\n@group(0) @binding(0) var<storage, read> x: array<f32>;\n"
    source += "@group(0) @binding(1) var<storage, read_write> y: array<f32>;\nfn f() -> f32 { return 1u; }\n"
    head, binding, invalid, unused = kernels_check.problems(device, [Written(source, {}, None)])
    assert head.endswith("its head does not end with the dispatch size")
    assert binding.endswith("its head has no line for the binding y")
    assert "is not valid WGSL" in invalid
    assert unused == "left.wgsl: no adapter uses it"


def test_every_kernel_that_a_model_compiles_here_is_among_them(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {kernel.label for kernel in variants()}
    asked = set[str]()

    def note(name: str, parameters: Parameters | None = None, constants: Any = None) -> None:
        asked.add(variant(name, parameters or {}))

    subgroup = device.subgroup_size if choose_reduction(device) == SUBGROUP else None
    own_tiling = Tiling.of(device)
    monkeypatch.setattr(device, "pipeline", note)
    for lanes in (None, subgroup):
        compiled(device, lanes)
    for tiling in (HARDWARE, own_tiling):
        for dims in (TINY_EN, LARGE_V3):
            for memory in (device.workgroup_memory, 16_384):
                monkeypatch.setattr(device, "workgroup_memory", memory)
                DecoderKernels(device, dims, tiling)
    assert len(asked) > 15 and asked <= known


def test_variants_are_written_as_plain_wgsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["variants", str(tmp_path / "out")])
    variants_module.main()
    written = {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {kernel.label for kernel in variants()}
    assert not [name for name, text in written.items() if "{%" in text or "{{" in text or "enable subgroups" in text]


def test_the_state_is_laid_out_in_python_as_in_wgsl() -> None:
    source = expand("decoder_embed", {})
    for name, dtype in (("Row", ROW), ("Sequence", SEQUENCE), ("State", STATE)):
        body = source.partition(f"struct {name} {{")[2].partition("\n}")[0]
        fields = [line.split("//")[0].strip(" ,") for line in body.splitlines()]
        types = {"rows": "array<Row, 16>", "sequences": "array<Sequence, 16>"}
        assert [field for field in fields if field] == [f"{n}: {types.get(n, 'u32')}" for n in dtype.names or ()]
    assert (ROW.itemsize, SEQUENCE.itemsize, STATE.itemsize) == (16, 28, 32 + 16 * 16 + 16 * 28)


def test_tint_names_what_it_rejects() -> None:
    if tint.CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    good, invalid = "override N = 1u; @compute @workgroup_size(N) fn main() {}", "fn main() -> u32 { return 1.5; }"
    kernels: list[Variant] = [Written(good, {}, {"N": 256}), Written(good, {}, {"N": 512}), Written(invalid, {}, None)]
    verdict = tint.compile_all([*kernels, *(kernel for kernel in variants() if kernel.name == "subgroup_size")])
    assert verdict.pipelines == 2 and not verdict.left
    too_large, not_wgsl = sorted(verdict.problems, reverse=True)
    assert too_large.startswith(f'{good} with {{"N":512}}: ') and not_wgsl.startswith(f"{invalid}:1: ")


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_a_check_without_tint_says_so_and_fails_in_ci(
    ci: str,
    status: int,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(tint, "CHROMIUM", None)
    monkeypatch.setattr(kernels_check, "variants", list)
    monkeypatch.setattr(kernels_check, "problems", lambda device, kernels: [])
    assert kernels_check.main() == status
    assert "NOT COMPILED IN TINT: Chromium is not installed" in capsys.readouterr().err
