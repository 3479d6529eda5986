"""Why a tenant goes, how far it has gone, and what was left of it."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy import Text, bindparam, false, func, insert, or_, select, update

from services.chassis.database import Bound, Database, Statement, Transaction
from services.registry import tables as t
from services.registry.store.revisions import FEED_CHANNEL, NOTIFY

_S, _T = t.tenant_tombstones.c, t.tenants.c
_MINE = _S.tenant_id == bindparam("the_tenant_id")

ADD = Statement(
    insert(t.tenant_tombstones).values(
        {
            name: bindparam(name, type_=_S[name].type)
            for name in (
                *("tenant_id", "slug", "actor_id", "actor_kind", "actor_name", "reason", "forced"),
            )
        }
    )
)
DRAIN = Statement(
    update(t.tenants)
    .where(_T.tenant_id == bindparam("the_tenant_id"))
    .values(state="draining", enabled=false(), revision=_T.revision + 1, updated_at=func.now())
)
TELL_FEED = Statement(
    insert(t.feed)
    .values(tenant_id=bindparam("tenant_id"), kind="tenant", revision=bindparam("revision"))
    .inline()
)
ACTIVE_CONNECTORS = Statement(
    select(func.count().label("active")).where(
        t.connectors.c.tenant_id == bindparam("tenant_id"), t.connectors.c.is_active
    )
)
REPORT = Statement(
    update(t.tenant_tombstones)
    .where(_MINE, _S.reported_at.is_(None))
    .values(
        executor_rows=bindparam("executor_rows", type_=_S.executor_rows.type),
        reported_at=func.now(),
    )
)
DUE = Statement(select(_S.tenant_id).where(_S.purged_at.is_(None), _S.reported_at.is_not(None)))
GET = Statement(select(t.tenant_tombstones).where(_S.tenant_id == bindparam("tenant_id")))
BY_SLUG = Statement(
    select(t.tenant_tombstones)
    .where(
        or_(_S.slug == bindparam("slug"), bindparam("slug", type_=Text) == func.text(_S.tenant_id))
    )
    .order_by(_S.created_at.desc())
)
COUNT = Statement(
    update(t.tenant_tombstones)
    .where(_MINE)
    .values(registry_rows=bindparam("registry_rows", type_=_S.registry_rows.type))
)
END = Statement(update(t.tenant_tombstones).where(_MINE).values(purged_at=func.now()))
BLANK = Statement(
    update(t.tenants)
    .where(_T.tenant_id == bindparam("the_tenant_id"))
    .values(
        state="purged",
        display_name="",
        limits=bindparam("nothing", type_=_T.limits.type),
        labels=bindparam("nothing", type_=_T.labels.type),
        annotations=bindparam("nothing", type_=_T.annotations.type),
        updated_at=func.now(),
    )
)
LOCK = Statement(select(_T.state).where(_T.tenant_id == bindparam("tenant_id")).with_for_update())


def draining(tenant: Any, actor: Mapping[str, Any], *, forced: bool) -> list[Bound]:
    """What puts a tenant on its way out, and tells whoever follows the feed.

    Its revision goes one on: who holds an older snapshot cannot write it over what follows.
    """
    tenant_id = tenant.tenant_id
    row = {"tenant_id": tenant_id, "slug": tenant.slug, "forced": forced, **actor}
    return [
        Bound(DRAIN, {"the_tenant_id": tenant_id}),
        Bound(ADD, row),
        *_telling_feed(tenant_id, tenant.revision + 1),
    ]


def _telling_feed(tenant_id: UUID, revision: int) -> list[Bound]:
    return [
        Bound(TELL_FEED, {"tenant_id": tenant_id, "revision": revision}),
        Bound(NOTIFY, {"channel": FEED_CHANNEL, "payload": str(tenant_id)}),
    ]


async def active_connectors(transaction: Transaction, tenant_id: UUID) -> int:
    """How many connectors of a tenant are active."""
    return int((await transaction.one(ACTIVE_CONNECTORS, tenant_id=tenant_id)).active)


async def report(database: Database, tenant_id: UUID, rows: Mapping[str, int]) -> None:
    """Keep what the executor has deleted of a tenant; the first report counts."""
    async with database.tenant(tenant_id) as transaction:
        await transaction.run(REPORT, the_tenant_id=tenant_id, executor_rows=dict(rows))


async def due(database: Database) -> list[UUID]:
    """The tenants of which the executor has nothing any more, and we have."""
    async with database.system() as transaction:
        return [row.tenant_id for row in await transaction.all(DUE)]


async def find(database: Database, slug: str) -> Any:
    """The tombstone of a tenant by its slug or id; None: there is none."""
    async with database.system() as transaction:
        return await transaction.one(BY_SLUG, slug=slug)


async def get(transaction: Transaction, tenant_id: UUID) -> Any:
    """A tenant's tombstone, inside the tenant; None: it is not on its way out."""
    return await transaction.one(GET, tenant_id=tenant_id)


def within(row: Any) -> Any:
    """The tombstone in a tenant's row as `store.tenants` reads it; None: it has none."""
    if row.tombstone_tenant_id is None:
        return None
    names = [column.name for column in _S]
    return SimpleNamespace(**{name: getattr(row, f"tombstone_{name}") for name in names})


async def count(transaction: Transaction, tenant_id: UUID, rows: Mapping[str, int]) -> None:
    """Keep how many rows are deleted by now, by table."""
    await transaction.run(COUNT, the_tenant_id=tenant_id, registry_rows=dict(rows))


async def still_drains(transaction: Transaction, tenant_id: UUID) -> bool:
    """Whether a tenant is on its way out; whoever adds rows to it waits for this transaction."""
    row = await transaction.one(LOCK, tenant_id=tenant_id)
    return row is not None and row.state == "draining"


def ending(tenant_id: UUID) -> list[Bound]:
    """What leaves of a tenant its slug and its tombstone.

    The feed tells it last: an executor restored from a backup may have the tenant again.
    """
    nothing = {"the_tenant_id": tenant_id, "nothing": dict[str, object]()}
    return [
        Bound(BLANK, nothing),
        Bound(END, {"the_tenant_id": tenant_id}),
        *_telling_feed(tenant_id, 0),
    ]
