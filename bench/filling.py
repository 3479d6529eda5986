"""A registry's tables filled fast, with data keys and credentials that really open."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from services.chassis.secret import Secret
from services.registry.credentials.sealing import Sealing, Version
from services.registry.keys.vault import Vault

Connection = psycopg.Connection[Any]

PART: Final = "token"
OBJECT: Final[Mapping[str, Any]] = {"labels": {}, "annotations": {}, "revision": 1}


@dataclass(frozen=True, slots=True)
class Filling:
    """A tenant to be made: with so many credentials, and so many versions of each."""

    slug: str
    credentials: int = 1
    versions: int = 1


def fill(connection: Connection, vault: Vault, fillings: Iterable[Filling]) -> None:
    """Make enabled tenants, each with a data key, whose credentials are called as `names` says.

    As the superuser: no audit event, revision or feed row tells of it.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {
        name: [] for name in ("tenants", "data_keys", "credentials", "credential_versions")
    }
    for filling in fillings:
        tenant_id = uuid4()
        rows["tenants"].append(_tenant(tenant_id, filling.slug))
        key, stored = vault.new_tenant_key(tenant_id, uuid4())
        wrapped = {"key_version": stored.key_version, "wrapped": stored.wrapped}
        owner = {"tenant_id": tenant_id, "data_key_id": key.data_key_id}
        rows["data_keys"].append({**owner, **wrapped})
        for name in names(filling):
            credential_id = uuid4()
            rows["credentials"].append(
                _credential(tenant_id, credential_id, name, filling.versions)
            )
            for number in range(1, filling.versions + 1):
                values = {PART: Secret(value_of(filling.slug, name, number))}
                version = Version(credential_id, number, values, {})
                rows["credential_versions"].append(Sealing(vault).sealing(key, version).parameters)
    with connection.transaction():
        for table, made in rows.items():
            _copy(connection, table, made)
    connection.execute("ANALYZE")


def names(filling: Filling) -> Sequence[str]:
    """What its credentials are called."""
    return [f"token-{number}" for number in range(filling.credentials)]


def value_of(slug: str, name: str, number: int) -> bytes:
    """What a version of a credential holds."""
    return f"{slug}/{name}/{number}".encode()


def _tenant(tenant_id: UUID, slug: str) -> Mapping[str, Any]:
    said = {"slug": slug, "display_name": slug, "state": "active", "enabled": True, "limits": {}}
    return {"tenant_id": tenant_id, **said, **OBJECT}


def _credential(tenant_id: UUID, credential_id: UUID, name: str, version: int) -> Mapping[str, Any]:
    said = {"name": name, "type": "bearer", "description": "", "version": version}
    return {"tenant_id": tenant_id, "credential_id": credential_id, **said, **OBJECT}


def _copy(connection: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    columns = ", ".join(rows[0])
    command = f"COPY registry.{table} ({columns}) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(command.encode()) as copy:
        for row in rows:
            copy.write_row([_shown(value) for value in row.values()])


def _shown(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value
