"""Keys of tenants and secrets of endpoints that all processes of a test make of one random number."""

import hmac
from base64 import b64encode
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.chassis.secret import Secret
from services.executor.registry.credentials import LeasedKey, Resolved

SEED: Final = "TENON_TEST_KEYS"
"""The environment's name for the number, in hex."""


@dataclass(frozen=True)
class FixedKeys:
    """In place of the registry; nothing is ever sealed with another key, or rotated."""

    seed: Secret

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
        """The tenant's only key."""
        return LeasedKey(UUID(bytes=self._made(tenant_id, "id")[:16]), self._key(tenant_id))

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The secret of that name."""
        credential_id = UUID(bytes=self._made(tenant_id, f"id of {name}")[:16])
        values = {"secret": self.secret(tenant_id, name)}
        return Resolved(credential_id, "webhook_secret", version, values)

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        """Never called."""
        raise AssertionError(name)

    def secret(self, tenant_id: UUID, name: str) -> Secret:
        """What an endpoint's deliveries are signed with."""
        made = self._made(tenant_id, f"secret {name}")
        return Secret("whsec_" + b64encode(made).decode())

    def _key(self, tenant_id: UUID) -> Secret:
        return Secret(self._made(tenant_id, "key"))

    def _made(self, tenant_id: UUID, what: str) -> bytes:
        seed = bytes.fromhex(self.seed.reveal_text())
        return hmac.digest(seed, f"{tenant_id} {what}".encode(), "sha256")
