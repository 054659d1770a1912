"""The scripts that make and check an image: health check, model fetching, precompiled guest, slimming, bill, sizes."""

import hashlib
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.image.fetch_model import fetch_model
from deploy.image.healthcheck import TIMEOUT_S, status
from deploy.image.precompile import precompile
from deploy.image.sbom import PACKAGES, sbom
from deploy.image.size import report
from deploy.image.slim import HOLLOW, NEVER_CALLED, NEVER_CALLED_BY_NUMPY, hollow, link_copies, move_apart, slim
from deploy.image.try_image import MOST, SAID, share_of
from service.audio.decode import decode
from service.guest.runner import Guest
from service.http.app import GUEST_WASM
from service.settings import Settings
from tests.conftest import ROOT
from tests.support.sounds import samples


class Files(http.server.BaseHTTPRequestHandler):
    """Answers /readyz 200, /model.bin with its name's bytes, anything else 404."""

    def do_GET(self) -> None:
        body = {"/readyz": b"ready", "/model.bin": b"weights"}.get(self.path)
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *arguments: Any) -> None:
        """No line for each request on the tests' stderr."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a local server of Files."""
    with http.server.HTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_the_health_check_follows_readyz(port: int) -> None:
    assert status(port) == 200


def test_the_health_check_waits_for_a_probe() -> None:
    assert Settings().probe_limit_s < TIMEOUT_S


def test_nobody_listening_is_unhealthy() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Files) as closed:
        free = closed.server_address[1]
    assert status(free) == 0


def test_a_fetched_model_matches_its_checksums(port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}/"
    sums = f"model.bin:{hashlib.sha256(b'weights').hexdigest()},readyz:{hashlib.sha256(b'ready').hexdigest()}"
    fetch_model(url, tmp_path / "tiny.en", sums)
    assert (tmp_path / "tiny.en/model.bin").read_bytes() == b"weights"
    assert (tmp_path / "tiny.en/readyz").read_bytes() == b"ready"
    with pytest.raises(ValueError, match=r"model\.bin has the SHA-256"):
        fetch_model(url, tmp_path / "other", f"model.bin:{'0' * 64}")
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(ValueError, match="MODEL_URL"):
        fetch_model("", tmp_path / "none", "")


def test_the_server_takes_the_guest_that_the_image_compiled(tmp_path: Path) -> None:
    folder = tmp_path / "wisp"
    precompile(GUEST_WASM.read_bytes(), folder)
    [entry] = folder.iterdir()
    code = entry.read_bytes()
    Guest(GUEST_WASM, cache_folder=folder).close()
    assert [path.read_bytes() for path in folder.iterdir()] == [code], "it compiled another"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def installed(root: Path) -> Path:
    """Two distributions, as pip leaves them."""
    return write(
        root,
        {
            "one/__init__.py": "",
            "one/tests/test_one.py": "",
            "one/include/one.h": "",
            "lib64/cmake/one.cmake": "",
            "one-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: one\nVersion: 1.0\n",
            "one-1.0.dist-info/RECORD": "one/__init__.py,,\none-1.0.dist-info/METADATA,,\n",
            "two/__init__.py": "",
            "two-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: two\nVersion: 2.0\n",
            "two-2.0.dist-info/RECORD": "two/__init__.py,,\n../../bin/two,,\ntwo-2.0.dist-info/METADATA,,\n",
        },
    )


def test_only_what_runs_stays(tmp_path: Path) -> None:
    packages, apart = installed(tmp_path / "packages"), tmp_path / "apart"
    move_apart(packages, apart, {"two"})
    slim(packages)
    assert sorted(path.name for path in packages.iterdir()) == ["one", "one-1.0.dist-info"]
    assert [path.name for path in (packages / "one").iterdir()] == ["__init__.py"]
    assert sorted(path.name for path in apart.iterdir()) == ["two", "two-2.0.dist-info"]
    with pytest.raises(LookupError, match="three"):
        move_apart(packages, apart, {"three"})


def test_copies_of_a_library_are_stored_once(tmp_path: Path) -> None:
    write(tmp_path, {"lib/a.so": "one", "lib/a.so.0": "one", "lib/a.so.0.9": "one", "lib/b.so": "two", "c.so": "one"})
    link_copies(tmp_path)
    links = {path.name: path.readlink().name for path in tmp_path.rglob("*.so*") if path.is_symlink()}
    assert links == {"a.so": "a.so.0.9", "a.so.0": "a.so.0.9"}
    assert {path.read_text() for path in tmp_path.glob("lib/a*")} == {"one"}


@pytest.fixture(scope="module")
def hollowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PyAV as the image has it."""
    if missing := [tool for tool in ("as", "ld", "nm", "readelf") if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)} (binutils)")
    found = importlib.util.find_spec("av")
    if found is None or found.origin is None or not (libraries := Path(found.origin).parents[1] / "av.libs").is_dir():
        pytest.skip("PyAV is not installed from its wheel")
    folder = tmp_path_factory.mktemp("packages")
    shutil.copytree(Path(found.origin).parent, folder / "av")
    shutil.copytree(libraries, folder / "av.libs")
    hollow(folder, "av", NEVER_CALLED)
    return folder


def test_unused_libraries_are_hollowed_out(hollowed: Path) -> None:
    sizes = {path.name.split("-")[0]: path.stat().st_size for path in (hollowed / "av.libs").glob("*.so*")}
    named = (hollowed / "av.libs" / HOLLOW).read_text().split()
    assert {name.split("-")[0] for name in named} == set(NEVER_CALLED)
    assert all(sizes[name] < 40_000 for name in NEVER_CALLED)
    for path in (hollowed / "av.libs").glob("*.so*"):
        headers = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
        (stack,) = (line.split() for line in headers.splitlines() if "GNU_STACK" in line)
        assert "E" not in stack[-2], f"{path.name} makes the stack executable"
    assert sizes["libavcodec"] > 1_000_000 and sizes["libopus"] > 100_000


@pytest.mark.parametrize(
    ("container", "codec", "picture"),
    [
        ("mp4", "aac", "libx264"),
        ("mp4", "aac", "libx265"),
        ("mp4", "aac", "libsvtav1"),  # which libdav1d would decode
        ("webm", "libopus", "libvpx-vp9"),
        ("webm", "libopus", "libvpx"),
    ],
)
def test_the_sound_next_to_pictures_is_read_without_their_codecs(
    hollowed: Path, tmp_path: Path, container: str, codec: str, picture: str
) -> None:
    from tests.support.av_sounds import encoded  # not without PyAV

    film = tmp_path / "film"
    with ThreadPoolExecutor(1) as other:  # SVT-AV1 gives the thread that opens it real-time priority where it may
        film.write_bytes(other.submit(encoded, container, codec, 48_000, video=True, picture_codec=picture).result())
    program = """
import sys
import av
import numpy as np
from service.audio.decode import decode
sys.stdout.write(av.__file__)
with open(sys.argv[1], "rb") as film:
    np.save(sys.argv[2], np.concatenate(list(decode(film).blocks())))
"""
    heard = tmp_path / "heard.npy"
    ended = subprocess.run(
        [sys.executable, "-c", program, film, heard],
        env={**os.environ, "PYTHONPATH": f"{hollowed}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == str(hollowed / "av/__init__.py")
    with film.open("rb") as file:
        np.testing.assert_array_equal(np.load(heard), samples(decode(file)))


def test_numpy_works_after_slimming(tmp_path: Path) -> None:
    if missing := [tool for tool in ("as", "ld", "nm", "strip") if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)} (binutils)")
    installed_in = Path(np.__file__).parents[1]
    if not any(installed_in.glob("numpy.libs/libgfortran-*")):
        pytest.skip("NumPy is not installed from a wheel with OpenBLAS")
    for name in ("numpy", "numpy.libs"):
        shutil.copytree(installed_in / name, tmp_path / name)
    slim(tmp_path)
    left = {path.name.split("-")[0]: path.stat().st_size for path in (tmp_path / "numpy.libs").glob("*.so*")}
    assert left.keys() == {"libscipy_openblas64_", *NEVER_CALLED_BY_NUMPY}
    assert all(left[name] < 40_000 for name in NEVER_CALLED_BY_NUMPY)
    program = """
import numpy as np
assert np.__file__.startswith(__import__("sys").argv[1])
for dtype in (np.float32, np.float64):
    a = np.arange(300 * 200, dtype=dtype).reshape(300, 200) % 7
    assert np.array_equal(a @ a.T, np.einsum("ik,jk->ij", a, a))
    assert np.array_equal(a @ a[0], (a * a[0]).sum(axis=1)) and a[0] @ a[1] == (a[0] * a[1]).sum()
assert np.allclose(np.fft.irfft(np.fft.rfft(a[0])), a[0])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_words_of_a_transcript_are_counted_in_their_order() -> None:
    assert share_of(SAID, SAID.lower().replace(",", "")) == 1
    assert share_of(SAID, SAID.replace("computer", "commuter")) >= MOST
    assert share_of(SAID, "Hello, this recording was made by a computer.") < MOST
    assert share_of(SAID, " ".join(reversed(SAID.split()))) < 0.5
    assert share_of(SAID, "") == 0


def test_the_bill_names_every_package_of_every_layer_once(tmp_path: Path) -> None:
    write(
        tmp_path / "a/var/lib/dpkg/status.d",
        {"libc6": "Package: libc6\nArchitecture: amd64\nVersion: 2.36-9+deb12u9\n"},
    )
    installed(tmp_path / "a" / PACKAGES)
    write(tmp_path / "b" / PACKAGES, {"assets/guest.wasm": "code"})
    write(tmp_path / "b" / PACKAGES, {"_soundfile_data/libsndfile_x86_64.so": "sound", "_cffi.abi3.so": "a module"})
    bundled = {name: name for name in ("libopencore-amrnb-d72c52e2.so.0.0.5", "libx264-d6533a8d.so.165")}
    write(tmp_path / "b" / PACKAGES / "av.libs", bundled | {"hollow.txt": "libx264-d6533a8d.so.165\n"})
    bill = sbom("1.2.3", [tmp_path / "a", tmp_path / "b"])
    assert bill["bomFormat"] == "CycloneDX"
    assert [component["bom-ref"] for component in bill["components"]] == [
        f"/{PACKAGES}/_soundfile_data/libsndfile_x86_64.so",
        f"/{PACKAGES}/assets/guest.wasm",
        f"/{PACKAGES}/av.libs/libopencore-amrnb-d72c52e2.so.0.0.5",
        f"/{PACKAGES}/av.libs/libx264-d6533a8d.so.165",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=bookworm",
        "pkg:pypi/one@1.0",
        "pkg:pypi/two@2.0",
    ]
    amr, x264 = (part for part in bill["components"] if "av.libs" in part["bom-ref"])
    assert (amr["name"], amr["version"]) == ("libopencore-amrnb", "0.0.5")
    assert amr["licenses"] == [{"expression": "Apache-2.0"}]
    assert "licenses" not in x264 and x264["description"].startswith("hollow")


def test_the_size_report_has_a_line_a_layer_and_the_sum() -> None:
    assert report([(1_500_000, "COPY a"), (250_000, "COPY b")]).splitlines() == [
        "    1.50 MB  COPY a",
        "    0.25 MB  COPY b",
        "    1.75 MB  in all, compressed",
    ]
