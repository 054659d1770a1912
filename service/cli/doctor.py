"""wisp doctor: this machine's devices, what would be served on them and why, and whether an inference works."""

import contextlib
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from service.errors import InternalError, WispError
from service.guest.code_cache import user_cache_folder
from service.guest.runner import Guest, GuestError
from service.http.app import GUEST_WASM, Engine
from service.models.names import choose_model
from service.models.target import choose_target, wanted_target
from service.settings import Settings

LIBRARIES = ("wasmtime", "wgpu", "numpy", "soundfile", "soxr", "tokenizers", "starlette", "uvicorn")
LIMITS = {  # limits that the kernels depend on
    "max-buffer-size": "bytes",
    "max-storage-buffer-binding-size": "bytes",
    "max-compute-workgroup-storage-size": "bytes",
    "max-compute-invocations-per-workgroup": "",
}

N_INSTANCES = 100  # to average their time over

Write = Callable[[str], object]


def examine(settings: Settings, write: Write) -> bool:
    """Write the report section by section; True if a transcription works."""
    write(f"wisp {_version('wisp')}, Python {platform.python_version()}, {platform.platform()}\n")
    write("libraries  " + ", ".join(f"{name} {_version(name)}" for name in LIBRARIES) + "\n")
    _adapters(write)
    _processor(write)
    return all((_target(settings, write), _guest(write), _model(settings, write), _self_test(settings, write)))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _processor(write: Write) -> None:
    from kernels.cpu.native_library import variants

    runnable = variants()
    kernels = f"the C kernels for {runnable[0].upper()}" if runnable else "NumPy, as the C kernels are for x86-64 Linux"
    write(f"processor  the CPU target computes with {kernels}\n")


def _adapters(write: Write) -> None:
    try:
        from kernels.webgpu.device import WANTED_FEATURES, list_adapters

        adapters = list_adapters()
    except Exception as error:  # wgpu without its library, or a broken Vulkan loader: continue the report
        write(f"adapters   none: {error}\n")
        return
    if not adapters:
        write("adapters   none: no Vulkan, Metal or DirectX driver was found\n")
    for adapter in adapters:
        write(f"adapter    {adapter.name}: {adapter.kind}, {adapter.backend}, driver {adapter.driver or 'unnamed'}\n")
        features = (f"{name} {'yes' if name in adapter.features else 'no'}" for name in WANTED_FEATURES)
        write(f"           features: {', '.join(features)}\n")
        for limit, unit in LIMITS.items():
            if limit in adapter.limits:
                write(f"           {limit} {adapter.limits[limit]} {unit}".rstrip() + "\n")


def _target(settings: Settings, write: Write) -> bool:
    asked = settings.target
    with contextlib.suppress(WispError):  # the model's own line reports what is wrong with it
        asked = wanted_target(choose_model(settings), asked)
    try:
        target = choose_target(asked)
    except WispError as error:
        write(f"target     {asked}: FAILED. {error}\n")
        return False
    write(f"target     {asked} means {target.name}. {target.reason}\n")
    return True


def _guest(write: Write) -> bool:
    started = time.perf_counter()
    try:
        with Guest(GUEST_WASM, cache_folder=user_cache_folder()) as guest:
            compiled = time.perf_counter()
            guest.instantiate()  # the first one prepares what all others share
            prepared = time.perf_counter()
            for _ in range(N_INSTANCES):
                guest.instantiate()
            instance_s = (time.perf_counter() - prepared) / N_INSTANCES
    except (GuestError, OSError) as error:
        write(f"guest      FAILED. {error}\n")
        return False
    write(
        f"guest      {GUEST_WASM.stat().st_size} bytes, imports as expected, ready in "
        f"{(compiled - started) * 1e3:.0f} ms, an instance in {instance_s * 1e6:.0f} µs\n"
    )
    return True


def _model(settings: Settings, write: Write) -> bool:
    try:
        spec = Engine(settings).read().spec  # not the first choice if that is damaged
    except WispError as error:
        write(f"model      FAILED. {error}\n")
        return False
    write(f"model      {spec.name}, from {spec.weights}\n")
    return True


def _self_test(settings: Settings, write: Write) -> bool:
    started = time.perf_counter()
    engine = None
    try:
        engine = Engine(settings, cache_folder=user_cache_folder())
        transcriber = engine.load()
        loaded = time.perf_counter()
        engine.prove(transcriber)
        first = time.perf_counter()
        engine.prove(transcriber)
        second = time.perf_counter()
        target = transcriber.model.target.name
    except InternalError as error:
        write(f"self-test  FAILED: {error.in_shell}\n")
        return False
    except WispError as error:
        write(f"self-test  FAILED. {error}\n")
        return False
    except Exception as error:  # finding any error of a driver or library is this command's purpose
        write(f"self-test  FAILED. {type(error).__name__}: {error}\n")
        return False
    finally:
        if engine is not None:
            engine.close()
    write(
        f"self-test  passed on the {target} target: loaded in {loaded - started:.2f} s, a second of sound transcribed "
        f"in {first - loaded:.2f} s, again in {second - first:.2f} s\n"
    )
    return True
