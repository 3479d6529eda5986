"""What an apply leaves besides the objects: revisions, ownership, answers, the feed."""

from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Text,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from services.chassis.database import Bound, Statement, Transaction, Xid8
from services.registry import tables as t
from services.registry.audit.log import Occasion
from services.registry.wanted.objects import Key
from services.registry.wanted.plan import Ownership, Plan

FEED_CHANNEL = "registry_feed"

_OWN = t.config_ownership.c
OWNERSHIP = Statement(
    select(t.config_ownership).where(
        _OWN.tenant_id == bindparam("tenant_id"),
        _OWN.kind == func.any(bindparam("kinds", type_=ARRAY(Text))),
        _OWN.name == func.any(bindparam("names", type_=ARRAY(Text))),
    )
)
_SET_OWNER = upsert(t.config_ownership).values(
    {c.name: bindparam(c.name, type_=c.type) for c in t.config_ownership.c}
)
SET_OWNER = Statement(
    _SET_OWNER.on_conflict_do_update(
        index_elements=["tenant_id", "kind", "name", "source"],
        set_={"fields": _SET_OWNER.excluded.fields},
    )
)
DISOWN = Statement(
    delete(t.config_ownership).where(
        _OWN.tenant_id == bindparam("tenant_id"),
        _OWN.kind == bindparam("kind"),
        _OWN.name == bindparam("name"),
        _OWN.source == bindparam("source"),
    )
)
DISOWN_ALL = Statement(
    delete(t.config_ownership).where(
        _OWN.tenant_id == bindparam("tenant_id"),
        _OWN.kind == bindparam("kind"),
        _OWN.name == bindparam("name"),
    )
)
INSERT_REVISION = Statement(
    insert(t.config_revisions).values(
        {
            c.name: bindparam(c.name, type_=c.type)
            for c in t.config_revisions.c
            if c.name != "created_at"
        }
    )
)
LIST_REVISIONS = Statement(
    select(t.config_revisions)
    .where(
        t.config_revisions.c.tenant_id == bindparam("tenant_id"),
        t.config_revisions.c.revision < bindparam("before", type_=BigInteger),
    )
    .order_by(t.config_revisions.c.revision.desc())
    .limit(bindparam("size"))
)
ADVANCE = Statement(
    update(t.tenants)
    .where(t.tenants.c.tenant_id == bindparam("the_tenant_id"))
    .values(revision=bindparam("revision"), updated_at=func.now())
)
NOTIFY = Statement(select(func.pg_notify(bindparam("channel"), bindparam("payload"))))
INSERT_FEED = Statement(
    insert(t.feed)
    .values(tenant_id=bindparam("tenant_id"), kind="revision", revision=bindparam("revision"))
    .inline()
)
_FEED = t.feed.c
# Only what is below every open transaction: a later commit could still slip in above it.
READ_FEED = Statement(
    select(_FEED.xid, _FEED.seq, _FEED.tenant_id, _FEED.kind, _FEED.revision, _FEED.subject)
    .where(
        tuple_(_FEED.xid, _FEED.seq)
        > tuple_(cast(cast(bindparam("xid"), Text), Xid8), bindparam("seq", type_=BigInteger)),
        text("xid < pg_snapshot_xmin(pg_current_snapshot())"),
    )
    .order_by(_FEED.xid, _FEED.seq)
    .limit(bindparam("size"))
)
INCARNATION = Statement(select(t.deployment.c.incarnation))


async def ownership(transaction: Transaction, tenant_id: UUID, keys: Sequence[Key]) -> Ownership:
    """Which source set which fields of these objects."""
    rows = await transaction.all(
        OWNERSHIP,
        tenant_id=tenant_id,
        kinds=sorted({kind for kind, _ in keys}),
        names=sorted({name for _, name in keys}),
    )
    owners: dict[Key, dict[str, frozenset[str]]] = {}
    for row in rows:
        owners.setdefault((row.kind, row.name), {})[row.source] = frozenset(row.fields)
    return owners


def owning(
    tenant_id: UUID,
    key: Key,
    before: Mapping[str, frozenset[str]],
    source: str,
    fields: frozenset[str],
) -> Iterator[Bound]:
    """What makes the source the owner of exactly these fields of an object, and no other."""
    after = {other: owned - fields for other, owned in before.items() if other != source}
    after[source] = fields
    for owner, owned in after.items():
        place = {"tenant_id": tenant_id, "kind": key[0], "name": key[1], "source": owner}
        if owned and before.get(owner) != owned:
            yield Bound(SET_OWNER, {**place, "fields": sorted(owned)})
        if not owned and owner in before:
            yield Bound(DISOWN, place)


def disowning(tenant_id: UUID, key: Key) -> Bound:
    """What leaves an object that is no more to nobody."""
    return Bound(DISOWN_ALL, {"tenant_id": tenant_id, "kind": key[0], "name": key[1]})


def adding(occasion: Occasion, plan: Plan) -> list[Bound]:
    """What moves the tenant on to a revision, records it, and tells the feed at commit."""
    at = {"tenant_id": occasion.tenant_id, "revision": occasion.revision}
    row = {
        **at,
        "source": plan.source,
        "principal_name": occasion.actor.display_name,
        "plan_hash": plan.digest(),
        "commit": occasion.commit,
        "created": plan.count("create"),
        "updated": plan.count("update"),
        "deleted": plan.count("delete"),
    }
    return [
        Bound(ADVANCE, {"the_tenant_id": occasion.tenant_id, "revision": occasion.revision}),
        Bound(INSERT_REVISION, row),
        Bound(INSERT_FEED, at),
        Bound(NOTIFY, {"channel": FEED_CHANNEL, "payload": str(occasion.tenant_id)}),
    ]
