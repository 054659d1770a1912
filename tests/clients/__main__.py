"""`make clients`: a server with tiny.en and recorded speech, and every client that the given Pythons have."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, shared_path
from tests.support.realtime import live_server
from tests.support.serving import engine_for, ready, settings_for

SAID = "what your country can do for you"  # live, what comes before it may be cut off, or heard as "asked not"


def main() -> int:
    """Arguments: Python interpreters of virtual environments with clients. Exits with the number that failed."""
    model, speech = shared_path() / "models/tiny_en", shared_path() / "speech/jfk.wav"
    if not speech.is_file():
        sys.exit(f"There is no {speech}; set WISP_SHARED.")
    with engine_for(settings_for(model, vad="skip")) as engine, live_server(ready(engine)) as server:
        environment = {**os.environ, "WISP_URL": f"{server.url}/v1", "WISP_SPEECH": str(speech), "WISP_SAID": SAID}
        script = Path(__file__).with_name("try_clients.py")
        failed = sum(
            subprocess.run([python, script], env=environment, stderr=subprocess.DEVNULL).returncode
            for python in sys.argv[1:]
        )
        node = ["node", "--test", "clients.test.mjs", "realtime.test.mjs"]
        failed += subprocess.run(node, cwd=ROOT / "tests/node", env=environment).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
