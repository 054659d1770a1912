"""Checks every variant of every kernel: its head says what it computes, and it compiles in naga (wgpu) and in Tint.

`python -m tools.kernels_check` prints a line per problem and exits 1 if there are any. Without Chromium for Tint it
says so and checks the rest; where CI is set in the environment, that is a failure too.
"""

import os
import re
import sys
from collections.abc import Sequence

from kernels.webgpu.device import Device, DeviceError, open_device
from kernels.webgpu.variants import Variant, variants
from kernels.webgpu.wgsl import SHADERS, SHARED, bindings
from tools.tint import NoTint, compile_all


def head_problems(source: str) -> list[str]:
    """What the head comment lacks: the formula first, a line per storage binding, the dispatch last."""
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


def problems(device: Device, kernels: Sequence[Variant]) -> list[str]:
    """The kernels' problems, each as "kernel: problem", and templates that no adapter uses."""
    found: list[str] = []
    for kernel in kernels:
        source = kernel.source()
        found += [f"{kernel.label}: {problem}" for problem in head_problems(source)]
        try:
            device.shader_module(source, kernel.label)
        except DeviceError as error:
            found.append(f"{kernel.label}: {error}")
    used = {SHARED, *(kernel.name for kernel in kernels)}
    return found + [f"{path.name}: no adapter uses it" for path in SHADERS.iterdir() if path.stem not in used]


def main() -> int:
    """→ the exit status."""
    kernels = variants()
    try:
        device = open_device()
    except DeviceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    found = problems(device, kernels)
    device.close()
    passed = [f"{len(kernels)} variants of {len({kernel.name for kernel in kernels})} kernels: naga has no complaint"]
    untested = ""
    try:
        verdict = compile_all(kernels)
    except NoTint as error:
        untested = f"NOT COMPILED IN TINT: {error}"
        sys.stderr.write(f"{untested}\n")
    else:
        found += [f"Tint: {problem}" for problem in verdict.problems]
        passed.append(f"Tint has none either, nor with {verdict.pipelines} pipelines at WebGPU's default limits")
        if verdict.left:
            passed.append(f"not compiled in Tint, whose adapter has no subgroups: {', '.join(verdict.left)}")
    for problem in found:
        sys.stderr.write(f"{problem}\n")
    if not found:
        sys.stdout.write("".join(f"{line}\n" for line in passed))
    return 1 if found or (untested and os.environ.get("CI")) else 0


if __name__ == "__main__":
    sys.exit(main())
