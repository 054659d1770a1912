"""The target a model runs on, GPU or CPU, and the reason."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from service.errors import DeviceUnavailable
from service.models.names import ModelSpec, TargetName

if TYPE_CHECKING:  # it imports wgpu
    from kernels.webgpu.device import AdapterInfo

GPU_NODES = ("dri/*", "nvidia*", "dxg", "kgsl*", "mali*")  # below /dev, opened by Linux's hardware Vulkan drivers


@dataclass(frozen=True)
class Target:
    """Where kernels run, and the reason in one sentence."""

    name: Literal["gpu", "cpu"]
    reason: str
    is_software: bool = False  # a GPU driver that computes on the CPU


def wanted_target(spec: ModelSpec, target: str) -> str:
    """`target` if it is gpu or cpu, else the target of the model's preload string, else auto."""
    return spec.target or target if target == "auto" else target


def choose_target(asked: str) -> Target:
    """auto → the GPU if an adapter is hardware, else the CPU; gpu and cpu → as requested. `cpu` never loads wgpu.

    Raises DeviceUnavailable for `gpu` without an adapter.
    """
    if asked not in get_args(TargetName):
        raise DeviceUnavailable(f"The target '{asked}' is not one of {', '.join(get_args(TargetName))}.")
    if asked == "cpu":
        return Target("cpu", "The CPU was requested.")
    if asked == "auto" and not may_have_hardware():
        return Target("cpu", "This machine has no graphics device (no device node under /dev).")
    try:
        from kernels.webgpu.device import list_adapters

        adapters = list_adapters()
    except Exception as error:  # wgpu without its library, or a failing Vulkan loader: either way no adapter
        return _target_among(asked, (), f" ({error})")
    return _target_among(asked, adapters, "")


def may_have_hardware() -> bool:
    """False if no driver could find a GPU. Asking wgpu takes half a second, and 70 MB for the software adapter."""
    return sys.platform != "linux" or any(True for pattern in GPU_NODES for _ in Path("/dev").glob(pattern))


def _target_among(asked: str, adapters: "Sequence[AdapterInfo]", trouble: str) -> Target:
    """The choice for `auto` and `gpu` among adapters, the best one first."""
    if not adapters:
        if asked == "auto":
            return Target("cpu", f"No WebGPU adapter was found{trouble}.")
        raise DeviceUnavailable(
            f"The target gpu was requested, but no WebGPU adapter was found{trouble}: install a Vulkan driver "
            "(a software one is in mesa-vulkan-drivers, with libvulkan1), or use --target cpu."
        )
    best = adapters[0]
    if asked == "gpu":
        reason = f"The GPU was requested; the best adapter is {best.name} ({best.kind})."
        return Target("gpu", reason, best.is_software)
    if best.is_software:
        return Target("cpu", f"The only WebGPU adapter is software ({best.name}), which is slower than the CPU target.")
    return Target("gpu", f"The machine has a hardware adapter: {best.name} ({best.kind}).")
