"""What the executor keeps at rest: sealed with the tenant's key, for its place alone."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

from services.chassis import envelope
from services.chassis.envelope import Place
from services.executor.registry.credentials import LeasedKey

EXECUTIONS: Final = "executor.executions"


class Row(NamedTuple):
    """A tenant's row in a table."""

    table: str
    tenant_id: UUID
    id: UUID

    def place(self, column: str, key: LeasedKey) -> Place:
        """One of its columns, sealed with a key."""
        return Place(self.tenant_id, self.table, self.id, column, self.id, key.data_key_id)


def sealed_bytes(key: LeasedKey, row: Row, column: str, plaintext: bytes) -> bytes:
    """A row's column, sealed for its place."""
    key.count()
    return envelope.seal(key.key, row.place(column, key), plaintext)


def opened_bytes(key: LeasedKey, row: Row, column: str, value: bytes) -> bytes:
    """What `sealed_bytes` was given. Raises Unsealable."""
    return envelope.open_sealed(key.key, row.place(column, key), value).reveal()


def sealed(
    key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str, value: Mapping[str, Any]
) -> bytes:
    """State of an execution, sealed for its place."""
    row = Row(EXECUTIONS, tenant_id, execution_id)
    return sealed_bytes(key, row, column, json.dumps(value, separators=(",", ":")).encode())


def opened(
    key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str, value: bytes
) -> dict[str, Any]:
    """What `sealed` was given. Raises Unsealable."""
    row = Row(EXECUTIONS, tenant_id, execution_id)
    state: dict[str, Any] = json.loads(opened_bytes(key, row, column, value))
    return state
