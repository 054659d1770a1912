"""API keys: read once from a file and a variable, kept as SHA-256 digests, required on every route that isn't public.

No error or log line contains a key or a part of one.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import InvalidApiKey, ModelNotAllowed, StartError
from service.http.clients import KEY_IN_SCOPE
from service.http.realtime.secrets import SECRET_IN_SCOPE, ClientSecrets
from service.http.request_log import error_response
from service.http.route_table import route_of
from service.models.places import canonical_name
from service.settings import Settings

DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
MEANT_AS_DIGEST = re.compile(r"sha-?\d*:.*", re.ASCII | re.IGNORECASE)
EMPTY = hashlib.sha256(b"").digest()  # of an empty key, as in `Bearer ` alone
KEY = re.compile(r"[!-+\--~]+", re.ASCII)  # what a header can carry: no spaces, and no comma, which separates keys
MAX_FILE_BYTES = 1024 * 1024
KEY_HEADERS = (b"api-key", b"x-api-key")  # Azure's clients send the first, others the second
KEY_SUBPROTOCOL = "openai-insecure-api-key."  # a page cannot set a WebSocket's headers
MAX_KEYS_SENT = 4
RIGHTS_IN_SCOPE = "wisp.rights"


@dataclass(frozen=True)
class Rights:
    """What a request may do."""

    models: tuple[str, ...] | None = None  # the names of those it may use, in any spelling; None for all
    is_admin: bool = False  # whether it may pull, unload and remove models, and ask which are loaded

    def may_use(self, name: str) -> bool:
        """Whether it may use the model of this name."""
        return self.models is None or canonical_name(name) in map(canonical_name, self.models)

    def check(self, name: str) -> None:
        """Raise ModelNotAllowed unless it may use the model of this name."""
        if not self.may_use(name):
            raise ModelNotAllowed(name, self.models or ())


class ApiKeys:
    """The accepted keys. Without any, every request is admitted."""

    def __init__(self, keys: Mapping[bytes, Rights]) -> None:
        """`keys`: the SHA-256 of each key, and what it may do."""
        self._rights = dict(keys)
        self._digests = tuple(keys)

    @property
    def are_required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._digests)

    def rights(self, digest: bytes) -> Rights:
        """What the known key of that digest may do."""
        return self._rights[digest]

    def accepted(self, authorization: Sequence[str], others: Sequence[str] = ()) -> bytes | None:
        """The digest of the valid key in these Authorization headers, or in these headers that carry just a key.

        One valid key is enough: `Bearer KEY`, `KEY`, or one of the others. Two Authorization headers count as none. A
        key is compared with all keys, each in constant time, so that the response time reveals nothing.
        """
        found = None
        for key in sent_keys(authorization, others):
            sent = digest_of(key)
            for known in self._digests:
                if hmac.compare_digest(known, sent) and key:
                    found = known
        return found


def sent_keys(authorization: Sequence[str], others: Sequence[str]) -> list[str]:
    """The first few keys that a request carries; see ApiKeys.accepted()."""
    keys = [*others]
    if len(authorization) == 1:
        scheme, _, key = authorization[0].strip().partition(" ")
        if not key:
            keys.append(scheme)
        elif scheme.lower() == "bearer":
            keys.append(key)
    return [key.strip() for key in keys[:MAX_KEYS_SENT]]


def digest_of(key: str) -> bytes:
    """SHA-256 of a key as it was sent; header bytes arrive as Latin-1."""
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()


def read_api_keys(settings: Settings) -> ApiKeys:
    """The keys of `api_keys_file`, one per line, and of `api_keys`, comma-separated.

    A line may be `sha256:` and the key's digest in hex; empty lines and lines starting with # are skipped. Words after
    the key say what it may do: `admin`, and `models=NAME,NAME` for these models only. A key without words may use all
    models and administer none. Raises StartError if the file cannot be read or has an unknown word, or if keys are
    configured but none is there or one is malformed: the user asked for protection, so the server must not start
    without it.
    """
    entries: list[tuple[str, list[str]]] = []  # the key's origin, the key and the words after it
    if settings.api_keys_file:
        lines = _read(Path(settings.api_keys_file)).splitlines()
        texts = [(f"line {number} of {settings.api_keys_file}", line.strip()) for number, line in enumerate(lines, 1)]
        found = [(place, text) for place, text in texts if text and not text.startswith("#")]
        if not found:
            raise StartError(f"The API key file {settings.api_keys_file} has no key: write one per line.")
        entries += [(place, text.split()) for place, text in found]
    if settings.api_keys:
        listed = [text.strip() for text in settings.api_keys.split(",")]
        found = [(f"number {number} of WISP_API_KEYS", text) for number, text in enumerate(listed, 1) if text]
        if not found:
            raise StartError("WISP_API_KEYS has no key: write comma-separated keys, or unset it.")
        entries += [(place, [text]) for place, text in found]
    keys: dict[bytes, Rights] = {}
    for place, (key, *words) in entries:
        digest, rights = _digest(place, key), _rights(place, words)
        if keys.setdefault(digest, rights) != rights:
            raise StartError(f"The API key on {place} is a repetition with other words after it.")
    return ApiKeys(keys)


def _rights(place: str, words: Sequence[str]) -> Rights:
    """What the words after a key allow. Raises StartError for any other word, so that a typo allows nothing."""
    models: tuple[str, ...] | None = None
    is_admin = False
    for word in words:
        if word == "admin":
            is_admin = True
        elif word.startswith("models=") and models is None and all(word.removeprefix("models=").split(",")):
            models = tuple(word.removeprefix("models=").split(","))
        else:
            raise StartError(
                f"The API key on {place} is followed by an unknown word: use admin, or models=NAME,NAME once. "
                "A key has no spaces."
            )
    return Rights(models, is_admin)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise StartError(f"The API key file {path} is larger than {MAX_FILE_BYTES} bytes.")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise StartError(f"The API key file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise StartError(f"The API key file {path} isn't text.") from None


def _digest(place: str, text: str) -> bytes:
    if hashed := DIGEST.fullmatch(text):
        digest = bytes.fromhex(hashed[1])
        if digest == EMPTY:
            raise StartError(
                f"The API key on {place} is the digest of an empty key, which would admit requests without one."
            )
        return digest
    if MEANT_AS_DIGEST.fullmatch(text) or not KEY.fullmatch(text):
        raise StartError(
            f"The API key on {place} is invalid: a key has ASCII letters, digits and signs, no spaces or "
            "commas; sha256:, in small letters, goes before 64 hexadecimal digits."
        )
    return digest_of(text)


def is_local(settings: Settings) -> bool:
    """Whether only this machine can reach the server.

    Decided by `published`, a container's published address, if it is set; else by `host`.
    """
    return is_loopback(settings.published.rpartition(":")[0].strip("[]") if settings.published else settings.host)


def refuse_to_expose(settings: Settings, keys: ApiKeys) -> None:
    """Raise StartError for an address that others can reach without a key, unless the setting for that allows it."""
    if keys.are_required or settings.allow_public_without_key == "yes" or is_local(settings):
        return
    raise StartError(
        f"The address {settings.published or settings.host} admits other machines, and there is no API key: set "
        "WISP_API_KEYS_FILE or WISP_API_KEYS, listen on 127.0.0.1, or, if everyone who reaches it may use it, "
        "set WISP_ALLOW_PUBLIC_WITHOUT_KEY=yes."
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def rights_of(scope: Scope, settings: Settings) -> Rights:
    """What a request may do: its key's rights or, on a server without keys, those that the settings give everyone."""
    rights: Rights | None = scope.get(RIGHTS_IN_SCOPE)
    return rights or Rights(is_admin=settings.allow_admin_without_key == "yes")


class KeyGuard:
    """ASGI middleware: 401 without a key, before the body is read, on every route that isn't public.

    A path belongs to the first route that matches it, as in routing; paths without a route are guarded too.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        routes: Sequence[BaseRoute],
        public: Collection[str],
        secrets: ClientSecrets | None = None,
    ) -> None:
        """`public`: names of the routes that need no key. `secrets`: admit WebSockets too."""
        self.app, self.keys, self.routes, self.public = app, keys, routes, frozenset(public)
        self.secrets = secrets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_public(scope):
            await self.app(scope, receive, send)
            return
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        others = [value.decode("latin-1") for name, value in scope["headers"] if name in KEY_HEADERS]
        if scope["type"] == "websocket":
            others += [
                offered.removeprefix(KEY_SUBPROTOCOL)
                for offered in scope.get("subprotocols", ())
                if offered.startswith(KEY_SUBPROTOCOL)
            ]
            if self.secrets is not None and (secret := self.secrets.find(sent_keys(sent, others))) is not None:
                scope[SECRET_IN_SCOPE], scope[KEY_IN_SCOPE], scope[RIGHTS_IN_SCOPE] = secret, secret.key, secret.rights
                await self.app(scope, receive, send)
                return
        accepted = self.keys.accepted(sent, others) if self.keys.are_required else None
        if accepted is not None or not self.keys.are_required:
            if accepted is not None:
                scope[KEY_IN_SCOPE] = accepted.hex()
                scope[RIGHTS_IN_SCOPE] = self.keys.rights(accepted)
            await self.app(scope, receive, send)
        else:
            await error_response(InvalidApiKey(is_absent=not (sent or others)))(scope, receive, send)

    def _is_public(self, scope: Scope) -> bool:
        return getattr(route_of(scope, self.routes), "name", None) in self.public
