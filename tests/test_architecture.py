"""The dependency arrows of docs/architecture.md, read from the imports themselves."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = ("service", "kernels", "tools", "bench", "tests")
ONLY_IMPORTER = {
    "wgpu": {"kernels/device.py"},
    "jinja2": {"kernels/wgsl.py"},
    "wasmtime": {"service/guest.py", "service/wasi_nn.py"},
    "starlette": {
        "service/app.py",
        "service/routes.py",
        "service/api_pages.py",
        "service/request_log.py",
        "service/api_keys.py",
        "service/clients.py",
        "service/origins.py",
        "service/upload_pace.py",
        "service/route_table.py",
        "service/tracing.py",
        "service/web_page.py",
    },
    "prometheus_client": {"service/metrics.py"},
    "opentelemetry": {"service/tracing.py"},
    "uvicorn": {"service/server.py", "service/http_protocol.py"},
    "soundfile": {"service/wav.py"},
    "soxr": {"service/audio.py"},
    "tokenizers": {"service/tokenizer.py"},
    "av": {"service/av_audio.py"},
    "httpx2": {"service/hub.py"},
    "shtab": {"service/completion.py"},
    "tqdm": {"service/progress.py"},
}
# A module may import those after it in its row, and kernels only kernels.
LAYERS = [
    "service.cli",
    "service.app",
    "service.server",
    "service.api_keys",
    "service.health",
    "service.engine",
    "service.routes",
    "service.request_log",
    "service.jobs",
    "service.transcriber",
    "service.transcription",
    "service.admission",
    "service.memory",
    "service.reading",
    "service.turns",
    "service.work",
    "service.models",
    "service.residence",
    "service.graphs",
    "service.guest",
    "service.wasi_nn",
    "service.guest_memory",
]


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, at any depth, `from x import y` as both x and x.y."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("library", sorted(ONLY_IMPORTER))
def test_each_library_has_its_importer(library: str) -> None:
    importers = {
        str(path.relative_to(ROOT))
        for package in ("service", "kernels")
        for path in modules(package)
        if any(module.split(".")[0] == library for module in imports(path))
    }
    assert importers <= ONLY_IMPORTER[library]
    assert importers, f"nothing imports {library} any more: drop it from the dependencies and from here"


def test_kernels_know_nothing_above_them() -> None:
    for path in modules("kernels"):
        above = {module for module in imports(path) if module.split(".")[0] in set(OURS) - {"kernels"}}
        assert not above, f"{path.name} imports {above}"


def test_errors_and_settings_import_nothing_of_ours() -> None:
    for module in ("errors", "settings"):
        ours = {m for m in imports(ROOT / "service" / f"{module}.py") if m.split(".")[0] in OURS}
        assert not ours, f"service/{module}.py imports {ours}"


def test_data_goes_one_way() -> None:
    for path in modules("service"):
        if name(path) not in LAYERS:
            continue
        higher = set(LAYERS[: LAYERS.index(name(path))])
        assert not imports(path) & higher, f"{path.name} imports what is above it"


def test_the_shim_knows_no_model_and_no_gpu() -> None:
    known = {m for m in imports(ROOT / "service" / "wasi_nn.py") if m.split(".")[0] in OURS}
    assert not {m for m in known if not m.startswith("service.guest_memory")}


def test_only_the_wiring_chooses_kernels() -> None:
    importers = {
        name(path) for path in modules("service") if any(module.split(".")[0] == "kernels" for module in imports(path))
    }
    assert importers <= {"service.app", "service.models", "service.models_command", "service.doctor"}


def test_the_page_names_every_module_of_the_service() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("## The modules of the service")[2].partition("\n## ")[0]
    ours = {path.stem for path in modules("service")} - {"__init__"}
    assert set(re.findall(r"`(\w+)`", table)) == ours
