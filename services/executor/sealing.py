"""State of an execution at rest: sealed with the tenant's key, for its place alone."""

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from services.chassis import envelope
from services.chassis.envelope import Place
from services.executor.registry import LeasedKey

TABLE: Final = "executor.executions"


def sealed(
    key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str, value: Mapping[str, Any]
) -> bytes:
    """State of an execution, sealed for its place."""
    plaintext = json.dumps(value, separators=(",", ":")).encode()
    return envelope.seal(key.key, _place(key, tenant_id, execution_id, column), plaintext)


def opened(
    key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str, value: bytes
) -> dict[str, Any]:
    """What `sealed` was given. Raises Unsealable."""
    place = _place(key, tenant_id, execution_id, column)
    state: dict[str, Any] = json.loads(envelope.open_sealed(key.key, place, value).reveal())
    return state


def _place(key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str) -> Place:
    return Place(tenant_id, TABLE, execution_id, column, execution_id, key.data_key_id)
