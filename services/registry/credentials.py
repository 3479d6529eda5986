"""Credentials: sealed when they are applied, opened for the executor alone, listed masked."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis import envelope
from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.ids import uuid7
from services.chassis.secret import Secret
from services.registry.store import credentials as store
from services.registry.vault import KEY_VERSION, TenantKey, Vault

RESOLVE_TTL_S: Final = 900
LEASE_TTL_S: Final = 900
TABLE: Final = "registry.credential_versions"
COLUMN: Final = "sealed"
TENANT_KEY: Final = "tenant-data-key"


@dataclass(frozen=True, slots=True)
class Resolved:
    """An opened credential, for memory only."""

    type: str
    version: int
    values: Mapping[str, Secret]


@dataclass(frozen=True, slots=True)
class Keyring:
    """A tenant's data key, and what adds it where it is new."""

    key: TenantKey
    adding: tuple[Bound, ...] = ()


class Credentials:
    """The use cases on credentials."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def resolve(self, tenant_id: UUID, name: str) -> Resolved:
        """The current values of a credential."""
        rows = await self._database.read(tenant_id, store.RESOLVE, tenant_id=tenant_id, name=name)
        if not rows:
            raise NotFound(f"there is no credential {name}")
        row = rows[0]
        tenant_key = self._open(tenant_id, row)
        key = envelope.unwrap(
            tenant_key.key,
            _key_place(tenant_id, row.version_id, row.version),
            bytes(row.wrapped_key),
        )
        place = _place(tenant_id, row.credential_id, row.version_id, row.data_key_id)
        opened = json.loads(envelope.open_sealed(key, place, bytes(row.sealed)).reveal())
        values = {part: Secret(base64.b64decode(text)) for part, text in opened.items()}
        return Resolved(row.type, row.version, values)

    async def lease_key(self, tenant_id: UUID) -> tuple[UUID, Secret]:
        """The id of the tenant's data key, and the key derived from it for the executor."""
        rows = await self._database.read(tenant_id, store.DATA_KEY, tenant_id=tenant_id)
        if not rows:
            raise FailedPrecondition("the tenant has no data key", reason="NO_DATA_KEY")
        return rows[0].data_key_id, self._open(tenant_id, rows[0]).lease()

    async def page(self, tenant_id: UUID, after: str, size: int) -> list[Any]:
        """Rows of credentials by name, without anything sealed."""
        return await self._database.read(
            tenant_id, store.LIST, tenant_id=tenant_id, after=after, size=size
        )

    async def keyring(self, transaction: Transaction, tenant_id: UUID) -> Keyring:
        """The tenant's data key; a fresh one where it has none yet, with what adds it."""
        row = await transaction.one(store.DATA_KEY, tenant_id=tenant_id)
        if row is not None:
            return Keyring(self._open(tenant_id, row))
        key, wrapped = self._vault.new_tenant_key(tenant_id, uuid7())
        added = {
            "tenant_id": tenant_id,
            "data_key_id": key.data_key_id,
            "key_version": KEY_VERSION,
            "wrapped": wrapped,
        }
        return Keyring(key, (Bound(store.ADD_DATA_KEY, added),))

    def sealing(
        self,
        tenant_key: TenantKey,
        credential_id: UUID,
        version: int,
        values: Mapping[str, Secret],
        fingerprints: Mapping[str, str],
    ) -> Bound:
        """What appends a version, sealed with a key of its own."""
        tenant_id, version_id, key = tenant_key.tenant_id, uuid7(), envelope.new_key()
        words = {part: base64.b64encode(value.reveal()).decode() for part, value in values.items()}
        place = _place(tenant_id, credential_id, version_id, tenant_key.data_key_id)
        key_place = _key_place(tenant_id, version_id, version)
        row = {
            "tenant_id": tenant_id,
            "credential_id": credential_id,
            "version": version,
            "version_id": version_id,
            "data_key_id": tenant_key.data_key_id,
            "wrapped_key": envelope.wrap(tenant_key.key, key_place, key),
            "sealed": envelope.seal(key, place, json.dumps(words).encode()),
            "fingerprints": dict(fingerprints),
        }
        return Bound(store.ADD_VERSION, row)

    def _open(self, tenant_id: UUID, row: Any) -> TenantKey:
        return self._vault.open_tenant_key(tenant_id, row.data_key_id, bytes(row.wrapped))


def _place(
    tenant_id: UUID, credential_id: UUID, version_id: UUID, data_key_id: UUID
) -> envelope.Place:
    return envelope.Place(tenant_id, TABLE, credential_id, COLUMN, version_id, data_key_id)


def _key_place(tenant_id: UUID, version_id: UUID, version: int) -> envelope.KeyPlace:
    return envelope.KeyPlace(tenant_id, version_id, TENANT_KEY, version)
