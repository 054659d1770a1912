"""Client secrets: short-lived keys for live sessions only, for pages that must not have the server's keys."""

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import ClientSecretsFull
from service.transcription.admission import current_client, has_room

if TYPE_CHECKING:
    from service.http.api_keys import Rights
    from service.http.realtime.configuration import Configuration

SECRET_IN_SCOPE = "wisp.secret"
PREFIX = "ek_"
N_BYTES = 32


@dataclass(frozen=True)
class Secret:
    """A client secret: the key that made it, that key's rights, and its sessions' configuration."""

    expires_at: float  # Unix time
    client: str
    key: str | None  # as in the scope of the request that made it; None without keys
    rights: "Rights | None"  # None without keys
    configuration: "Configuration"


class ClientSecrets:
    """The valid secrets, by SHA-256. They end with the server. For the event loop's thread."""

    def __init__(self, most: int, clock: Callable[[], float] = time.time) -> None:
        self.most, self._clock = most, clock
        self._secrets: dict[bytes, Secret] = {}

    def create(
        self, seconds: int, *, key: str | None, rights: "Rights | None", configuration: "Configuration"
    ) -> tuple[str, int]:
        """A new secret and the Unix time at which it expires. Raises ClientSecretsFull."""
        now, client = self._clock(), current_client.get()
        self._secrets = {digest: secret for digest, secret in self._secrets.items() if secret.expires_at > now}
        if not has_room(Counter(secret.client for secret in self._secrets.values()), client, self.most):
            raise ClientSecretsFull
        value, expires_at = PREFIX + secrets.token_urlsafe(N_BYTES), int(now) + seconds
        self._secrets[_digest(value)] = Secret(expires_at, client, key, rights, configuration)
        return value, expires_at

    def find(self, keys: Sequence[str]) -> Secret | None:
        """The secret among these keys, unless it has expired."""
        for key in keys:
            secret = self._secrets.get(_digest(key)) if key.startswith(PREFIX) else None
            if secret is not None and secret.expires_at > self._clock():
                return secret
        return None


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("latin-1", "replace")).digest()
