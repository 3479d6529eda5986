"""The projected tenants: found by slug or id before the tenant is known, written inside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, String, Uuid, any_, bindparam, case, func, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert

from services.chassis.database import Bound, Database, Statement, Transaction
from services.chassis.tenancy import State, Tenant
from services.chassis.tenants import TenantFinder
from services.executor.tables import TENANTS


@dataclass(frozen=True, slots=True)
class ProjectedTenant:
    """A tenant as the registry last told of it."""

    tenant_id: UUID
    slug: str
    enabled: bool
    revision: int
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a tenant is enabled, and when it was last projected."""

    tenant_id: UUID
    enabled: bool
    projected_at: datetime


_COLUMNS = (TENANTS.c.tenant_id, TENANTS.c.slug, TENANTS.c.enabled, TENANTS.c.revision)
_DRAINING = TENANTS.c.draining_since.is_not(None).label("draining")

GET = Statement(select(*_COLUMNS, _DRAINING).where(TENANTS.c.tenant_id == bindparam("tenant_id")))
FIND = Statement(
    select(*_COLUMNS, _DRAINING).where(
        or_(
            TENANTS.c.slug == bindparam("slug"),
            TENANTS.c.tenant_id == bindparam("tenant_id", type_=Uuid),
        )
    )
)


STANDING = Statement(
    select(TENANTS.c.slug, TENANTS.c.tenant_id, TENANTS.c.enabled, TENANTS.c.projected_at).where(
        TENANTS.c.slug == any_(bindparam("slugs", type_=ARRAY(String)))
    )
)


ALL = Statement(select(TENANTS.c.tenant_id))

_SINCE = bindparam("draining", type_=Boolean)
ADD = Statement(
    insert(TENANTS)
    .values(
        **{c.name: bindparam(c.name, type_=c.type) for c in _COLUMNS},
        draining_since=case((_SINCE, func.now())),
    )
    .on_conflict_do_nothing(index_elements=[TENANTS.c.tenant_id])
)
UPDATE = Statement(
    update(TENANTS)
    .where(
        TENANTS.c.tenant_id == bindparam("the_tenant_id", type_=Uuid),
        TENANTS.c.revision == bindparam("seen", type_=TENANTS.c.revision.type),
    )
    .values(
        slug=bindparam("slug"),
        enabled=bindparam("enabled"),
        revision=bindparam("revision"),
        projected_at=func.now(),
        draining_since=case((_SINCE, func.coalesce(TENANTS.c.draining_since, func.now()))),
    )
)


async def get(source: Transaction | Database, tenant_id: UUID) -> ProjectedTenant | None:
    """A tenant by its id, read inside it."""
    if isinstance(source, Database):
        rows = await source.read(tenant_id, GET, tenant_id=tenant_id)
    else:
        rows = await source.all(GET, tenant_id=tenant_id)
    return ProjectedTenant(*rows[0]) if rows else None


async def find(database: Database, slug_or_id: str) -> ProjectedTenant | None:
    """A tenant by what callers name it with."""
    async with database.system() as tx:
        row: Any = await tx.one(FIND, slug=slug_or_id, tenant_id=_as_id(slug_or_id))
    return ProjectedTenant(*row) if row is not None else None


async def standing(database: Database, slugs: Sequence[str]) -> dict[str, Standing]:
    """How tenants stand, by slug; those that are not here are left out."""
    async with database.system() as tx:
        rows = (await tx.conclude([Bound(STANDING, {"slugs": list(slugs)})]))[0]
    return {slug: Standing(*row) for slug, *row in rows}


async def ids(database: Database) -> list[UUID]:
    """Every tenant that is here."""
    async with database.system() as tx:
        return [row.tenant_id for row in await tx.all(ALL)]


async def write(tx: Transaction, tenant: ProjectedTenant, *, seen: int | None) -> bool:
    """Write a tenant unless its revision is another one than was `seen` (None: it was absent).

    False: somebody else wrote it meanwhile, or it has gone. The row stays locked until the
    transaction ends.
    """
    row = {
        "slug": tenant.slug,
        "enabled": tenant.enabled,
        "revision": tenant.revision,
        "draining": tenant.draining,
    }
    if seen is None:
        return await tx.run(ADD, tenant_id=tenant.tenant_id, **row) == 1
    return await tx.run(UPDATE, the_tenant_id=tenant.tenant_id, seen=seen, **row) == 1


def _state(tenant: ProjectedTenant) -> State:
    if tenant.draining:
        return "draining"
    return "active" if tenant.enabled else "disabled"


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def finder(database: Database) -> TenantFinder:
    """Finds the tenants that calls name among the projected ones."""

    async def load(slug_or_id: str) -> Tenant | None:
        found = await find(database, slug_or_id)
        if found is None:
            return None
        return Tenant(found.slug, found.tenant_id, _state(found))

    return TenantFinder(load)
