"""Work for a device: buffers and views of them, compiled kernels, and recordings of their launches."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MAX_WORKGROUPS = 65_535  # of a dispatch, in each dimension


class Tally:
    """The bytes of all open buffers of one device."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self.lock = threading.RLock()  # reentrant: garbage collection may close other buffers


class Buffer:
    """Device memory. `nbytes` is the requested size; the allocation is rounded up to 16 bytes."""

    def __init__(self, handle: Any, nbytes: int, allocated: int, tally: Tally) -> None:
        self._handle = handle
        self.nbytes = nbytes
        self.allocated = allocated
        self._tally = tally
        with tally.lock:
            tally.held_bytes += allocated

    def __del__(self) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """wgpu's buffer. Raises ValueError after close()."""
        if self._handle is None:
            raise ValueError("the buffer is closed")
        return self._handle

    def view(self, offset: int = 0, nbytes: int | None = None) -> "View":
        """A part of it. A binding's offset must be a multiple of `Device.offset_alignment`."""
        return View(self, offset, self.allocated - offset if nbytes is None else nbytes)

    def close(self) -> None:
        """Release the memory; it is freed once no recording is bound to it. Idempotent.

        Not destroyed immediately: submitting a recording bound to a destroyed buffer makes wgpu-native end the process.
        """
        with self._tally.lock:
            if self._handle is not None:
                self._handle = None
                self._tally.held_bytes -= self.allocated


@dataclass(frozen=True)
class View:
    """Bytes [offset, offset + nbytes) of a buffer, as a binding or a range to read, write or copy."""

    buffer: Buffer
    offset: int
    nbytes: int


Binding = Buffer | View


def as_view(binding: Binding) -> View:
    """The binding as a view; for a whole buffer, of its entire allocation."""
    return binding if isinstance(binding, View) else binding.view()


@dataclass(frozen=True)
class Pipeline:
    """A compiled kernel. `name` is the variant's: decoder_ln_qkv_subgroup_4."""

    name: str
    handle: Any
    layout: Any
    n_bindings: int


@dataclass(frozen=True)
class Dispatch:
    """One launch: the pipeline, its bind group, the number of workgroups. `views` keeps the buffers alive."""

    pipeline: Pipeline
    group: Any
    workgroups: tuple[int, int, int]
    views: tuple[View, ...]


@dataclass(frozen=True)
class Copy:
    """One copy between buffers."""

    source: View
    target: View


class Binder(Protocol):
    """Makes a recording's bind groups: a device, or buffers that keep theirs."""

    def bind_group(self, pipeline: Pipeline, views: Sequence[View]) -> Any: ...


class Compiler(Protocol):
    """The part of a device that chooses and compiles kernels."""

    workgroup_memory: int

    def row_ranges(self, n_rows: int, row_bytes: int) -> list[tuple[int, int]]: ...

    def pipeline(
        self, name: str, parameters: Mapping[str, str | int] = ..., constants: Mapping[str, float] = ...
    ) -> Pipeline: ...


class Recording:
    """Launches and copies in order, prepared once, submitted any number of times. Each sees the writes before it."""

    def __init__(self, binder: Binder) -> None:
        self._binder = binder
        self.steps: list[Dispatch | Copy] = []

    @property
    def dispatches(self) -> list[Dispatch]:
        """Its launches without the copies, for counting or for other recordings."""
        return [step for step in self.steps if isinstance(step, Dispatch)]

    def dispatch(self, pipeline: Pipeline, bindings: Sequence[Binding], x: int, y: int = 1, z: int = 1) -> None:
        """Add a launch of x·y·z workgroups over `bindings`, given in the kernel's own order."""
        if max(x, y, z) > MAX_WORKGROUPS or min(x, y, z) < 1:
            raise ValueError(f"{pipeline.name}: ({x}, {y}, {z}) workgroups, but 1 to {MAX_WORKGROUPS} are possible")
        views = tuple(as_view(binding) for binding in bindings)
        self.steps.append(Dispatch(pipeline, self._binder.bind_group(pipeline, views), (x, y, z), views))

    def copy(self, source: Binding, target: Binding) -> None:
        """Add a copy of all of `source` to the start of `target`; offsets and sizes are multiples of 4 bytes."""
        self.steps.append(Copy(as_view(source), as_view(target)))
