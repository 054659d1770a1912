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
from service.models.names import model_candidates
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
    sections = (("target", _target), ("guest", _guest), ("model", _model), ("self-test", _self_test))
    results = [_reported(write, title, section, settings) for title, section in sections]
    return all(results)


def _reported(write: Write, title: str, section: Callable[[Settings], str], settings: Settings) -> bool:
    """Write what `section` finds, or why it fails; whether it succeeds."""
    succeeds = False
    try:
        found, succeeds = section(settings), True
    except InternalError as error:
        found = f"FAILED: {error.in_shell}"
    except (WispError, GuestError, OSError) as error:
        found = f"FAILED. {error}"
    except Exception as error:  # finding any error of a driver or library is this command's purpose
        found = f"FAILED. {type(error).__name__}: {error}"
    write(f"{title:11}{found}\n")
    return succeeds


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


def _target(settings: Settings) -> str:
    asked = settings.target
    with contextlib.suppress(WispError):  # the model's own line reports what is wrong with it
        asked = wanted_target(model_candidates(settings)[0], asked)
    target = choose_target(asked)
    return f"{asked} means {target.name}. {target.reason}"


def _guest(settings: Settings) -> str:
    started = time.perf_counter()
    with Guest(GUEST_WASM, cache_folder=user_cache_folder()) as guest:
        compiled = time.perf_counter()
        guest.instantiate()  # the first one prepares what all others share
        prepared = time.perf_counter()
        for _ in range(N_INSTANCES):
            guest.instantiate()
        instance_s = (time.perf_counter() - prepared) / N_INSTANCES
    return (
        f"{GUEST_WASM.stat().st_size} bytes, imports as expected, ready in {(compiled - started) * 1e3:.0f} ms, "
        f"an instance in {instance_s * 1e6:.0f} µs"
    )


def _model(settings: Settings) -> str:
    spec = Engine(settings).read().spec  # not the first choice if that is damaged
    return f"{spec.name}, from {spec.weights}"


def _self_test(settings: Settings) -> str:
    started = time.perf_counter()
    engine = Engine(settings, cache_folder=user_cache_folder())
    try:
        transcriber = engine.load()
        loaded = time.perf_counter()
        engine.prove(transcriber)
        first = time.perf_counter()
        engine.prove(transcriber)
        second = time.perf_counter()
        target = transcriber.model.target.name
    finally:
        engine.close()
    return (
        f"passed on the {target} target: loaded in {loaded - started:.2f} s, a second of sound transcribed "
        f"in {first - loaded:.2f} s, again in {second - first:.2f} s"
    )
