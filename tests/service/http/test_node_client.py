"""OpenAI's Node client through a socket: tests/node/matrix.test.mjs, every format with every option."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support import synthetic
from tests.support.serving import engine_for, ready, served, settings_for

FOLDER = ROOT / "tests" / "node"


def test_every_format_with_every_option(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on this machine")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip("OpenAI's Node client is not installed: npm ci --prefix tests/node")
    folder = synthetic.save_synthetic(tmp_path / "both", multilingual=True)
    with engine_for(settings_for(folder)) as engine, served(ready(engine)) as url:
        ended = subprocess.run(
            [node, "--test", "matrix.test.mjs"],
            cwd=FOLDER,
            env={**os.environ, "WISP_URL": url},
            capture_output=True,
            text=True,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
