"""What tests of the GPU's kernels are run with: both reductions of the encoder."""

import pytest

from kernels.webgpu.device import Device
from kernels.webgpu.encoder.program import choose_reduction
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP, Reduction


@pytest.fixture(params=[SUBGROUP, WORKGROUP])
def reduction(request: pytest.FixtureRequest, device: Device) -> Reduction:
    if request.param == SUBGROUP and choose_reduction(device) != SUBGROUP:
        pytest.skip(f"{device.info.name} has no use for those kernels")
    chosen: Reduction = request.param
    return chosen
