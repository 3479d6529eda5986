"""Tenants: found by the system login before any tenant is known, changed inside themselves."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Text, bindparam, case, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Bound, Database, Statement, Transaction
from services.chassis.errors import AlreadyExists, FailedPrecondition
from services.chassis.ids import TENANT_ID
from services.chassis.tenancy import Tenant
from services.chassis.tenants import TenantFinder
from services.registry import tables as t
from services.registry.wanted.objects import ANNOTATIONS, LABELS, Complete

_T = t.tenants.c
_STATUS = t.tenant_status.c


def state_of(tenants: Any) -> ColumnElement[str]:
    """A tenant's state as callers meet it."""
    return case(
        (tenants.state != "active", tenants.state), (tenants.enabled, "active"), else_="disabled"
    )


# A tenant that is purged is found, too: its row keeps the slug, and its log may be read.
_FIND = select(_T.slug, _T.tenant_id, state_of(_T).label("state"))
FIND_SLUG = Statement(_FIND.where(_T.slug == bindparam("named", type_=Text)))
FIND_ID = Statement(_FIND.where(_T.tenant_id == bindparam("named", type_=_T.tenant_id.type)))
PURGED = Statement(select(_T.slug).where(_T.slug == bindparam("slug"), _T.state == "purged"))
# Rows that refer to the tenant may still be added meanwhile, such as what is projected.
LOCK = Statement(
    select(t.tenants).where(_T.tenant_id == bindparam("tenant_id")).with_for_update(key_share=True)
)
INSERT = Statement(
    insert(t.tenants).values(
        {
            c.name: bindparam(c.name, type_=c.type)
            for c in _T
            if c.name not in {"created_at", "updated_at"}
        }
    )
)
UPDATE = Statement(
    update(t.tenants)
    .where(_T.tenant_id == bindparam("the_tenant_id"))
    .values(
        display_name=bindparam("display_name"),
        enabled=bindparam("enabled"),
        limits=bindparam("limits", type_=_T.limits.type),
        labels=bindparam("labels", type_=_T.labels.type),
        annotations=bindparam("annotations", type_=_T.annotations.type),
        updated_at=func.now(),
    )
)
_STONE = t.tenant_tombstones.c
WITH_STATUS = select(
    t.tenants,
    func.coalesce(_STATUS.projected_revision, 0).label("projected_revision"),
    *(column.label(f"tombstone_{column.name}") for column in _STONE),
).select_from(
    t.tenants.outerjoin(t.tenant_status, _STATUS.tenant_id == _T.tenant_id).outerjoin(
        t.tenant_tombstones, _STONE.tenant_id == _T.tenant_id
    )
)
GET = Statement(WITH_STATUS.where(_T.tenant_id == bindparam("tenant_id")))
PAGE = Statement(
    WITH_STATUS.where(
        _T.state != "purged",
        _T.slug > bindparam("after"),
        or_(
            bindparam("everywhere").is_(True),
            _T.slug == func.any(bindparam("slugs", type_=ARRAY(Text))),
        ),
    )
    .order_by(_T.slug)
    .limit(bindparam("size"))
)
_REPORT = upsert(t.tenant_status).values(
    tenant_id=bindparam("tenant_id"),
    projected_revision=bindparam("revision"),
    reported_at=func.now(),
)
REPORT = Statement(
    _REPORT.on_conflict_do_update(
        index_elements=["tenant_id"],
        # Of two executors the slower one may report last.
        set_={
            "projected_revision": func.greatest(
                _STATUS.projected_revision, _REPORT.excluded.projected_revision
            ),
            "reported_at": func.now(),
        },
    )
)


class Tenants:
    """Finds, reads and reports on tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._finder = TenantFinder(self._load)
        self.forget = self._finder.forget

    async def find(self, slug_or_id: str) -> Tenant | None:
        """A tenant by slug or id, also one that is purged."""
        return await self._finder.find(slug_or_id)

    async def _load(self, slug_or_id: str) -> Tenant | None:
        async with self._database.system() as transaction:
            statement = FIND_ID if TENANT_ID.fullmatch(slug_or_id) else FIND_SLUG
            row = await transaction.one(statement, named=slug_or_id)
        return Tenant(*row) if row is not None else None

    async def check_unused(self, slug: str) -> None:
        """Raise AlreadyExists where a tenant of that slug was deleted."""
        async with self._database.system() as transaction:
            if await transaction.one(PURGED, slug=slug) is not None:
                raise AlreadyExists(f"tenants/{slug} was deleted: a slug is never used again")

    async def get(self, tenant_id: UUID) -> Any:
        """Its row, with the projected revision."""
        return (await self._database.read(tenant_id, GET, tenant_id=tenant_id))[0]

    async def after(self, slug: str, size: int, slugs: Sequence[str] | None) -> list[Any]:
        """A page of rows by slug: of these slugs, or of all."""
        async with self._database.system() as transaction:
            return await transaction.all(
                PAGE, after=slug, size=size, everywhere=slugs is None, slugs=list(slugs or ())
            )

    async def report(self, tenant_id: UUID, revision: int) -> None:
        """Keep the revision that the executor works by."""
        async with self._database.tenant(tenant_id) as transaction:
            await transaction.run(REPORT, tenant_id=tenant_id, revision=revision)


def complete(row: Any) -> Complete:
    """The Tenant object in a row."""
    fields = {
        LABELS: row.labels,
        ANNOTATIONS: row.annotations,
        "spec.display_name": row.display_name,
        "spec.enabled": row.enabled,
        "spec.limits": row.limits,
    }
    return Complete("Tenant", row.slug, fields, row.tenant_id)


async def hold(transaction: Transaction, tenant_id: UUID) -> Any:
    """Its row, held against every other change until the transaction ends; None: no tenant."""
    return await transaction.one(LOCK, tenant_id=tenant_id)


async def lock(transaction: Transaction, tenant_id: UUID) -> Any:
    """As `hold`, for a change: raises FailedPrecondition where the tenant is on its way out."""
    row = await hold(transaction, tenant_id)
    if row is not None and row.state != "active":
        raise FailedPrecondition(
            f"tenants/{row.slug} is being deleted: nothing of it changes any more",
            reason="TENANT_DRAINING",
        )
    return row


async def read(transaction: Transaction, tenant_id: UUID) -> Any:
    """Its row inside a transaction."""
    return await transaction.one(GET, tenant_id=tenant_id)


def writing(tenant_id: UUID, one: Complete, *, new: bool) -> Bound:
    """What inserts (at revision 0) or updates the tenant's own fields."""
    row = {
        "display_name": one.fields["spec.display_name"],
        "enabled": one.fields["spec.enabled"],
        "limits": one.fields["spec.limits"],
        "labels": one.fields[LABELS],
        "annotations": one.fields[ANNOTATIONS],
    }
    if new:
        made = {"tenant_id": tenant_id, "slug": one.name, "revision": 0, "state": "active"}
        return Bound(INSERT, {**row, **made})
    return Bound(UPDATE, {**row, "the_tenant_id": tenant_id})
