"""Where the reference data lies: `../shared` beside the project, or `$WISP_SHARED`. Tests skip without it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_path() -> Path:
    """The folder of reference models, speech and expected outputs; it may not exist."""
    return Path(os.environ.get("WISP_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference folder, or a skip that says it is absent."""
    path = shared_path()
    if not path.is_dir():
        pytest.skip(f"no reference data at {path} (set WISP_SHARED)")
    return path
