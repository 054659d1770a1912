"""One request, followed from the route to the kernel: through few modules, which docs/architecture.md names."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kernels.cpu import native_kernels
from kernels.cpu.native_library import load_library
from service.http.app import create_app
from service.transcription.admission import Admission
from tests.conftest import ROOT
from tests.support.serving import engine_for, post, settings_for

MOST_MODULES = 12
ROUTES = "service/http/routes.py"


def stack() -> list[str]:
    """Our modules under the caller, the outermost first."""
    files = [Path(frame.filename) for frame in reversed(inspect.stack(0))]
    names = [str(file.relative_to(ROOT)) for file in files if file.is_relative_to(ROOT)]
    return [name for name in names if name.startswith(("service/", "kernels/"))]


@pytest.mark.skipif(load_library() is None, reason="the C kernels do not run on this processor")
def test_a_request_passes_the_modules_that_the_page_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[list[str]] = []  # where the route submits the run, then where its thread calls a kernel
    submit, run = Admission.submit, native_kernels.run

    def submit_noted(*arguments: Any, **options: Any) -> None:
        stacks.append(stack())
        submit(*arguments, **options)

    def run_noted(*arguments: Any) -> None:
        stacks.append(stack())
        run(*arguments)

    with engine_for(settings_for(folder)) as engine, TestClient(create_app(engine)) as client:
        engine.proven.result(60)
        monkeypatch.setattr(Admission, "submit", submit_noted)
        monkeypatch.setattr(native_kernels, "run", run_noted)
        assert post(client).status_code == 200
    submitting, encoding, *_ = stacks
    passed = [*submitting[submitting.index(ROUTES) :], *encoding]
    modules = list(dict.fromkeys(passed))
    assert len(modules) <= MOST_MODULES, modules
    page = (ROOT / "docs/architecture.md").read_text().partition("## Packages")[0]
    places = [page.find(module) for module in modules]
    assert -1 not in places and places == sorted(places), modules
