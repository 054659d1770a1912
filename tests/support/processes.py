"""`wisp serve` as its own process: starts it, follows its log, observes it from outside, stops it by signals."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT

WAIT_S = 60.0


class ServerProcess:
    """A running server. `url` is known once it listens."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.log = ""
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"listening on (http://127\.0\.0\.1:\d+) ")[1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        with suppress(ValueError):  # closed, because the test has ended
            for line in self.process.stderr:
                with self._grown:
                    self.log += line
                    self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """The first match in the log, once there is one."""
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = re.search(pattern, self.log)
            return found is not None or not self._reader.is_alive()

        with self._grown:
            self._grown.wait_for(look, WAIT_S)
        assert found is not None, self.log
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end, read all of its log, and return its exit code."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code

    def resident_bytes(self) -> int:
        """Its resident memory, as Linux reports it."""
        statm = Path(f"/proc/{self.process.pid}/statm")
        if not statm.exists():
            pytest.skip("no /proc")
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def server_process(model: Path, cache: Path, *, prelude: str = "", **settings: object) -> Iterator[ServerProcess]:
    """Serve `model` on the CPU on a free port, ready; killed at the end if it has not ended. `settings`: others.

    `prelude`: Python that runs first in its process.

    Its windows are heard whatever is in them, as synthetic models speak in tones.
    """
    code = f"{prelude}\nimport sys; from service.cli.main import main; sys.exit(main())"
    arguments = ["serve", "--target", "cpu", "--model", str(model), "--port", "0", "--vad", "off"]
    for name, value in settings.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    # The caller's own settings must not affect the test.
    others = {name: value for name, value in os.environ.items() if not name.startswith("WISP_")}
    environment = {**others, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            server = ServerProcess(process)
            server.wait_for("ready: ")
            yield server
        finally:
            process.kill()
