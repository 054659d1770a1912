"""Checks every kernel: valid WGSL by itself, its head says what it computes, generated text is as its generator writes.

`python -m kernels.check` says what is wrong, one line each, and exits 1; or that nothing is.
"""

import re
import sys

from kernels import decoder_sources, unroll
from kernels.device import Device, DeviceError, open_device
from kernels.wgsl import KERNELS, bindings


def head_problems(source: str) -> list[str]:
    """What the head comment lacks: what it computes first, a line for every storage binding, the dispatch size last."""
    head: list[str] = []
    for line in source.splitlines():
        if not line.startswith("//"):
            break
        head.append(line)
    problems = [] if head and re.match(r"// \S", head[0]) else ["its head does not begin with what it computes"]
    if not head or not head[-1].startswith("// dispatch ("):
        problems.append("its head does not end with the dispatch size")
    for kind, name in bindings(source):
        if kind != "uniform" and not any(re.match(rf"//   {name}\s+\S", line) for line in head):
            problems.append(f"its head has no line for the binding {name}")
    return problems


def problems(device: Device) -> list[str]:
    """Everything wrong with the kernels, each as "file: what"; compiled by `device`."""
    found: list[str] = []
    paths = sorted(KERNELS.glob("*.wgsl"))
    for path in paths:
        source = path.read_text()
        found += [f"{path.name}: {problem}" for problem in head_problems(source)]
        if unroll.rewrite(source) != source:
            found.append(f"{path.name}: not what `python -m kernels.unroll` writes")
        try:
            device.shader_module(source, path.stem)
        except DeviceError as error:
            found.append(f"{path.name}: {error}")
    for name, source in decoder_sources.sources().items():
        path = KERNELS / name
        if not path.exists() or path.read_text() != source:
            found.append(f"{name}: not what `python -m kernels.decoder_sources` writes")
    return found


def main() -> int:
    """→ the exit status."""
    try:
        device = open_device()
    except DeviceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    found = problems(device)
    device.close()
    for problem in found:
        sys.stderr.write(f"{problem}\n")
    if not found:
        sys.stdout.write(f"{len(list(KERNELS.glob('*.wgsl')))} kernels are valid on {device.info.name}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
