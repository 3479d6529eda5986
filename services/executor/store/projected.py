"""The projection of what tenants want: each wanted object as the registry last told it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    String,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    delete,
    exists,
    func,
    not_,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Bound, Database, Statement, Transaction
from services.executor.tables import PROJECTED_OBJECTS as OBJECTS
from services.executor.tables import PROVIDER_SWITCHES, TENANTS


@dataclass(frozen=True, slots=True)
class ProjectedObject:
    """One wanted object.

    `kind` is the YAML kind. `spec` has the field names of the contract and every default filled in;
    durations are text such as "30s" and references are names. `version` is a Credential's current
    version, 0 for the other kinds; a Credential's spec holds no values.
    """

    kind: str
    object_id: UUID
    name: str
    version: int
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a call for its `owner`, a connector or a stream, needs; None where that is not there.

    `switched_off`: operators let nobody call the integration's provider.
    """

    enabled: bool
    switched_off: bool
    owner: ProjectedObject | None
    integration: ProjectedObject | None
    credential: ProjectedObject | None


@dataclass(frozen=True, slots=True)
class WayOut:
    """An outbound endpoint with the credentials it names; None where the projection has none."""

    enabled: bool
    endpoint: ProjectedObject | None
    secret: ProjectedObject | None
    credential: ProjectedObject | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A connector or a stream and what its calls need, as it was wanted at one moment.

    `enabled` is the tenant's, None where it is not there.
    """

    enabled: bool | None
    switched_off: frozenset[str]
    objects: tuple[ProjectedObject, ...]

    @property
    def owner(self) -> ProjectedObject | None:
        """The connector, or the stream, where it is wanted still."""
        return next((each for each in self.objects if each.kind in OWNERS), None)

    def needs(self, integration: str) -> Needs:
        """What a call on an integration needs."""
        of_step = self._named("Integration", integration)
        spec = of_step.spec if of_step else {}
        return Needs(
            enabled=bool(self.enabled),
            switched_off=spec.get("provider") in self.switched_off,
            owner=self.owner,
            integration=of_step,
            credential=self._named("Credential", spec.get("credential") or ""),
        )

    def _named(self, kind: str, name: str) -> ProjectedObject | None:
        return next((each for each in self.objects if (each.kind, each.name) == (kind, name)), None)


OWNERS: Final = frozenset({"Connector", "Stream"})
_COLUMNS = (OBJECTS.c.kind, OBJECTS.c.object_id, OBJECTS.c.name, OBJECTS.c.version, OBJECTS.c.spec)
_MINE = and_(OBJECTS.c.tenant_id == bindparam("tenant_id"), OBJECTS.c.kind == bindparam("kind"))

ONE = Statement(select(*_COLUMNS).where(_MINE, OBJECTS.c.name == bindparam("name")))
ALL_OF = Statement(select(*_COLUMNS).where(_MINE).order_by(OBJECTS.c.name))
ENDPOINTS_OF = Statement(
    select(*_COLUMNS).where(
        OBJECTS.c.tenant_id == bindparam("tenant_id"),
        OBJECTS.c.kind == "WebhookEndpoint",
        OBJECTS.c.object_id == any_(bindparam("ids", type_=ARRAY(Uuid))),
    )
)
SUBSCRIPTIONS_OF = Statement(
    select(*_COLUMNS)
    .where(
        OBJECTS.c.tenant_id == bindparam("tenant_id"),
        OBJECTS.c.kind == "Subscription",
        func.coalesce(OBJECTS.c.spec["endpoint"].astext, "") == bindparam("endpoint"),
    )
    .order_by(OBJECTS.c.name)
)


def _way_in() -> Statement:
    named = and_(OBJECTS.c.kind == bindparam("kind"), OBJECTS.c.name == bindparam("name"))
    mine = OBJECTS.c.tenant_id == bindparam("tenant_id")
    endpoint = select(OBJECTS.c.spec).where(mine, named).cte("endpoint").c.spec
    # What is shown, where something is shown; else what is signed with.
    proof = func.coalesce(func.nullif(endpoint["credential"].astext, ""), endpoint["secret"].astext)
    names = (("Integration", endpoint["integration"].astext), ("Credential", proof))
    wanted = [
        named,
        *(
            and_(OBJECTS.c.kind == kind, OBJECTS.c.name == select(name).scalar_subquery())
            for kind, name in names
        ),
    ]
    return Statement(select(*_COLUMNS).where(mine, or_(*wanted)))


WAY_IN = _way_in()
PROJECTED_AT = Statement(
    select(TENANTS.c.projected_at).where(TENANTS.c.tenant_id == bindparam("tenant_id"))
)


def _way_out() -> Statement:
    mine = OBJECTS.c.tenant_id == bindparam("tenant_id")
    this = and_(
        OBJECTS.c.kind == "WebhookEndpoint", OBJECTS.c.object_id == bindparam("endpoint_id")
    )
    endpoint = select(OBJECTS.c.spec).where(mine, this).cte("endpoint")
    credentials = [
        OBJECTS.c.name == select(endpoint.c.spec[field].astext).scalar_subquery()
        for field in ("secret", "credential")
    ]
    shown = and_(OBJECTS.c.kind == "Credential", or_(*credentials))
    return Statement(select(*_COLUMNS).where(mine, or_(this, shown)))


WAY_OUT = _way_out()


def _needs() -> Statement:
    mine = OBJECTS.c.tenant_id == bindparam("tenant_id")
    named = and_(OBJECTS.c.kind == "Integration", OBJECTS.c.name == bindparam("integration"))
    integration = select(OBJECTS.c.spec).where(mine, named).cte("integration")
    credential = select(integration.c.spec["credential"].astext).scalar_subquery()
    wanted = (
        and_(OBJECTS.c.kind == "Connector", OBJECTS.c.object_id == bindparam("connector_id")),
        named,
        and_(OBJECTS.c.kind == "Credential", OBJECTS.c.name == credential),
    )
    return Statement(select(*_COLUMNS).where(mine, or_(*wanted)))


def _all_needs(which: ColumnElement[bool]) -> Statement:
    mine = OBJECTS.c.tenant_id == bindparam("tenant_id")
    this = and_(OBJECTS.c.kind == "Connector", which)
    step = select(
        func.jsonb_array_elements(OBJECTS.c.spec["steps"]).op("->>")("integration")
    ).where(mine, this)
    named = and_(OBJECTS.c.kind == "Integration", OBJECTS.c.name.in_(step))
    credential = select(OBJECTS.c.spec["credential"].astext).where(mine, named)
    of_them = and_(OBJECTS.c.kind == "Credential", OBJECTS.c.name.in_(credential))
    return Statement(select(*_COLUMNS).where(mine, or_(this, named, of_them)))


def _stream_needs() -> Statement:
    mine = OBJECTS.c.tenant_id == bindparam("tenant_id")
    this = and_(OBJECTS.c.kind == "Stream", OBJECTS.c.object_id == bindparam("stream_id"))
    stream = select(OBJECTS.c.spec).where(mine, this).cte("stream")
    of_stream = select(stream.c.spec["integration"].astext).scalar_subquery()
    named = and_(OBJECTS.c.kind == "Integration", OBJECTS.c.name == of_stream)
    integration = select(OBJECTS.c.spec).where(mine, named).cte("integration")
    credential = select(integration.c.spec["credential"].astext).scalar_subquery()
    of_it = and_(OBJECTS.c.kind == "Credential", OBJECTS.c.name == credential)
    return Statement(select(*_COLUMNS).where(mine, or_(this, named, of_it)))


EVENT_TYPES_OF = Statement(
    select(*_COLUMNS).where(
        OBJECTS.c.tenant_id == bindparam("tenant_id"),
        OBJECTS.c.kind == "EventType",
        OBJECTS.c.spec["is_active"].astext == "true",
        OBJECTS.c.spec["type"].astext == any_(bindparam("types", type_=ARRAY(Text))),
    )
)
NEEDS = _needs()
STREAM_NEEDS = _stream_needs()
ALL_NEEDS = _all_needs(OBJECTS.c.object_id == bindparam("connector_id"))
ALL_NEEDS_BY_NAME = _all_needs(OBJECTS.c.name == bindparam("connector"))
TENANT = Statement(
    select(
        TENANTS.c.enabled,
        func.array(select(PROVIDER_SWITCHES.c.provider).scalar_subquery()).label("switched_off"),
    ).where(TENANTS.c.tenant_id == bindparam("tenant_id"))
)


def _delete_others() -> Statement:
    arrays = [bindparam("kinds", type_=ARRAY(String)), bindparam("ids", type_=ARRAY(Uuid))]
    kept = func.unnest(*arrays).table_valued("kind", "object_id", name="kept").render_derived()
    # An action's connector has the id of its subscription.
    same = and_(OBJECTS.c.kind == kept.c.kind, OBJECTS.c.object_id == kept.c.object_id)
    mine = OBJECTS.c.tenant_id == bindparam("tenant_id")
    return Statement(delete(OBJECTS).where(mine, not_(exists().where(same))))


DELETE_OTHERS = _delete_others()


def _upsert() -> Statement:
    new = insert(OBJECTS).values({c.name: bindparam(c.name, type_=c.type) for c in OBJECTS.c})
    changing = ("name", "version", "spec")
    return Statement(
        new.on_conflict_do_update(
            index_elements=[OBJECTS.c.tenant_id, OBJECTS.c.kind, OBJECTS.c.object_id],
            set_={name: new.excluded[name] for name in changing},
            # Most objects of a snapshot are as they were; those cost a look and no new row.
            where=or_(*(OBJECTS.c[n].is_distinct_from(new.excluded[n]) for n in changing)),
        )
    )


UPSERT = _upsert()


async def one(
    source: Transaction | Database, tenant_id: UUID, kind: str, name: str
) -> ProjectedObject | None:
    """A tenant's object by its name."""
    rows = await _rows(source, tenant_id, ONE, kind=kind, name=name)
    return ProjectedObject(*rows[0]) if rows else None


async def all_of(
    source: Transaction | Database, tenant_id: UUID, kind: str
) -> list[ProjectedObject]:
    """A tenant's objects of one kind, by name."""
    return [ProjectedObject(*row) for row in await _rows(source, tenant_id, ALL_OF, kind=kind)]


async def endpoints_of(
    database: Database, tenant_id: UUID, ids: Iterable[UUID]
) -> dict[UUID, ProjectedObject]:
    """Those of some endpoints that are there, by their ids."""
    rows = await database.read(tenant_id, ENDPOINTS_OF, tenant_id=tenant_id, ids=list(ids))
    return {row.object_id: ProjectedObject(*row) for row in rows}


async def these(
    database: Database, tenant_id: UUID, wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], ProjectedObject]:
    """A tenant's objects by kind and name, as far as they are there."""
    asked = [{"kind": kind, "name": name} for kind, name in sorted(set(wanted))]
    if not asked:
        return {}
    calls = [Bound(ONE, {"tenant_id": tenant_id, **each}) for each in asked]
    answers = await database.read_all(tenant_id, calls)
    found = [ProjectedObject(*row) for rows in answers for row in rows]
    return {(each.kind, each.name): each for each in found}


async def published(
    database: Database, tenant_id: UUID, types: Sequence[str]
) -> tuple[list[ProjectedObject], list[ProjectedObject]]:
    """What published events of some types meet: subscriptions, and active EventTypes."""
    tenant = {"tenant_id": tenant_id}
    subscriptions, event_types = await database.read_all(
        tenant_id,
        [
            Bound(SUBSCRIPTIONS_OF, {**tenant, "endpoint": ""}),
            Bound(EVENT_TYPES_OF, {**tenant, "types": list(types)}),
        ],
    )
    return (
        [ProjectedObject(*row) for row in subscriptions],
        [ProjectedObject(*row) for row in event_types],
    )


async def way_in(
    database: Database, tenant_id: UUID, endpoint: str
) -> tuple[dict[str, ProjectedObject], list[ProjectedObject], datetime | None]:
    """What a webhook meets, at one moment: parts by kind, subscriptions, when it was projected.

    The parts are a WebhookEndpoint, the Integration it names and the Credential senders prove by.
    """
    tenant = {"tenant_id": tenant_id}
    parts, subscriptions, seen = await database.read_all(
        tenant_id,
        [
            Bound(WAY_IN, {**tenant, "kind": "WebhookEndpoint", "name": endpoint}),
            Bound(SUBSCRIPTIONS_OF, {**tenant, "endpoint": endpoint}),
            Bound(PROJECTED_AT, tenant),
        ],
    )
    return (
        {row.kind: ProjectedObject(*row) for row in parts},
        [ProjectedObject(*row) for row in subscriptions],
        seen[0].projected_at if seen else None,
    )


def going_out(tenant_id: UUID, endpoint_id: UUID) -> list[Bound]:
    """Reads what a delivery to an endpoint needs; `way_out` takes the answers."""
    tenant = {"tenant_id": tenant_id}
    return [Bound(TENANT, tenant), Bound(WAY_OUT, {**tenant, "endpoint_id": endpoint_id})]


def way_out(answers: Sequence[list[Any]]) -> WayOut:
    """What was read of the tenant, and of its endpoint."""
    owners, rows = answers
    objects = {(each.kind, each.name): each for each in (ProjectedObject(*row) for row in rows)}
    endpoint = next((each for each in objects.values() if each.kind == "WebhookEndpoint"), None)
    spec = endpoint.spec if endpoint is not None else {}
    return WayOut(
        enabled=bool(owners and owners[0].enabled),
        endpoint=endpoint,
        secret=objects.get(("Credential", spec.get("secret") or "")),
        credential=objects.get(("Credential", spec.get("credential") or "")),
    )


async def runnable(tx: Transaction, tenant_id: UUID, connector: str) -> Wanted:
    """A tenant's connector of that name, with what its steps need."""
    tenant = {"tenant_id": tenant_id}
    named = {**tenant, "connector": connector}
    return wanted(await tx.pipeline([Bound(TENANT, tenant), Bound(ALL_NEEDS_BY_NAME, named)]))


async def needs(database: Database, tenant_id: UUID, connector_id: UUID, integration: str) -> Needs:
    """What a step needs, at one moment and in one round trip."""
    tenant = {"tenant_id": tenant_id}
    asked = {**tenant, "connector_id": connector_id, "integration": integration}
    answers = await database.read_all(tenant_id, [Bound(TENANT, tenant), Bound(NEEDS, asked)])
    return wanted(answers).needs(integration)


def needing(tenant_id: UUID, connector_id: UUID) -> list[Bound]:
    """Reads what the steps of a connector need as it is now; `wanted` takes the answers."""
    asked = {"tenant_id": tenant_id, "connector_id": connector_id}
    return [Bound(TENANT, {"tenant_id": tenant_id}), Bound(ALL_NEEDS, asked)]


def needing_stream(tenant_id: UUID, stream_id: UUID) -> list[Bound]:
    """Reads what the calls of a stream need as it is now; `wanted` takes the answers."""
    asked = {"tenant_id": tenant_id, "stream_id": stream_id}
    return [Bound(TENANT, {"tenant_id": tenant_id}), Bound(STREAM_NEEDS, asked)]


def wanted(answers: Sequence[list[Any]]) -> Wanted:
    """What was read of the tenant, and of its objects."""
    owners, rows = answers
    return Wanted(
        enabled=owners[0].enabled if owners else None,
        switched_off=frozenset(owners[0].switched_off if owners else ()),
        objects=tuple(ProjectedObject(*row) for row in rows),
    )


async def replace(tx: Transaction, tenant_id: UUID, objects: Sequence[ProjectedObject]) -> None:
    """Make a tenant's projection these objects and no others."""
    # A name may have gone from one object to another: the old one must go first.
    kept = {"kinds": [each.kind for each in objects], "ids": [each.object_id for each in objects]}
    gone = Bound(DELETE_OTHERS, {"tenant_id": tenant_id, **kept})
    await tx.pipeline([gone, *(Bound(UPSERT, _values(tenant_id, each)) for each in objects)])


def _values(tenant_id: UUID, each: ProjectedObject) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "kind": each.kind,
        "object_id": each.object_id,
        "name": each.name,
        "version": each.version,
        "spec": each.spec,
    }


async def _rows(
    source: Transaction | Database, tenant_id: UUID, statement: Statement, **parameters: Any
) -> list[Any]:
    if isinstance(source, Database):
        return await source.read(tenant_id, statement, tenant_id=tenant_id, **parameters)
    return await source.all(statement, tenant_id=tenant_id, **parameters)
