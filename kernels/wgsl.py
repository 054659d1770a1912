"""The text of a kernel, `kernels/<name>.wgsl`: found by name, and its bindings read from it."""

import re
from pathlib import Path

KERNELS = Path(__file__).parent
_LANES = re.compile(r"const LANES = \d+u;")
_BINDING = re.compile(r"@group\(0\)\s*@binding\((\d+)\)\s*var<\s*(uniform|storage)\s*(?:,\s*(\w+)\s*)?>\s*(\w+)")
_KINDS = {
    ("uniform", ""): "uniform",
    ("storage", ""): "read-only-storage",
    ("storage", "read"): "read-only-storage",
    ("storage", "read_write"): "storage",
}


def read_kernel(name: str, lanes: int | None = None) -> str:
    """Its WGSL, with `const LANES = …` replaced by `lanes`. Raises OSError where there is no such file."""
    source = (KERNELS / f"{name}.wgsl").read_text()
    return source if lanes is None else _LANES.sub(f"const LANES = {lanes}u;", source)


def bindings(source: str) -> list[tuple[str, str]]:
    """(kind, name) of binding 0, 1, 2…, kinds as WebGPU's layouts name them. ValueError if a number is missing."""
    found = sorted(
        (int(number), _KINDS[space, access], name) for number, space, access, name in _BINDING.findall(source)
    )
    numbers = [number for number, _, _ in found]
    if numbers != list(range(len(found))):
        raise ValueError(f"bindings {numbers} are not 0, 1, 2…")
    return [(kind, name) for _, kind, name in found]
