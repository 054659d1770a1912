"""Where the reference data lies: `../shared` beside the project, or `$WISP_SHARED`. Tests skip without it."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# In the background of a shell that is no terminal's, Ctrl-C is ignored, and would be by the programs under test too.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
