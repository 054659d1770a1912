"""schemathesis over /openapi.json finds nothing: described requests are accepted, others rejected, without a 5xx.

`make api-fuzz` does the same with many more examples.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.support import synthetic
from tests.support.serving import engine_for, ready, served, settings_for

N_EXAMPLES = os.environ.get("WISP_FUZZ_EXAMPLES", "6")  # per operation, in addition to its schema's examples


def test_it_finds_nothing(tmp_path: Path) -> None:
    folder = synthetic.save_synthetic(tmp_path / "both", multilingual=True)
    settings = settings_for(folder, aliases="whisper-1", unknown_fields="refuse")  # so that everything else is rejected
    with engine_for(settings) as engine, served(ready(engine)) as url:
        document = url.removesuffix("/v1") + "/openapi.json"
        options = ["--phases", "coverage,fuzzing", "--continue-on-failure", "--generation-deterministic", "--no-color"]
        options += ["--request-timeout", "300"]  # a machine may be busy
        ended = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", document, "--max-examples", N_EXAMPLES, *options],
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    sys.stdout.write(ended.stdout)  # `make api-fuzz` shows it: how many cases there were
    assert ended.returncode == 0, ended.stderr
    assert "10 selected / 10 total" in ended.stdout, "not every operation was tried"
