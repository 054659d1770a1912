"""Compiles the guest when the image is built, into the cache where the server looks for it: ready a second sooner.

usage: precompile.py FOLDER    the cache folder of the user that will serve

The code is for any processor of the architecture, so that one image starts as fast on every machine. A server with
other settings, or another wasmtime, sees that the code does not fit, and compiles.
"""

import hashlib
import platform
import sys
from pathlib import Path

from wasmtime import Module

from service.guest.code_cache import CodeCache
from service.guest.runner import new_engine
from service.http.app import GUEST_WASM


def precompile(wasm: bytes, folder: Path) -> None:
    """Keep the machine code of `wasm` in `folder`, made with the settings of service.guest.runner's engine."""
    engine = new_engine(f"{platform.machine()}-unknown-linux-gnu")
    CodeCache(folder).keep(hashlib.sha256(wasm).hexdigest(), bytes(Module(engine, wasm).serialize()))


if __name__ == "__main__":
    precompile(GUEST_WASM.read_bytes(), Path(sys.argv[1]))
