"""Writes a root file system's bill of materials as CycloneDX JSON.

It lists Debian and Python packages, shared libraries inside wheels, the guest and the models' weights.

usage: sbom.py VERSION ROOT… > sbom.cdx.json    the roots are the layers of one image
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

FFMPEG = ("libavcodec", "libavdevice", "libavfilter", "libavformat", "libavutil", "libswresample", "libswscale")
LICENCES = {
    **dict.fromkeys(FFMPEG, "LGPL-3.0-or-later"),  # as built in PyAV's wheel: the output of avcodec_license()
    "libmp3lame": "LGPL-2.0-or-later",
    "libopencore-amrnb": "Apache-2.0",
    "libopencore-amrwb": "Apache-2.0",
    "libopus": "BSD-3-Clause",
    "libsndfile_x86_64": "LGPL-2.1-or-later",
    "libsndfile_arm64": "LGPL-2.1-or-later",
}
HOLLOW = "hollow.txt"  # next to a wheel's shared libraries: the files that slim.py replaced, one per line
PACKAGES = "usr/local/lib/python3.11/dist-packages"


def debian_components(root: Path) -> Iterator[dict[str, Any]]:
    """A component for each package in `root`'s status.d."""
    for path in (root / "var/lib/dpkg/status.d").glob("*"):
        fields = HeaderParser().parsestr(path.read_text(encoding="utf-8"))
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}&distro=bookworm"
        yield {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def python_components(root: Path) -> Iterator[dict[str, Any]]:
    """A component for each distribution in `root`."""
    for found in distributions(path=[str(root / PACKAGES)]):
        purl = f"pkg:pypi/{found.name.lower().replace('_', '-')}@{found.version}"
        yield {"type": "library", "name": found.name, "version": found.version, "purl": purl, "bom-ref": purl}


def bundled_components(root: Path) -> Iterator[dict[str, Any]]:
    """A component with SHA-256 for each shared library inside a wheel, other than Python modules.

    auditwheel puts the start of their SHA-256 into the file names.
    """
    for path in (root / PACKAGES).rglob("*.so*"):
        if path.is_symlink() or re.search(r"\.(cpython-|abi3)", path.name):
            continue
        name, _, version = path.name.partition(".so")
        name = re.sub(r"(-[0-9a-f]{8})+$", "", name)
        found: dict[str, Any] = {"type": "library", "name": name}
        if version:
            found["version"] = version.lstrip(".")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found |= {"bom-ref": f"/{path.relative_to(root)}", "hashes": [{"alg": "SHA-256", "content": digest}]}
        hollow = path.parent / HOLLOW
        if hollow.exists() and path.name in hollow.read_text().split():
            found["description"] = "hollow: made in its place, without anything of it"
        elif name in LICENCES:
            found["licenses"] = [{"expression": LICENCES[name]}]
        yield found


def file_components(root: Path) -> Iterator[dict[str, Any]]:
    """A component with SHA-256 for the guest and for each model's weights."""
    for pattern in (f"{PACKAGES}/assets/guest.wasm", f"{PACKAGES}/assets/*/*.safetensors", "models/*/*.safetensors"):
        for path in root.glob(pattern):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            name = f"/{path.relative_to(root)}"
            kind = "file" if path.suffix == ".wasm" else "machine-learning-model"
            yield {"type": kind, "name": name, "bom-ref": name, "hashes": [{"alg": "SHA-256", "content": digest}]}


def sbom(version: str, roots: list[Path]) -> dict[str, Any]:
    """The document. It has no date and no random number, so one image always has the same bill."""
    components = [
        component
        for root in roots
        for part in (debian_components, python_components, bundled_components, file_components)
        for component in part(root)
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "wisp", "version": version}},
        "components": sorted(components, key=lambda component: str(component["bom-ref"])),
    }


if __name__ == "__main__":
    json.dump(sbom(sys.argv[1], [Path(root) for root in sys.argv[2:]]), sys.stdout, indent=1)
