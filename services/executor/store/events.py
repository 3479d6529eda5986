"""Events as they arrived, and the receipts by which a redelivery is known."""

import json
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import JSON, Text, bindparam, cast, column, func, select

from services.chassis.database import Bound, Database, Statement
from services.chassis.errors import Aborted, NotFound, TenonError
from services.executor.tables import EVENTS

ACCEPT = Statement(
    select(column("event_id"), column("enabled"), column("stale")).select_from(
        func.executor.accept_events(cast(bindparam("events", type_=Text), JSON)).table_valued(
            "event_id", "enabled", "stale"
        )
    )
)
_KEPT = ("tenant_id", "id", "headers", "body", "data_key_id", "sealed_headers")
KEPT = Statement(
    select(*(EVENTS.c[name] for name in _KEPT)).where(
        EVENTS.c.tenant_id == bindparam("tenant_id"), EVENTS.c.id == bindparam("id")
    )
)


class Stale(Aborted):
    """A tenant has been projected anew since what it wants of an event was looked at."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An event's headers and body at rest.

    With a data key both are sealed: `headers` is empty then, and `body` ciphertext, of both where
    there are no `sealed_headers`.
    """

    tenant_id: UUID
    id: UUID
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    data_key_id: UUID | None = None
    sealed_headers: bytes | None = field(default=None, repr=False)


class Arriving(NamedTuple):
    """An event that comes in: what is kept of it, where it came by, and its key there.

    It is kept only if its tenant was last projected at `as_of`, where that is said.
    """

    kept: Kept
    endpoint_id: UUID
    type: str
    delivery_key: str
    as_of: datetime | None = None


def accepting(arriving: Sequence[Arriving]) -> Bound:
    """Keeps events, of whichever tenants, unless they are known; `accepted` takes the answer.

    Each leaves the transaction inside its own tenant. Of two with one key at once the second waits
    for the first's transaction; so whoever keeps many sorts them first.
    """
    return Bound(ACCEPT, {"events": json.dumps(list(map(_told, arriving)))})


def accepted(row: Any) -> UUID | TenonError:
    """Whose receipt an event has, the new one's or the first one's; or why it has none.

    Stale where the tenant was projected at another time than is said, NotFound where it has been
    disabled since its endpoint was looked up, Aborted where the receipt that was in the way has
    just been forgotten.
    """
    if row.stale:
        return Stale("the tenant has been projected anew")
    if not row.enabled:
        return NotFound("the tenant is disabled")
    found: UUID | None = row.event_id
    return found or Aborted("another delivery of the same event is under way")


def _told(each: Arriving) -> Mapping[str, Any]:
    kept = each.kept
    # Ids without hyphens: to write them costs half, and PostgreSQL reads both.
    return {
        "tenant_id": kept.tenant_id.hex,
        "id": kept.id.hex,
        "endpoint_id": each.endpoint_id.hex,
        "type": each.type,
        "delivery_key": each.delivery_key,
        "headers": dict(kept.headers),
        "body": _base64(kept.body),
        "data_key_id": kept.data_key_id.hex if kept.data_key_id else None,
        "sealed_headers": _base64(kept.sealed_headers) if kept.sealed_headers else None,
        "projected_at": each.as_of.isoformat() if each.as_of else None,
    }


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


async def find(database: Database, tenant_id: UUID, event_id: UUID) -> Kept | None:
    """What is kept of an event's headers and body."""
    rows = await database.read(tenant_id, KEPT, tenant_id=tenant_id, id=event_id)
    return kept(rows[0]) if rows else None


def kept(row: Any) -> Kept:
    """What a row of events keeps of its headers and body."""
    return Kept(**{name: getattr(row, name) for name in _KEPT})
