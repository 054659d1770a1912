"""The model hub: what a repository there holds, and its files, fetched with resume, retries and their sums checked.

The protocol is the Hugging Face hub's. Its own client neither goes on with a download that an earlier command left,
nor checks what it fetched beyond the size, and is 6 MB of a container image: so this is one module over HTTPX.
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
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import httpx2 as httpx

from service.errors import HubError
from service.models.store import hash_file

log = logging.getLogger("wisp")

T = TypeVar("T")

ATTEMPTS = 5  # in a row without a byte gained
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
TOKEN_PAGE = "settings/tokens"  # where the hub gives out what HF_TOKEN takes


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. The hub tells a SHA-256 of the large ones, and the id that Git gives of the others."""

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
    """What may well succeed when tried again: `str()` says what happened."""


class _Unreachable(_Retry):
    """Nothing answers at all: as likely the network of this machine as the hub."""


class Hub:
    """One hub. close() is idempotent. The proxies of HTTPS_PROXY and NO_PROXY, and SSL_CERT_FILE, are honoured."""

    def __init__(self, url: str, token: str = "") -> None:
        """`url`: such as https://huggingface.co; `token`: for what is gated or private. Raises HubError."""
        self.url = url.rstrip("/")
        headers = {"user-agent": "wisp", "accept-encoding": "identity"}
        if token:  # HTTPX leaves it out where another host is redirected to
            headers["authorization"] = f"Bearer {token}"
        self._has_token = bool(token)
        try:
            self._client = httpx.Client(headers=headers, timeout=TIMEOUTS, follow_redirects=True)
        except (ValueError, OSError) as error:  # a proxy's address, a file of certificates
            raise HubError(f"The hub cannot be asked: {error}.") from None

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def describe(self, repo: str, revision: str = "main") -> HubModel:
        """What `repo` holds at a branch, tag or commit. Raises HubError."""
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
            raise HubError(f"{self.url} does not answer as a Hugging Face hub does.") from None

    def read(self, model: HubModel, name: str) -> dict[str, Any]:
        """A small JSON file of the model, not stored. Raises HubError."""
        return self._json(self._address(model, name), model.repo)

    def download(self, model: HubModel, file: HubFile, folder: Path, gained: Callable[[int], object]) -> str:
        """Fetch a file into `folder`, unless it is there, and return its SHA-256. `gained` hears the bytes of each
        block, and of what an earlier download left; a negative number where they turn out to be of no use.

        Raises HubError. A broken download leaves its part, from which the next one goes on, in this process or another.
        """
        if not (file.sha256 or file.git_id):
            raise HubError(
                f"The hub states no sum of {file.name} of {model.repo}, so nothing can tell whether it is whole."
            )
        whole, part = folder / file.name, part_of(folder, model, file)
        if whole.exists():
            digest, is_right = _sums(whole, file)
            if is_right:
                gained(file.size)
                return digest
            whole.unlink()
        address = self._address(model, file.name)
        gained(_size(part))
        for is_last in (False, True):
            self._attempts(address, lambda: self._go_on(address, model.repo, file, part, gained), part)
            digest, is_right = _sums(part, file)
            if is_right:
                part.replace(whole)
                return digest
            part.unlink()
            gained(-file.size)
            # A part from an earlier command may have been damaged on the disk: the file is fetched whole once.
            if is_last:
                raise HubError(
                    f"{file.name} of {model.repo} came with the SHA-256 {digest}, twice, which is not the one that "
                    f"the hub states: something between here and {self.url} changes it."
                )
        raise AssertionError("not reached")

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
                            raise HubError(f"{address} has more than the {MOST_JSON_BYTES} bytes that are read of it.")
                    return bytes(found)
                except httpx.TransportError as error:
                    raise _Retry(f"{response.url.host} broke off ({_said(error)})") from None

        try:
            found = json.loads(self._attempts(address, ask))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise HubError(f"{address} is not the JSON object that a Hugging Face hub has there.")
        return found

    def _attempts(self, address: str, attempt: Callable[[], T], part: Path | None = None) -> T:
        """Try until it works, or until ATTEMPTS in a row have failed without a byte more in `part`."""
        failures, size = 0, _size(part)
        while True:
            try:
                return attempt()
            except _Retry as error:
                failures = failures + 1 if _size(part) <= size else 1
                size = max(size, _size(part))
                if failures == ATTEMPTS:
                    kept = ": what is there is kept, and the same command goes on from it" if size else ""
                    way = f". {NO_WAY}" if isinstance(error, _Unreachable) else ""
                    raise HubError(f"{address} cannot be fetched ({error}){kept}{way}.") from None
                pause_s = FIRST_PAUSE_S * 2 ** (failures - 1)
                log.warning("%s; trying again in %g s", error, pause_s)
                time.sleep(pause_s)

    def _go_on(self, address: str, repo: str, file: HubFile, part: Path, gained: Callable[[int], object]) -> None:
        """Fetch what `part` lacks."""
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
                        raise HubError(f"{file.name} of {repo} has more than the {file.size} bytes it should have.")
                    _write(target, block)
                    gained(len(block))
            except httpx.TransportError as error:
                raise _Retry(f"{file.name} broke off after {start} of {file.size} bytes ({_said(error)})") from None
        if start < file.size:
            raise _Retry(f"{file.name} ended after {start} of {file.size} bytes")

    @contextmanager
    def _response(self, address: str, repo: str, start: int = 0) -> Iterator[httpx.Response]:
        """The answer to a GET, from byte `start` on, or what went wrong as _Retry or HubError."""
        headers = {"range": f"bytes={start}-"} if start else {}
        try:
            request = self._client.build_request("GET", address, headers=headers)
            response = self._client.send(request, stream=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise HubError(
                f"The hub's address {self.url} is none: HF_ENDPOINT should be like https://hub.example."
            ) from None
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise HubError(
                    f"{request.url.host} shows a certificate that is not trusted here ({_said(error)}): "
                    "SSL_CERT_FILE names a file of certificates to trust."
                ) from None
            raise _Unreachable(f"{request.url.host} cannot be reached: {_said(error)}") from None
        except httpx.HTTPError as error:  # redirects without end
            raise HubError(f"{address} cannot be fetched: {_said(error)}.") from None
        try:
            if response.status_code in TRANSIENT:
                raise _Retry(f"{response.url.host} answers {response.status_code}")
            if response.status_code not in (200, 206):
                raise HubError(self._refusal(response, repo))
            yield response
        finally:
            response.close()

    def _refusal(self, response: httpx.Response, repo: str) -> str:
        """What an answer other than 200 means, and what to do."""
        code, status = response.headers.get("x-error-code", ""), response.status_code
        token = f"with a token from {self.url}/{TOKEN_PAGE} in HF_TOKEN"
        if code == "GatedRepo" or status == 403:
            return f"{repo} asks you to accept its terms: do so at {self.url}/{repo}, then pull it {token}."
        if code in ("RevisionNotFound", "EntryNotFound"):
            return f"{repo} has no such revision or file at {self.url} ({response.url.path})."
        if status in (401, 404):
            if self._has_token:
                return f"There is no {repo} at {self.url} for the token in HF_TOKEN."
            return f"There is no {repo} at {self.url}, or it is private: then pull it {token}."
        return f"{response.url.host} answers {status} to {response.url.path}."


def _file(entry: Mapping[str, Any]) -> HubFile:
    large = entry.get("lfs") or {}
    return HubFile(str(entry["rfilename"]), int(entry["size"]), large.get("sha256"), entry.get("blobId"))


def part_of(folder: Path, model: HubModel, file: HubFile) -> Path:
    """What there may be of a broken download: NAME.SUM.part. The sum says of which content it is the beginning, so
    that going on needs no ETag."""
    return folder / f"{file.name}.{(file.sha256 or file.git_id or model.commit)[:16]}.part"


def _size(part: Path | None) -> int:
    return part.stat().st_size if part is not None and part.exists() else 0


def _sums(path: Path, file: HubFile) -> tuple[str, bool]:
    """The file's SHA-256, and whether it has the content that the hub states."""
    git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    digest = hash_file(path, git.update)
    return digest, digest == file.sha256 if file.sha256 else file.git_id == git.hexdigest()


def _write(target: BinaryIO, block: bytes) -> None:
    try:
        target.write(block)
    except OSError as error:
        raise HubError(f"{target.name} cannot be written: {error.strerror}.") from None


def _said(error: Exception) -> str:
    """A transport's words without what Python's wrap around them."""
    return str(error).rstrip(".") or type(error).__name__
