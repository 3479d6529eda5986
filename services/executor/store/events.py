"""Events as they arrived, and the receipts by which a redelivery is known."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Database, Statement, Transaction
from services.chassis.errors import NotFound
from services.executor.tables import EVENT_RECEIPTS as RECEIPTS
from services.executor.tables import EVENTS, TENANTS

RECEIVE = Statement(
    insert(RECEIPTS)
    .values(
        {
            name: bindparam(name, type_=RECEIPTS.c[name].type)
            for name in ("tenant_id", "endpoint_id", "key", "event_id")
        }
    )
    .on_conflict_do_nothing()
)
RECEIVED = Statement(
    select(RECEIPTS.c.event_id).where(
        RECEIPTS.c.tenant_id == bindparam("tenant_id"),
        RECEIPTS.c.endpoint_id == bindparam("endpoint_id"),
        RECEIPTS.c.key == bindparam("key"),
    )
)
ENABLED = Statement(select(TENANTS.c.enabled).where(TENANTS.c.tenant_id == bindparam("tenant_id")))
_STORED = (
    *("tenant_id", "id", "endpoint_id", "type", "delivery_key", "headers", "body"),
    *("data_key_id", "sealed_headers"),
)
STORE = Statement(
    insert(EVENTS).values({name: bindparam(name, type_=EVENTS.c[name].type) for name in _STORED})
)
_KEPT = ("tenant_id", "id", "headers", "body", "data_key_id", "sealed_headers")
KEPT = Statement(
    select(*(EVENTS.c[name] for name in _KEPT)).where(
        EVENTS.c.tenant_id == bindparam("tenant_id"), EVENTS.c.id == bindparam("id")
    )
)


@dataclass(frozen=True, slots=True)
class Kept:
    """An event's headers and body at rest.

    With a data key both are sealed: `headers` is empty then, and `body` ciphertext.
    """

    tenant_id: UUID
    id: UUID
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    data_key_id: UUID | None = None
    sealed_headers: bytes | None = field(default=None, repr=False)


async def receive(
    tx: Transaction, tenant_id: UUID, endpoint_id: UUID, key: str, event_id: UUID
) -> UUID:
    """Take the receipt of one delivery; answers whose it is: `event_id`, or the first event's.

    Of two at once the second waits for the first's transaction. Raises NotFound where the tenant
    has been disabled since its endpoint was looked up.
    """
    place = {"tenant_id": tenant_id, "endpoint_id": endpoint_id, "key": key}
    calls = [
        Bound(RECEIVE, {**place, "event_id": event_id}),
        Bound(RECEIVED, place),
        Bound(ENABLED, {"tenant_id": tenant_id}),
    ]
    _, rows, owners = await tx.pipeline(calls)
    if not (owners and owners[0].enabled):
        raise NotFound("the tenant is disabled")
    found: UUID = rows[0].event_id
    return found


async def store(
    tx: Transaction,
    kept: Kept,
    *,
    endpoint_id: UUID,
    event_type: str,
    delivery_key: str,
) -> None:
    """Keep an event."""
    await tx.run(
        STORE,
        **{**asdict(kept), "headers": dict(kept.headers)},
        endpoint_id=endpoint_id,
        type=event_type,
        delivery_key=delivery_key,
    )


async def find(database: Database, tenant_id: UUID, event_id: UUID) -> Kept | None:
    """What is kept of an event's headers and body."""
    rows = await database.read(tenant_id, KEPT, tenant_id=tenant_id, id=event_id)
    return kept(rows[0]) if rows else None


def kept(row: Any) -> Kept:
    """What a row of events keeps of its headers and body."""
    return Kept(**{name: getattr(row, name) for name in _KEPT})
