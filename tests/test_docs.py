"""Runs every command in the documentation, against a live server where the page needs one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.models.packaged import packaged_folder
from tests.conftest import ROOT
from tests.support.docs_blocks import PAGES, RUNNABLE, Block, blocks, shows
from tests.support.fake_hub import fake_hub
from tests.support.serving import wav
from tests.support.synthetic import save_synthetic

# Substitutions that a test makes in a page's commands. Everything else runs unchanged.
SUBSTITUTIONS = {
    "localhost:8080": "127.0.0.1:{port}",  # a free port, passed to the server in WISP_PORT
    "make run": "make --assume-old=.venv/.run --assume-old=.venv/.model run",  # in the tests' virtual environment
    "make setup": "make --assume-old=.venv/.run --assume-old=.venv/.model setup",
}
# Reasons to leave a block out. Each block left out appears among the skipped tests.
REASONS = (
    "needs a Docker engine",
    "needs a Kubernetes cluster",
    "needs a Ray cluster",
    "downloads packages",
    "needs the reference data",
    "takes hours",
    "needs a microphone",
    "needs a browser",
)
# Where a page begins on a fresh machine, with the packaged tiny.en. The others have the synthetic one installed.
WITHOUT_MODEL = ("README.md", "docs/models.md")
SERVES = re.compile(r"\b(make run|wisp serve)\b")
END = "---- the end of the command"
PATIENCE_S = 120.0

ALL = [block for page in PAGES for block in blocks(page)]
RUN = [block for block in ALL if block.language in RUNNABLE and not block.not_run]
NODE_MODULES = ROOT / "tests" / "node" / "node_modules"


class Walk:
    """One page's reader: a folder with a checkout and a recording, a shell that stays open, at most one server."""

    def __init__(self, folder: Path, environment: dict[str, str], port: int) -> None:
        self.folder, self.environment, self.port = folder, environment, port
        self._server: subprocess.Popen[bytes] | None = None
        with (folder.parent / "stderr").open("wb") as stderr:
            self._shell = subprocess.Popen(
                ["bash"],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def close(self) -> None:
        """End the server and the shell."""
        self.stop_server()
        self._shell.communicate(timeout=PATIENCE_S)

    def as_run(self, text: str) -> str:
        """A page's text with the substitutions made."""
        for said, done in SUBSTITUTIONS.items():
            text = text.replace(said, done.format(port=self.port))
        return text

    def do(self, command: str) -> tuple[int, str]:
        """Run a command as the reader would → exit code, stdout."""
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null\nended=$?; echo; echo {END} $ended\n")
        self._shell.stdin.flush()
        output = ""
        for line in self._shell.stdout:
            if line.startswith(END):
                return int(line.removeprefix(END)), output.removesuffix("\n")
            output += line
        raise AssertionError(f"the shell has ended: {self.errors()}")

    def errors(self) -> str:
        return (self.folder.parent / "stderr").read_text(errors="replace")[-2000:]

    def serve(self, command: str) -> None:
        """Start a server, in place of the one before, and wait until it is ready."""
        self.stop_server()
        log = self.folder.parent / "server"
        with log.open("wb") as stderr:
            self._server = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stderr=stderr,
                start_new_session=True,
            )
        for _ in range(int(PATIENCE_S / 0.1)):
            with suppress(urllib.error.URLError, ConnectionError):
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz") as response:
                    assert response.status == 200
                return
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(0.1)  # between two attempts, and to notice its end
                break
        raise AssertionError(f"{command} does not serve: {log.read_text()}")

    def has_server(self) -> bool:
        return self._server is not None

    def stop_server(self) -> None:
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(PATIENCE_S)
            self._server = None


@pytest.fixture
def walk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Walk]:
    """A reader of the page that the test is for."""
    page: str = request.param
    if page in WITHOUT_MODEL and packaged_folder() is None:
        pytest.skip("tiny.en is not installed (make setup)")
    checkout, home = tmp_path / "wisp", tmp_path / "home"
    for folder in (checkout / "talks", home):
        folder.mkdir(parents=True)
    for name in ("Makefile", "tools", "assets", "deploy", "bench", "guest", "docs", "pyproject.toml"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / ".venv").symlink_to(sys.prefix)
    for name in ("speech.wav", "talks/monday.wav", "talks/tuesday.wav"):
        (checkout / name).write_bytes(wav(3.0))
    model = save_synthetic(checkout / "whisper-tiny.en")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with fake_hub() as hub:  # a page that fetches a model has it from here
        for name in ("tiny.en", "base.en", "small"):
            hub.add(f"openai/whisper-{name}", model)
        environment = {
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "WISP_PORT": str(port),
            "WISP_TARGET": "cpu",
            "HF_ENDPOINT": hub.url,
            "NO_PROXY": "127.0.0.1",
        }
        walk = Walk(checkout, environment, port)
        if page not in WITHOUT_MODEL:
            walk.do("wisp models pull tiny.en")
        try:
            yield walk
        finally:
            walk.close()


@pytest.mark.parametrize("walk", sorted({block.page for block in RUN}), indirect=True)
def test_a_pages_commands_do_what_it_says(walk: Walk, request: pytest.FixtureRequest) -> None:
    page = request.node.callspec.params["walk"]
    for block in RUN:
        if block.page == page:
            _follow(walk, block)


def _follow(walk: Walk, block: Block) -> None:
    if block.language == "python":
        _program(walk, block, [sys.executable, "-"])
    for command, shown in block.steps() if block.language in ("console", "sh", "bash") else ():
        done = walk.as_run(command)
        if SERVES.search(command):
            walk.serve(done)
            continue
        if done != command and not walk.has_server():  # the page uses a server that an earlier page started
            walk.serve("wisp serve")
        code, output = walk.do(done)
        assert code == 0, f"{block}: {done} → {code}\n{output}\n{walk.errors()}"
        assert not shown or shows(shown, output), f"{block}: {done} shows\n{output}\nand not\n{shown}"


@pytest.mark.parametrize(
    ("walk", "block"), [(block.page, block) for block in RUN if block.language == "js"], indirect=["walk"], ids=str
)
def test_a_program_for_node_runs(walk: Walk, block: Block) -> None:
    if shutil.which("node") is None or not (NODE_MODULES / "openai").is_dir():
        pytest.skip("needs Node and OpenAI's client for it (npm ci --prefix tests/node)")
    (walk.folder / "node_modules").symlink_to(NODE_MODULES)
    _program(walk, block, ["node", "--input-type=module", "-"])


def _program(walk: Walk, block: Block, interpreter: list[str]) -> None:
    if not walk.has_server():
        walk.serve("wisp serve")
    done = subprocess.run(
        interpreter,
        input=walk.as_run(block.text),
        cwd=walk.folder,
        env=walk.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"
    assert done.stdout.strip(), f"{block} says nothing"


@pytest.mark.parametrize("block", [block for block in ALL if block.not_run], ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.language in RUNNABLE, f"{block}: nothing of it would be run anyway"
    assert block.not_run in REASONS
    pytest.skip(f"{block}: {block.not_run}")
