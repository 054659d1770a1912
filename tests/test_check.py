"""The check of the kernels' texts: these kernels pass it, and what lacks something is named."""

from kernels import check
from kernels.device import Device


def test_every_kernel_is_valid_documented_and_up_to_date(device: Device) -> None:
    assert check.problems(device) == []


def test_a_kernel_without_its_head_is_reported() -> None:
    source = "// y = 2x\n//   x  (n,) f32  in\n@group(0) @binding(0) var<storage, read> x: array<f32>;\n"
    source += "@group(0) @binding(1) var<storage, read_write> y: array<f32>;\n"
    assert check.head_problems(source) == [
        "its head does not end with the dispatch size",
        "its head has no line for the binding y",
    ]
