"""The audit logs in their tables: each tenant's, and the platform's.

Both are the same book; they differ in the tables, and in that a tenant's statements name it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    Select,
    SmallInteger,
    Table,
    Text,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import UUID as UUID_TYPE
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Statement
from services.registry import tables as t

# From this risk on an event that was done waits for a review.
REVIEWED: Final = 3
LAST: Final = UUID(int=2**128 - 1)

_ID = UUID_TYPE(as_uuid=True)
_MOMENT = DateTime(timezone=True)


@dataclass(frozen=True, slots=True)
class Book:
    """The statements of one kind of log."""

    ensure_head: Statement
    lock_head: Statement
    move_head: Statement
    append: Statement
    known: Statement
    page: Statement
    get: Statement
    summary: Statement
    review: Statement
    head: Statement
    walk: Statement
    anchors: Statement
    add_anchor: Statement
    last_between: Statement


def as_fields(fields: list[dict[str, Any]]) -> Jsonb:
    """An event's fields as their column takes them."""
    return Jsonb(fields)


def _optional(name: str, column: Column[Any]) -> ColumnElement[bool]:
    """A filter that lets everything pass while its parameter is null."""
    value = bindparam(name, type_=column.type)
    return or_(value.is_(None), column == value)


def _mine(table: Table) -> tuple[ColumnElement[bool], ...]:
    """That a row is of the tenant; nothing where the table has none."""
    return (table.c.tenant_id == bindparam("tenant_id"),) if "tenant_id" in table.c else ()


def _inserting(table: Table, *but: str) -> Any:
    columns = [c for c in table.c if c.name not in {"singleton", *but}]
    return upsert(table).values({c.name: bindparam(c.name, type_=c.type) for c in columns})


def _with_review(events: Table, reviews: Table) -> Select[Any]:
    same = [events.c.id == reviews.c.event_id]
    if "tenant_id" in events.c:
        same.append(events.c.tenant_id == reviews.c.tenant_id)
    reviewed = [reviews.c.reviewer_name, reviews.c.note]
    return select(events, *reviewed, reviews.c.created_at.label("reviewed_at")).select_from(
        events.outerjoin(reviews, and_(*same))
    )


def _pending(events: Table, reviews: Table) -> ColumnElement[bool]:
    """That an event waits for a review."""
    waits = and_(events.c.risk >= REVIEWED, events.c.outcome == "done")
    return and_(waits, reviews.c.event_id.is_(None))


def _page(events: Table, reviews: Table) -> Statement:
    severities = bindparam("severities", type_=ARRAY(Text))
    since, until = (bindparam(name, type_=_MOMENT) for name in ("since", "until"))
    return Statement(
        _with_review(events, reviews)
        .where(
            *_mine(events),
            events.c.id < bindparam("before", type_=_ID),
            _optional("kind", events.c.kind),
            _optional("object", events.c.object),
            _optional("actor_id", events.c.actor_id),
            _optional("actor_name", events.c.actor_name),
            _optional("action", events.c.action),
            _optional("outcome", events.c.outcome),
            or_(severities.is_(None), events.c.severity == func.any(severities)),
            events.c.risk >= bindparam("min_risk", type_=SmallInteger),
            or_(since.is_(None), events.c.created_at >= since),
            or_(until.is_(None), events.c.created_at < until),
            or_(bindparam("everything").is_(True), _pending(events, reviews)),
        )
        .order_by(events.c.id.desc())
        .limit(bindparam("size"))
    )


def _summary(events: Table) -> Statement:
    day = func.date_trunc(
        literal_column("'day'"), events.c.created_at, literal_column("'UTC'")
    ).label("day")
    grouped = (day, events.c.kind, events.c.action, events.c.risk, events.c.outcome)
    since, until = (bindparam(name, type_=_MOMENT) for name in ("since", "until"))
    return Statement(
        select(*grouped, func.sum(events.c.repeats + 1).label("count"))
        .where(*_mine(events), events.c.created_at >= since, events.c.created_at < until)
        .group_by(*grouped)
        .order_by(day.desc(), events.c.kind, events.c.action, events.c.risk, events.c.outcome)
    )


def _last_between(events: Table) -> Statement:
    """The last event in the chain of those whose ids lie in a month, whatever their own order."""
    low, high = (bindparam(name, type_=_ID) for name in ("low", "high"))
    return Statement(
        select(events.c.seq, events.c.mac)
        .where(*_mine(events), events.c.id >= low, events.c.id < high)
        .order_by(events.c.seq.desc())
        .limit(1)
    )


def _walk(events: Table) -> Statement:
    after = bindparam("after", type_=BigInteger)
    seen = bindparam("seen", type_=_ID)
    beyond = or_(events.c.seq > after, and_(events.c.seq == after, events.c.id > seen))
    return Statement(
        select(events)
        .where(*_mine(events), events.c.seq >= after, beyond)
        .order_by(events.c.seq, events.c.id)
        .limit(bindparam("size"))
    )


def _book(events: Table, head: Table, anchors: Table, reviews: Table) -> Book:
    ids = bindparam("ids", type_=ARRAY(_ID))
    of_head = select(head).where(*_mine(head))
    moved = {c: bindparam(f"new_{c}", type_=head.c[c].type) for c in ("seq", "mac", "proof")}
    return Book(
        ensure_head=Statement(_inserting(head).on_conflict_do_nothing()),
        lock_head=Statement(of_head.with_for_update()),
        move_head=Statement(update(head).where(*_mine(head)).values(moved)),
        append=Statement(_inserting(events)),
        known=Statement(
            select(events.c.told_id).where(*_mine(events), events.c.told_id == func.any(ids))
        ),
        page=_page(events, reviews),
        get=Statement(
            _with_review(events, reviews).where(
                *_mine(events), events.c.id == bindparam("event_id", type_=_ID)
            )
        ),
        summary=_summary(events),
        review=Statement(_inserting(reviews, "created_at")),
        head=Statement(of_head),
        walk=_walk(events),
        anchors=Statement(select(anchors).where(*_mine(anchors)).order_by(anchors.c.seq)),
        add_anchor=Statement(_inserting(anchors).on_conflict_do_nothing()),
        last_between=_last_between(events),
    )


TENANTS: Final = _book(t.audit_events, t.audit_heads, t.audit_anchors, t.audit_reviews)
PLATFORM: Final = _book(
    t.platform_audit_events,
    t.platform_audit_head,
    t.platform_audit_anchors,
    t.platform_audit_reviews,
)


def book_of(tenant_id: UUID | None) -> Book:
    """The statements of a tenant's log, or of the platform's."""
    return PLATFORM if tenant_id is None else TENANTS


def scope_of(tenant_id: UUID | None) -> Mapping[str, UUID]:
    """The parameter by which a tenant's statements name it."""
    return {} if tenant_id is None else {"tenant_id": tenant_id}


_ANCHORED = (
    select(func.coalesce(func.max(t.audit_anchors.c.seq), 0))
    .where(t.audit_anchors.c.tenant_id == t.audit_heads.c.tenant_id)
    .scalar_subquery()
)
# By the system login: the logs that have grown since they were last anchored.
GROWN: Final = Statement(select(t.audit_heads).where(t.audit_heads.c.seq > _ANCHORED))
HEADED: Final = Statement(select(t.audit_heads.c.tenant_id).where(t.audit_heads.c.seq > 0))

_FEED = ("tenant_id", "kind", "revision", "subject")
NOTICE: Final = Statement(
    insert(t.feed).values({c: bindparam(c, type_=t.feed.c[c].type) for c in _FEED}).inline()
)
