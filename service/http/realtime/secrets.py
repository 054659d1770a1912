"""Client secrets: short-lived keys for live sessions only, which a page may have without knowing the server's keys."""

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
    """What a client secret stands for: the key that made it, what that may do, and how its sessions begin."""

    expires_at: float  # Unix time
    client: str
    key: str | None  # of the request that made it, as in its scope; None without keys
    rights: "Rights | None"  # None without keys
    configuration: "Configuration"


class ClientSecrets:
    """The valid ones, by their SHA-256. They end with the server. For the event loop's thread."""

    def __init__(self, most: int, clock: Callable[[], float] = time.time) -> None:
        self.most, self._clock = most, clock
        self._secrets: dict[bytes, Secret] = {}

    def create(
        self, seconds: int, *, key: str | None, rights: "Rights | None", configuration: "Configuration"
    ) -> tuple[str, int]:
        """A new secret and the Unix time at which it ends. Raises ClientSecretsFull."""
        now, client = self._clock(), current_client.get()
        self._secrets = {digest: secret for digest, secret in self._secrets.items() if secret.expires_at > now}
        if not has_room(Counter(secret.client for secret in self._secrets.values()), client, self.most):
            raise ClientSecretsFull
        value, expires_at = PREFIX + secrets.token_urlsafe(N_BYTES), int(now) + seconds
        self._secrets[_digest(value)] = Secret(expires_at, client, key, rights, configuration)
        return value, expires_at

    def find(self, keys: Sequence[str]) -> Secret | None:
        """The secret that one of these keys is, unless it has expired."""
        for key in keys:
            secret = self._secrets.get(_digest(key)) if key.startswith(PREFIX) else None
            if secret is not None and secret.expires_at > self._clock():
                return secret
        return None


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("latin-1", "replace")).digest()
