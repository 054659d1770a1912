"""The choice of target for given adapters, and the handling of a GPU that doesn't open."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.webgpu.device import AdapterInfo, list_adapters
from service.errors import DeviceUnavailable
from service.models.loaded import read_model
from service.models.names import ModelSpec
from service.models.target import _target_among, may_have_hardware
from tests.conftest import ROOT
from tests.support.loading import loaded


def adapter(kind: str) -> AdapterInfo:
    return AdapterInfo(f"A {kind} one", "", kind, "Vulkan", "", frozenset(), {})


@pytest.mark.parametrize(
    ("asked", "kinds", "chosen", "said"),
    [
        ("auto", ("discrete", "software"), "gpu", "hardware adapter: A discrete one"),
        ("auto", ("integrated",), "gpu", "hardware adapter: A integrated one"),
        ("auto", ("other", "software"), "gpu", "hardware adapter: A other one"),
        ("auto", ("software",), "cpu", "is software"),
        ("auto", (), "cpu", "No WebGPU adapter was found"),
        ("gpu", ("software",), "gpu", "requested; the best adapter is A software one"),
        ("gpu", ("discrete", "software"), "gpu", "A discrete one"),
    ],
)
def test_targets(asked: str, kinds: tuple[str, ...], chosen: str, said: str) -> None:
    target = _target_among(asked, [adapter(kind) for kind in kinds], "")
    assert target.name == chosen and said in target.reason
    assert target.is_software == (chosen == "gpu" and kinds[0] == "software")


def test_a_requested_software_adapter_logs_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not any(found.is_software for found in list_adapters()[:1]):
        pytest.skip("the best adapter of this machine is not software")
    loaded(read_model(ModelSpec("synthetic", folder), "gpu")).close()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "use --target cpu" in warning


def run_without_adapters(code: str, **environment: str) -> str:
    """The output of a fresh Python on a machine whose Vulkan loader finds no driver."""
    environment |= {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_an_adapter_auto_takes_the_cpu_and_gpu_fails_clearly() -> None:
    answer = run_without_adapters(
        "from service.models.target import choose_target; from service.errors import DeviceUnavailable\n"
        "print(choose_target('auto'))\n"
        "try: choose_target('gpu')\n"
        "except DeviceUnavailable as error: print(error)"
    )
    auto, gpu = answer.splitlines()
    assert "name='cpu'" in auto
    assert gpu.startswith("The target gpu was requested, but no WebGPU adapter was found") and "mesa" in gpu


@pytest.mark.skipif(may_have_hardware(), reason="this machine may have a GPU")
def test_a_machine_without_a_graphics_device_is_not_searched_for_adapters() -> None:
    answer = run_without_adapters(
        "import sys; from service.models.target import choose_target\n"
        "print(choose_target('auto').reason, 'wgpu' in sys.modules)"
    )
    assert answer == "This machine has no graphics device (no device node under /dev). False"


def test_the_cpu_target_never_loads_wgpu(folder: Path) -> None:
    answer = run_without_adapters(
        "import sys; from pathlib import Path\n"
        "from service.models.loaded import read_model; from service.models.names import find_model\n"
        "from tests.support.loading import loaded\n"
        f"model = loaded(read_model(find_model({str(folder)!r}, Path('.')), 'cpu'))\n"
        "print(model.target.name, 'wgpu' in sys.modules)"
    )
    assert answer == "cpu False"


def test_a_gpu_that_does_not_open_is_replaced_only_if_nobody_requested_it(folder: Path) -> None:
    answer = run_without_adapters(
        "import dataclasses; from pathlib import Path; from service.errors import DeviceUnavailable\n"
        "from service.models.loaded import read_model; from service.models.names import find_model\n"
        "from tests.support.loading import loaded\n"
        "from service.models.target import Target\n"
        f"read = read_model(find_model({str(folder)!r}, Path('.')), 'auto')\n"
        "read = dataclasses.replace(read, target=Target('gpu', 'There was one a moment ago.'))\n"
        "print(loaded(read).target)\n"
        "try: loaded(dataclasses.replace(read, may_fall_back=False))\n"
        "except DeviceUnavailable as error: print(error)"
    )
    replaced, refused = answer.splitlines()
    assert "name='cpu'" in replaced and "There was one a moment ago. But: " in replaced
    assert refused.startswith("The model cannot run on the GPU: ") and "--target cpu" in refused


def test_an_unknown_target_is_refused(folder: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="'tpu' is not one of auto, gpu, cpu"):
        loaded(read_model(ModelSpec("synthetic", folder), "tpu"))
