"""Compiles the guest when the image is built, into the server's cache, which makes the server ready a second sooner.

usage: precompile.py FOLDER    the cache folder of the server's user

The code runs on any processor of the architecture, so one image starts equally fast on every machine. A server with
other settings or another wasmtime notices that the code does not fit, and compiles.
"""

import hashlib
import platform
import sys
from pathlib import Path

from wasmtime import Engine, Module

from service.guest.code_cache import CodeCache
from service.guest.runner import engine_config
from service.http.app import GUEST_WASM


def precompile(wasm: bytes, folder: Path) -> None:
    """Store the machine code of `wasm` in `folder`, compiled with the settings of service.guest.runner's engine."""
    config = engine_config()
    config.target = f"{platform.machine()}-unknown-linux-gnu"  # the default is this very processor
    CodeCache(folder).keep(hashlib.sha256(wasm).hexdigest(), bytes(Module(Engine(config), wasm).serialize()))


if __name__ == "__main__":
    precompile(GUEST_WASM.read_bytes(), Path(sys.argv[1]))
