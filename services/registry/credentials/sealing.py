"""Credential versions sealed and opened, each with a key of its own under its tenant's data key."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from services.chassis import envelope
from services.chassis.database import Bound, Transaction
from services.chassis.errors import FailedPrecondition
from services.chassis.ids import uuid7
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.providers import signing_keys
from services.registry.credentials.places import key_place, value_place
from services.registry.keys.vault import TenantKey, Vault, Wrapped
from services.registry.store import credentials as store
from services.registry.store import keys

Values = Mapping[str, Secret]


@dataclass(frozen=True, slots=True)
class Keyring:
    """A tenant's data key, and what adds it where it is new."""

    key: TenantKey
    adding: tuple[Bound, ...] = ()

    def counting(self, seals: int) -> Bound:
        """What counts how often the data key has wrapped."""
        place = {"the_tenant_id": self.key.tenant_id, "the_data_key_id": self.key.data_key_id}
        return Bound(keys.COUNT_SEALS, {**place, "more": seals})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a version besides its values.

    `overlap_until` stands on the version before it, which goes on until then; times that end a
    token are the provider's, reckoned from the database's clock.
    """

    origin: str = "declared"
    created_by: str = ""
    expires_at: datetime | None = None
    refresh_expires_at: datetime | None = None
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """A version to be written."""

    credential_id: UUID
    number: int
    values: Values = field(repr=False)
    fingerprints: Mapping[str, str]
    facts: Facts = Facts()


class Sealing:
    """Seals and opens."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def keyring(self, transaction: Transaction, tenant_id: UUID) -> Keyring:
        """The tenant's data key; a fresh one where it has none yet, with what adds it."""
        row = await transaction.one(keys.DATA_KEY, tenant_id=tenant_id)
        return Keyring(self.tenant_key(row)) if row is not None else self.fresh(tenant_id)

    def fresh(self, tenant_id: UUID) -> Keyring:
        """A new data key, and what adds it."""
        key, stored = self._vault.new_tenant_key(tenant_id, uuid7())
        added = {
            "tenant_id": tenant_id,
            "data_key_id": key.data_key_id,
            "key_version": stored.key_version,
            "wrapped": stored.wrapped,
        }
        return Keyring(key, (Bound(keys.ADD_DATA_KEY, added),))

    def tenant_key(self, row: Any) -> TenantKey:
        """The data key in a row. Raises Unsealable, or FailedPrecondition where it is shredded."""
        if row.wrapped is None:
            raise FailedPrecondition("the tenant's data key was destroyed", reason="KEY_SHREDDED")
        stored = Wrapped(row.key_version, bytes(row.wrapped))
        return self._vault.open_tenant_key(row.tenant_id, row.data_key_id, stored)

    def sealing(self, tenant_key: TenantKey, version: Version) -> Bound:
        """What appends a version, sealed with a key of its own."""
        tenant_id, version_id, key_id = tenant_key.tenant_id, uuid7(), uuid7()
        key = envelope.new_key()
        place = value_place(tenant_id, version.credential_id, version_id, key_id)
        facts = version.facts
        row = {
            "tenant_id": tenant_id,
            "credential_id": version.credential_id,
            "version": version.number,
            "version_id": version_id,
            "key_id": key_id,
            "data_key_id": tenant_key.data_key_id,
            "wrapped_key": envelope.wrap(
                tenant_key.key, key_place(tenant_id, version_id, version.number), key
            ),
            "sealed": envelope.seal(key, place, _words(version.values)),
            "fingerprints": dict(version.fingerprints),
            "origin": facts.origin,
            "created_by": facts.created_by,
            "expires_at": facts.expires_at,
            "refresh_expires_at": facts.refresh_expires_at,
            "scopes": list(facts.scopes),
            "public_key": _public_key(version.values),
        }
        return Bound(store.ADD_VERSION, row)

    def opened(self, row: Any) -> dict[str, Secret]:
        """The values of a version's row, which has its data key's columns too.

        Raises Unsealable where it was moved, changed or taken away.
        """
        if row.sealed is None:
            raise envelope.Unsealable
        place = key_place(row.tenant_id, row.version_id, row.version)
        key = envelope.unwrap(self.tenant_key(row).key, place, bytes(row.wrapped_key))
        bound = value_place(row.tenant_id, row.credential_id, row.version_id, row.key_id)
        words = json.loads(envelope.open_sealed(key, bound, bytes(row.sealed)).reveal())
        return {part: remember(Secret(base64.b64decode(text))) for part, text in words.items()}

    def fingerprints(self, tenant: str, name: str, values: Values) -> dict[str, str]:
        """Keyed marks of the parts, by which a change is seen."""
        return {
            part: self._vault.fingerprint(tenant, name, part, value)
            for part, value in values.items()
        }


def _public_key(values: Values) -> str:
    secret = values.get("secret")
    return signing_keys.public_key(secret) if secret is not None else ""


def _words(values: Values) -> bytes:
    words = {part: base64.b64encode(value.reveal()).decode() for part, value in values.items()}
    return json.dumps(words).encode()


def check_newest(row: Any, seen: int = 0) -> None:
    """Raise Unsealable where an older version than there is, or was seen, is the current one."""
    if row.version < max(row.newest, seen):
        raise envelope.Unsealable
