"""The model hub: lists a repository and downloads its files with resume, retries and checksums.

The protocol is the Hugging Face hub's. Its own client neither resumes an earlier command's download nor checks more
than the size, and takes 6 MB of a container image. So this is one module over HTTPX.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2 as httpx

from service.errors import HubError
from service.models.store import hash_file

log = logging.getLogger("wisp")

T = TypeVar("T")

ATTEMPTS = 5  # in a row without progress
FIRST_PAUSE_S = 0.5  # doubled after each failed attempt
TIMEOUTS = httpx.Timeout(30.0, connect=10.0)  # seconds without a byte, not for a whole file
COMMIT = re.compile(r"[0-9a-f]{40,64}")
MOST_LICENCE = 80  # characters
MOST_JSON_BYTES = 16 * 2**20
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
NO_WAY = (
    "HTTPS_PROXY names a proxy and HF_ENDPOINT a mirror; or copy a model's folder from a machine that reaches the hub "
    "into the models folder (WISP_MODELS_DIR, by default ~/.local/share/wisp/models)"
)
TOKEN_PAGE = "settings/tokens"  # where the hub issues tokens for HF_TOKEN


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. The hub states a SHA-256 for large files and Git's object ID for the others."""

    name: str
    size: int  # bytes
    sha256: str | None
    git_id: str | None  # SHA-1 of `blob SIZE\0` and the content


@dataclass(frozen=True)
class HubModel:
    """A repository at one commit."""

    repo: str  # owner/name
    commit: str
    licence: str | None
    files: Mapping[str, HubFile]


class _Retry(Exception):
    """A failure that may pass if tried again; `str()` says what happened."""


class _Unreachable(_Retry):
    """No answer at all; the fault may be this machine's network as well as the hub."""


class Hub:
    """One hub. close() is idempotent. Honours HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE."""

    def __init__(self, url: str, token: str = "") -> None:
        """`url`: such as https://huggingface.co; `token`: for gated or private models. Raises HubError."""
        self.url = url.rstrip("/")
        headers = {"user-agent": "wisp", "accept-encoding": "identity"}
        if token:  # HTTPX drops it on a redirect to another host
            headers["authorization"] = f"Bearer {token}"
        self._has_token = bool(token)
        try:
            self._client = httpx.Client(headers=headers, timeout=TIMEOUTS, follow_redirects=True)
        except (ValueError, OSError) as error:  # a bad proxy address or certificate file
            raise HubError(f"Cannot connect to the hub: {error}.") from None

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def describe(self, repo: str, revision: str = "main") -> HubModel:
        """The contents of `repo` at a branch, tag or commit. Raises HubError."""
        found = self._json(f"{self.url}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true", repo)
        try:
            files = [_file(entry) for entry in found["siblings"] if entry.get("size") is not None]
            licence = (found.get("cardData") or {}).get("license")
            if licence is not None:
                licence = str(licence)[:MOST_LICENCE]
            if not COMMIT.fullmatch(str(found["sha"])):
                raise ValueError("no commit")
            return HubModel(repo, str(found["sha"]), licence, {file.name: file for file in files})
        except (KeyError, TypeError, AttributeError, ValueError):
            raise HubError(f"{self.url} does not answer like a Hugging Face hub.") from None

    def read(self, model: HubModel, name: str) -> dict[str, Any]:
        """A small JSON file of the model, not stored. Raises HubError."""
        return self._json(self._address(model, name), model.repo)

    def download(self, model: HubModel, file: HubFile, folder: Path, gained: Callable[[int], object]) -> str:
        """Download a file into `folder` unless it is there, and return its SHA-256. `gained` gets the size of each
        block and of an earlier download's part; a negative number if that turns out to be useless.

        Raises HubError, OSError. A broken download leaves its part, which the next one resumes, in any process.
        """
        if not (file.sha256 or file.git_id):
            raise HubError(f"The hub states no checksum of {file.name} of {model.repo}, so it cannot be verified.")
        whole, part = folder / file.name, part_of(folder, model, file)
        if whole.exists():
            digest, is_right = _sums(whole, file)
            if is_right:
                gained(file.size)
                return digest
            whole.unlink()
        address = self._address(model, file.name)
        gained(_size(part))
        for _ in range(2):  # a part from an earlier command may have been damaged on disk
            self._attempts(address, lambda: self._go_on(address, model.repo, file, part, gained), part)
            digest, is_right = _sums(part, file)
            if is_right:
                part.replace(whole)
                return digest
            part.unlink()
            gained(-file.size)
        raise HubError(
            f"{file.name} of {model.repo} arrived twice with the SHA-256 {digest}, which isn't the hub's: "
            f"something between this machine and {self.url} changes it."
        )

    def _address(self, model: HubModel, name: str) -> str:
        return f"{self.url}/{model.repo}/resolve/{model.commit}/{name}"

    def _json(self, address: str, repo: str) -> dict[str, Any]:
        def ask() -> bytes:
            with self._response(address, repo) as response:
                found = bytearray()
                try:
                    for block in response.iter_raw():
                        found += block
                        if len(found) > MOST_JSON_BYTES:
                            raise HubError(f"{address} has more than the limit of {MOST_JSON_BYTES} bytes.")
                    return bytes(found)
                except httpx.TransportError as error:
                    raise _Retry(f"{response.url.host} broke off ({_said(error)})") from None

        try:
            found = json.loads(self._attempts(address, ask))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise HubError(f"{address} is not the JSON object that a Hugging Face hub serves there.")
        return found

    def _attempts(self, address: str, attempt: Callable[[], T], part: Path | None = None) -> T:
        """Try until it succeeds, or until ATTEMPTS in a row have added no byte to `part`."""
        failures, size = 0, _size(part)
        while True:
            try:
                return attempt()
            except _Retry as error:
                failures = failures + 1 if _size(part) <= size else 1
                size = max(size, _size(part))
                if failures == ATTEMPTS:
                    kept = ": the downloaded part is kept; rerun the command to resume" if size else ""
                    way = f". {NO_WAY}" if isinstance(error, _Unreachable) else ""
                    raise HubError(f"{address} cannot be downloaded ({error}){kept}{way}.") from None
                pause_s = FIRST_PAUSE_S * 2 ** (failures - 1)
                log.warning("%s; trying again in %g s", error, pause_s)
                time.sleep(pause_s)

    def _go_on(self, address: str, repo: str, file: HubFile, part: Path, gained: Callable[[int], object]) -> None:
        """Download the rest of `part`."""
        gained(0)  # a caller who wants no more may raise here, also after attempts that gained nothing
        start = _size(part)
        if start > file.size:
            part.unlink()
            gained(-start)
            start = 0
        if start == file.size and part.exists():
            return
        with part.open("ab") as target, self._response(address, repo, start) as response:
            if start and response.headers.get("content-range", "").split("-")[0] != f"bytes {start}":
                target.truncate(0)
                gained(-start)
                start = 0
            try:
                for block in response.iter_raw():
                    start += len(block)
                    if start > file.size:
                        raise HubError(f"{file.name} of {repo} is longer than the {file.size} bytes it should have.")
                    target.write(block)
                    gained(len(block))
            except httpx.TransportError as error:
                raise _Retry(f"{file.name} broke off after {start} of {file.size} bytes ({_said(error)})") from None
        if start < file.size:
            raise _Retry(f"{file.name} ended after {start} of {file.size} bytes")

    @contextmanager
    def _response(self, address: str, repo: str, start: int = 0) -> Iterator[httpx.Response]:
        """The response to a GET from byte `start` on; failures as _Retry or HubError."""
        headers = {"range": f"bytes={start}-"} if start else {}
        try:
            request = self._client.build_request("GET", address, headers=headers)
            response = self._client.send(request, stream=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise HubError(
                f"The hub's address {self.url} is invalid: HF_ENDPOINT should be like https://hub.example."
            ) from None
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise HubError(
                    f"{request.url.host} has a certificate that this machine does not trust ({_said(error)}): "
                    "SSL_CERT_FILE names a file of certificates to trust."
                ) from None
            raise _Unreachable(f"{request.url.host} cannot be reached: {_said(error)}") from None
        except httpx.HTTPError as error:  # endless redirects
            raise HubError(f"{address} cannot be downloaded: {_said(error)}.") from None
        try:
            if response.status_code in TRANSIENT:
                raise _Retry(f"{response.url.host} answered {response.status_code}")
            if response.status_code not in (200, 206):
                raise HubError(self._refusal(response, repo))
            yield response
        finally:
            response.close()

    def _refusal(self, response: httpx.Response, repo: str) -> str:
        """The meaning of a response other than 200, and what to do."""
        code, status = response.headers.get("x-error-code", ""), response.status_code
        token = f"with a token from {self.url}/{TOKEN_PAGE} in HF_TOKEN"
        if code == "GatedRepo" or status == 403:
            return f"{repo} requires accepting its terms: do so at {self.url}/{repo}, then pull it {token}."
        if code in ("RevisionNotFound", "EntryNotFound"):
            return f"{repo} has no such revision or file at {self.url} ({response.url.path})."
        if status in (401, 404):
            if self._has_token:
                return f"{self.url} has no {repo} for the token in HF_TOKEN."
            return f"{self.url} has no {repo}, or it is private: then pull it {token}."
        return f"{response.url.host} answered {status} to {response.url.path}."


def _file(entry: Mapping[str, Any]) -> HubFile:
    large = entry.get("lfs") or {}
    return HubFile(str(entry["rfilename"]), int(entry["size"]), large.get("sha256"), entry.get("blobId"))


def part_of(folder: Path, model: HubModel, file: HubFile) -> Path:
    """The part of a broken download: NAME.SUM.part. The checksum identifies the content, so resuming needs no ETag."""
    return folder / f"{file.name}.{(file.sha256 or file.git_id or model.commit)[:16]}.part"


def _size(part: Path | None) -> int:
    return part.stat().st_size if part is not None and part.exists() else 0


def _sums(path: Path, file: HubFile) -> tuple[str, bool]:
    """The file's SHA-256, and whether it has the content that the hub states."""
    git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    digest = hash_file(path, git.update)
    return digest, digest == file.sha256 if file.sha256 else file.git_id == git.hexdigest()


def _said(error: Exception) -> str:
    """The transport's own message, without what Python's wrappers add."""
    return str(error).rstrip(".") or type(error).__name__
