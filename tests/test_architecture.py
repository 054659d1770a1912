"""The arrows between packages, read from the imports themselves, and which package may import which library."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = ("service", "kernels", "tools", "bench", "deploy", "tests")
# A package may import those that it points to, and nothing else of ours.
ARROWS = {
    "service.errors": set(),
    "service.settings": set(),
    "service.guest": set(),
    "service.audio": {"service.errors"},
    "service.models": {"service.errors", "service.settings", "service.guest", "kernels"},
    "service.transcription": {
        "service.errors",
        "service.settings",
        "service.audio",
        "service.guest",
        "service.models",
    },
    "service.http": {
        "service.errors",
        "service.settings",
        "service.audio",  # a form gives raw sound the header that its file name implies
        "service.guest",
        "service.models",
        "service.transcription",
    },
    "service.wyoming": {
        "service.errors",
        "service.settings",
        "service.audio",
        "service.models",
        "service.transcription",
        "service.http",
    },
    "service.cli": {
        "service.errors",
        "service.settings",
        "service.audio",
        "service.guest",
        "service.models",
        "service.transcription",
        "service.http",
        "service.wyoming",
        "kernels",  # wisp doctor reports the machine's hardware, wisp models convert writes a checkpoint
    },
    "kernels.rules": set(),
    "kernels.checkpoints": set(),
    "kernels.inputs": {"kernels.rules", "kernels.checkpoints"},
    "kernels.webgpu": {"kernels.inputs", "kernels.rules", "kernels.checkpoints"},
    "kernels.cpu": {"kernels.inputs", "kernels.rules", "kernels.checkpoints"},
}
ONLY_IMPORTER = {  # library → the packages or modules that alone may import it
    "av": "service.audio",
    "httpx2": "service.models.hub",
    "jinja2": ("kernels.webgpu.wgsl", "service.http.openapi.routes"),
    "opentelemetry": "service.http.tracing",
    "prometheus_client": "service.http.metrics",
    "python_multipart": "service.http.form",
    "shtab": "service.cli.completion",
    "sounddevice": "service.cli.listen.sources",
    "soundfile": "service.audio.wav",
    "soxr": "service.audio.decode",
    "starlette": "service.http",
    "tokenizers": "service.models.tokenizer",
    "tqdm": "service.cli.progress",
    "uvicorn": "service.http",
    "wasmtime": "service.guest",
    "websockets": ("service.http.websocket", "service.cli.listen.remote"),  # the server's side, and a client's
    "wgpu": "kernels.webgpu.device",
    "wyoming": "service.wyoming",
    "zeroconf": "service.wyoming.announcement",
}


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
    folder = ROOT / package.replace(".", "/")
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("package", ARROWS)
def test_a_package_imports_only_along_its_arrows(package: str) -> None:
    for path in modules(package):
        ours = {module for module in imports(path) if module.split(".")[0] in OURS and "." in module}
        wrong = {m for m in ours if not any(is_in(m, allowed) for allowed in (package, *ARROWS[package]))}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_every_module_is_in_a_package_with_arrows() -> None:
    for package in ("service", "kernels"):
        for path in modules(package):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert module == f"{package}.__init__" or any(is_in(module, known) for known in ARROWS), module


def test_no_test_imports_another() -> None:
    for path in modules("tests"):
        tests = {module for module in imports(path) if is_in(module, "tests") and ".test_" in module}
        assert not tests, f"{path.relative_to(ROOT)} imports {tests}: what they share belongs in tests/support"


def test_there_are_no_cycles() -> None:
    done: set[str] = set()
    while len(done) < len(ARROWS):
        free = {p for p, to in ARROWS.items() if p not in done and all(t in done or t == "kernels" for t in to)}
        assert free, f"a circle among {set(ARROWS) - done}"
        done |= free


@pytest.mark.parametrize("library", ONLY_IMPORTER)
def test_each_library_has_its_importer(library: str) -> None:
    importers = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("service", "kernels")
        for path in modules(package)
        if any(module.split(".")[0] == library for module in imports(path))
    }
    assert importers, f"nothing imports {library} any more: drop it from the dependencies and from here"
    allowed = ONLY_IMPORTER[library]
    packages = (allowed,) if isinstance(allowed, str) else allowed
    assert all(any(is_in(module, package) for package in packages) for module in importers), importers


def test_the_shim_knows_no_model_and_no_gpu() -> None:
    known = {m for m in imports(ROOT / "service" / "guest" / "wasi_nn.py") if m.split(".")[0] in OURS}
    assert {m for m in known if not is_in(m, "service.guest.memory")} <= {"service.guest"}


def test_the_page_names_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package in ARROWS:
        assert f"`{package.replace('.', '/')}" in page, f"docs/architecture.md says nothing of {package}"
