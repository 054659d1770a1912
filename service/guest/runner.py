"""Runs the guest: one WebAssembly module, a fresh instance per run, stopped when its caller cancels it."""

import contextlib
import ctypes
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import wasmtime

from service.guest import wasi_nn
from service.guest.code_cache import CodeCache
from service.guest.lifetime import GuestError, Lifetime, Watchdog
from service.guest.memory import GuestMemory
from service.guest.stdio import GuestStdio, WasiErrno
from service.guest.wasi_nn import U32_MAX, Graph, WasiNn

__all__ = ["Guest", "GuestError"]

WASI = "wasi_snapshot_preview1"
MEMORY_BYTES = 256 * 2**20  # linear memory of one instance, 256 MiB
TABLE_ELEMENTS = 65_536  # of one instance's tables
RESERVED_BYTES = 64 * 2**20  # of address space at first and per growth; wasmtime's default is 4 GiB per instance
GUARD_BYTES = 2**16  # after it; wasmtime's default is 32 MiB
IDLE_LANES = 2  # kept ready for the next runs, each with a copy of the machine code and an open file


class Guest:
    """A guest module, compiled once, that runs in a fresh instance each time. Thread-safe."""

    def __init__(self, wasm: Path, *, memory_bytes: int = MEMORY_BYTES, cache_folder: Path | None = None) -> None:
        """Compile `wasm` and check its imports and exports; GuestError says what is wrong.

        `memory_bytes`: maximum linear memory of one instance. `cache_folder`: where the machine code is kept between
        starts (code_cache.user_cache_folder()); None compiles at every start.
        """
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._watchdog = Watchdog()
        self._closed = False
        engine = wasmtime.Engine(engine_config())
        try:
            self._module = _compile(engine, wasm.read_bytes(), cache_folder)
            _check(self._module)
            self._idle = [_Lane(engine, self._module, memory_bytes)]
        except (wasmtime.WasmtimeError, GuestError) as error:
            raise GuestError(f"{wasm} cannot be a guest: {error}") from None

    def run(
        self,
        argument: Mapping[str, Any],
        stdin: Iterable[bytes],
        graphs: Mapping[str, Graph],
        on_event: Callable[[dict[str, Any]], None],
        check: Callable[[], None],
    ) -> None:
        """Run the guest's `_start` to its end.

        `argument`: its argv[1], as JSON. `stdin`: read as the guest reads, in this thread. `graphs`: available to
        load_by_name. `on_event`: called in this thread with each JSON object that the guest writes to stdout. `check`:
        called often, in two threads; raises to stop the guest. A running host call (a compute, a stdin block) is not
        interrupted, but it is the last one.

        Raises GuestError for a trap, an exit code other than 0, or stdout that isn't JSON objects. Exceptions of
        `stdin`, `on_event` and `check` stop the guest and pass through, with a note of where the guest was.
        """
        with self._lane() as lane, lane.store(["guest", json.dumps(argument)]) as store:
            lifetime = Lifetime(store.engine.increment_epoch, check)
            instance = _Instance(store, GuestStdio(stdin, on_event), WasiNn(graphs), lifetime)
            try:
                lane.execute(instance, self._watchdog)
            finally:
                instance.nn.close()

    def instantiate(self) -> None:
        """Make one fresh instance and drop it: the preparation of every run."""
        with self._lane() as lane, lane.store(["guest", "{}"]) as store:
            lane.instances.instantiate(store)

    def close(self) -> None:
        """Free the compiled module. Running guests finish, later runs are rejected. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for lane in idle:
            lane.close()
        self._watchdog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _lane(self) -> Iterator["_Lane"]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the guest is closed")
            lane = self._idle.pop() if self._idle else None
        if lane is None:
            engine = wasmtime.Engine(engine_config())
            lane = _Lane(engine, wasmtime.Module.deserialize(engine, self._module.serialize()), self._memory_bytes)
        try:
            yield lane
        finally:
            with self._lock:
                is_kept = not self._closed and len(self._idle) < IDLE_LANES
                if is_kept:
                    self._idle.append(lane)
            if not is_kept:
                lane.close()


@dataclass
class _Instance:
    """One running instance: its store, streams, handles and end."""

    store: wasmtime.Store
    stdio: GuestStdio
    nn: WasiNn
    lifetime: Lifetime
    memory: wasmtime.Memory | None = None  # known once the instance exists


class _Lane:
    """The guest prepared on its own engine and lent to one instance at a time.

    An engine's epoch interrupts all code that runs on it. With one engine per run, stopping one cannot affect another,
    and ticks need no counting. A lane costs under a millisecond and a copy of the machine code.
    """

    def __init__(self, engine: wasmtime.Engine, module: wasmtime.Module, memory_bytes: int) -> None:
        self.instance: _Instance | None = None  # the target of the linked functions' calls
        self._engine = engine
        self._memory_bytes = memory_bytes
        self._window = ctypes.c_ubyte * memory_bytes
        self._linker = wasmtime.Linker(engine)
        self._linker.define_wasi()
        # The library's WASI handles everything else: arguments, an empty environment, exit. These replace its streams,
        # which cannot stream, its poll_oneoff, which could sleep past any deadline, and its clocks, which show time.
        self._linker.allow_shadowing = True
        i32 = wasmtime.ValType.i32()
        i64 = wasmtime.ValType.i64()
        for name, parameters, function in (
            ("fd_read", [i32] * 4, partial(self._call, GuestStdio.fd_read)),
            ("fd_write", [i32] * 4, partial(self._call, GuestStdio.fd_write)),
            ("poll_oneoff", [i32] * 4, lambda *_: int(WasiErrno.NOSYS)),
            ("clock_time_get", [i32, i64, i32], partial(self._call, GuestStdio.clock_time_get)),
            ("clock_res_get", [i32, i32], lambda *_: int(WasiErrno.NOSYS)),
        ):
            self._linker.define_func(WASI, name, wasmtime.FuncType(parameters, [i32]), function)
        wasi_nn.define(self._linker, self._enter)
        try:
            self.instances = self._linker.instantiate_pre(module)
        except wasmtime.WasmtimeError:
            self._linker.close()
            raise

    def close(self) -> None:
        """Free the code and the linked functions, which refer back to this lane."""
        self.instances.close()
        self._linker.close()

    @contextlib.contextmanager
    def store(self, argv: list[str]) -> Iterator[wasmtime.Store]:
        """A limited store for one instance, with `argv` and no other access to the outside."""
        store = wasmtime.Store(self._engine)
        try:
            store.set_limits(
                memory_size=self._memory_bytes, table_elements=TABLE_ELEMENTS, instances=1, tables=1, memories=1
            )
            store.set_epoch_deadline(1)
            wasi = wasmtime.WasiConfig()
            wasi.argv = argv
            store.set_wasi(wasi)
            yield store
        finally:
            store.close()

    def execute(self, instance: _Instance, watchdog: Watchdog) -> None:
        """Instantiate and run `_start`; raises as `Guest.run` does."""
        self.instance, failure = instance, None
        try:
            with watchdog.watching(instance.lifetime):
                exports = self.instances.instantiate(instance.store).exports(instance.store)
                memory, start = exports["memory"], exports["_start"]
                assert isinstance(memory, wasmtime.Memory) and isinstance(start, wasmtime.Func)  # checked by _check
                instance.memory = memory
                start(instance.store)
        except wasmtime.ExitTrap as error:
            failure = f"the guest ended with exit code {error.code}" if error.code else None
        except wasmtime.Trap as error:
            failure = f"the guest trapped: {error.message.strip()}"
        except wasmtime.WasmtimeError as error:
            failure = f"the guest could not run: {str(error).strip()}"
        finally:
            self.instance = None
        if failure is None and instance.lifetime.stopped_by is None:
            instance.stdio.finish()
        else:
            raise _verdict(instance, failure)

    def _memory(self, instance: _Instance) -> GuestMemory | None:
        if instance.memory is None:
            return None
        length = instance.memory.data_len(instance.store)
        if length == 0:
            return GuestMemory(memoryview(b""))
        address = ctypes.addressof(instance.memory.data_ptr(instance.store).contents)
        return GuestMemory(memoryview(self._window.from_address(address)).cast("B")[:length])

    def _enter(self) -> tuple[WasiNn, GuestMemory | None] | None:
        instance = self.instance
        if instance is None or not instance.lifetime.may_go_on():
            return None
        return instance.nn, self._memory(instance)

    def _call(self, call: Callable[..., WasiErrno], *arguments: int) -> int:
        instance = self.instance
        if instance is None or not instance.lifetime.may_go_on():
            return int(WasiErrno.IO)
        memory = self._memory(instance)
        if memory is None:
            return int(WasiErrno.FAULT)
        try:
            return int(call(instance.stdio, memory, *(argument & U32_MAX for argument in arguments)))
        except Exception as error:
            # Raised through the library's trampoline it would end up in a variable that all threads share.
            instance.lifetime.stop(error)
            return int(WasiErrno.IO)


def _verdict(instance: _Instance, failure: str | None) -> Exception:
    """The exception for a run that the host stopped or that failed."""
    reason = instance.lifetime.stopped_by
    lines = [str(reason)] if isinstance(reason, GuestError) else []
    if failure is not None:
        lines.append(failure)
    if instance.nn.last_error is not None:
        lines.append(f"last WASI-NN error: {instance.nn.last_error}")
    if instance.stdio.stderr_tail:
        lines.append(f"stderr: {instance.stdio.stderr_tail}")
    report = "\n".join(lines)
    if reason is None or isinstance(reason, GuestError):
        return GuestError(report)
    reason.add_note(report)
    return reason


def engine_config() -> wasmtime.Config:
    """The settings that the guest's machine code is compiled with."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    # One 32-bit memory of its own: host calls can read no other, and the limits count no other.
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_threads = False
    config.memory_reservation = config.memory_reservation_for_growth = RESERVED_BYTES
    config.memory_guard_size = GUARD_BYTES
    return config


def _compile(engine: wasmtime.Engine, wasm: bytes, cache_folder: Path | None) -> wasmtime.Module:
    if cache_folder is None:
        return wasmtime.Module(engine, wasm)
    cache = CodeCache(cache_folder)
    key = hashlib.sha256(wasm).hexdigest()
    code = cache.find(key)
    if code is not None:
        # Compiled by another version, for another processor or with other settings: the library detects it.
        with contextlib.suppress(wasmtime.WasmtimeError):
            return wasmtime.Module.deserialize(engine, code)
    module = wasmtime.Module(engine, wasm)
    cache.keep(key, bytes(module.serialize()))
    return module


def _check(module: wasmtime.Module) -> None:
    for item in module.imports:
        if item.module not in (WASI, wasi_nn.MODULE):
            raise GuestError(f"it imports {item.module}.{item.name}; a guest has only {WASI} and {wasi_nn.MODULE}")
    exports = {item.name: item.type for item in module.exports}
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise GuestError("it exports no memory named memory")
    start = exports.get("_start")
    if not isinstance(start, wasmtime.FuncType) or start.params or start.results:
        raise GuestError("it exports no function _start without parameters and results")
