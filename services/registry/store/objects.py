"""Wanted objects in their tables: one table of kinds says which field stands in which column."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import (
    Column,
    Select,
    Table,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.chassis.database import Bound, Statement, Transaction
from services.registry import tables as t
from services.registry.wanted.objects import ANNOTATIONS, LABELS, SECRET_VALUES, Complete, Key


@dataclass(frozen=True, slots=True)
class Reference:
    """A spec field that names another object, and the column that holds its id."""

    field: str
    column: str
    kind: str


@dataclass(frozen=True, slots=True)
class Stored:
    """How one kind is stored; `derived` columns come from elsewhere than the spec.

    `once` are those of them that are written when the object is made, and not again. `spread`
    fields hold messages whose own fields have a column each.
    """

    table: Table
    id_column: str
    fields: tuple[str, ...]
    references: tuple[Reference, ...] = ()
    derived: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    spread: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


STORED: Mapping[str, Stored] = {
    "Venue": Stored(t.venues, "venue_id", ("display_name",)),
    # Its version moves outside the write path, too: only `credentials.MOVE` writes it.
    "Credential": Stored(
        t.credentials,
        "credential_id",
        (
            *("type", "description", "environment", "provider", "key_type", "grant", "scopes"),
            *("expires", "allowed_endpoints", "allowed_ranges", "rotation", "config"),
            *("provider_metadata", "notes", "generate"),
        ),
        (
            Reference("venue", "venue_id", "Venue"),
            Reference("app", "app_id", "Credential"),
        ),
        derived=("declared", "expires_at"),
        once=("version", "created_by"),
    ),
    "Integration": Stored(
        t.integrations,
        "integration_id",
        (
            *("display_name", "provider", "environment", "base_url", "is_primary", "is_active"),
            *("config", "automation", "sync"),
        ),
        (
            Reference("credential", "credential_id", "Credential"),
            Reference("app", "app_id", "Credential"),
        ),
        derived=("category",),
    ),
    "Connection": Stored(
        t.connections,
        "connection_id",
        ("user", "external_account_id", "scopes", "provider_metadata", "is_active"),
        (
            Reference("integration", "integration_id", "Integration"),
            Reference("credential", "credential_id", "Credential"),
            Reference("venue", "venue_id", "Venue"),
        ),
        derived=("provider", "app_id"),
    ),
    "Connector": Stored(
        t.connectors,
        "connector_id",
        (
            *("display_name", "description", "is_active", "steps", "lane", "schedule"),
            *("timeout", "max_retries", "output"),
        ),
    ),
    "WebhookEndpoint": Stored(
        t.webhook_endpoints,
        "endpoint_id",
        (
            *("direction", "is_active", "auth", "auth_header", "url", "headers", "delivery"),
            *("app", "tenants", "subject", "redact", "app_owner"),
        ),
        (
            Reference("integration", "integration_id", "Integration"),
            Reference("secret", "secret_id", "Credential"),
            Reference("credential", "credential_id", "Credential"),
        ),
        derived=("app_provider",),
    ),
    "Subscription": Stored(
        t.subscriptions,
        "subscription_id",
        ("is_active", "event_types", "filter", "transform", "action", "sync"),
        (
            Reference("endpoint", "endpoint_id", "WebhookEndpoint"),
            Reference("connector", "connector_id", "Connector"),
            Reference("deliver_to", "target_id", "WebhookEndpoint"),
        ),
    ),
    "EventType": Stored(t.event_types, "event_type_id", ("type", "schema", "is_active")),
    "ReviewPolicy": Stored(
        t.review_policies,
        "policy_id",
        ("min_risk", "kinds", "approvals", "expires", "allow_self_approval", "is_active"),
    ),
    "Role": Stored(t.tenant_roles, "role_id", ("description", "permissions")),
    # A role is kept by name: the built-in ones are no objects of the tenant.
    "RoleBinding": Stored(
        t.role_bindings,
        "binding_id",
        ("role", "kinds", "sources"),
        spread={"subject": {"kind": "principal_kind", "issuer": "issuer", "name": "subject"}},
    ),
}


def _selection(kind: str) -> Select[Any]:
    """Every column of a kind, with names in the place of the ids it refers to."""
    stored = STORED[kind]
    table: Any = stored.table
    columns: list[Any] = [*stored.table.c]
    for reference in stored.references:
        other = STORED[reference.kind]
        target = other.table.alias(f"ref_{reference.field}")
        table = table.outerjoin(
            target,
            and_(
                target.c.tenant_id == stored.table.c.tenant_id,
                target.c[other.id_column] == stored.table.c[reference.column],
            ),
        )
        columns.append(func.coalesce(target.c.name, "").label(f"ref_{reference.field}"))
    mine = stored.table.c.tenant_id == bindparam("tenant_id")
    return select(*columns).select_from(table).where(mine).order_by(stored.table.c.name)


def _insert(stored: Stored) -> Statement:
    columns = [c for c in stored.table.c if c.name not in {"created_at", "updated_at"}]
    return Statement(
        insert(stored.table).values({c.name: bindparam(c.name, type_=c.type) for c in columns})
    )


def _update(stored: Stored) -> Statement:
    fixed = {"tenant_id", stored.id_column, "name", "created_at", "updated_at", *stored.once}
    columns = [c for c in stored.table.c if c.name not in fixed]
    return Statement(
        update(stored.table)
        .where(
            stored.table.c.tenant_id == bindparam("the_tenant_id"),
            stored.table.c[stored.id_column] == bindparam("the_id"),
        )
        .values(
            {c.name: bindparam(c.name, type_=c.type) for c in columns} | {"updated_at": func.now()}
        )
    )


def _delete(table: Table, id_column: str) -> Statement:
    return Statement(
        delete(table).where(
            table.c.tenant_id == bindparam("tenant_id"), table.c[id_column] == bindparam("id")
        )
    )


ALL = {kind: Statement(_selection(kind)) for kind in STORED}
INSERT = {kind: _insert(stored) for kind, stored in STORED.items()}
UPDATE = {kind: _update(stored) for kind, stored in STORED.items()}
DELETE = {kind: _delete(stored.table, stored.id_column) for kind, stored in STORED.items()}
# What is sealed goes with its credential, and its key with it, and all that is told of it.
GOES_WITH_CREDENTIAL = tuple(
    _delete(table, "credential_id")
    for table in (t.credential_versions, t.credential_status, t.credential_uses)
)

_ENDPOINT = t.webhook_endpoints.c
# The streams of apps that are owned by the endpoints of an integration.
MOVE_STREAMS = Statement(
    update(t.webhook_endpoints)
    .where(
        _ENDPOINT.tenant_id == bindparam("the_tenant_id"),
        _ENDPOINT.integration_id == bindparam("the_id"),
        _ENDPOINT.app_provider != "",
    )
    .values(app_provider=bindparam("provider"))
)

_INTEGRATION = t.integrations.c
GET_INTEGRATION = Statement(_selection("Integration").where(_INTEGRATION.name == bindparam("name")))


def _optional(name: str, column: Column[Any]) -> Any:
    """A filter that lets everything pass while its parameter is null."""
    value = cast(bindparam(name), column.type)
    return or_(value.is_(None), column == value)


LIST_INTEGRATIONS = Statement(
    _selection("Integration")
    .where(
        _INTEGRATION.name > bindparam("after"),
        _optional("provider", _INTEGRATION.provider),
        _optional("environment", _INTEGRATION.environment),
        _optional("is_primary", _INTEGRATION.is_primary),
        _optional("is_active", _INTEGRATION.is_active),
    )
    .limit(bindparam("size"))
)


async def everything(transaction: Transaction, tenant_id: UUID) -> list[Complete]:
    """All objects of a tenant, by kind and name."""
    calls = [Bound(ALL[kind], {"tenant_id": tenant_id}) for kind in STORED]
    answers = await transaction.pipeline(calls)
    return [complete(kind, row) for kind, rows in zip(STORED, answers, strict=True) for row in rows]


def writing(
    tenant_id: UUID,
    one: Complete,
    *,
    revision: int,
    ids: Mapping[Key, UUID],
    derived: Mapping[str, Any],
    new: bool,
) -> Bound:
    """What inserts or updates one object; `ids` has those of all it refers to, and its own."""
    row = {**_row(one, ids), **derived, "revision": revision}
    if not new:
        place = {"the_tenant_id": tenant_id, "the_id": ids[one.key]}
        return Bound(UPDATE[one.kind], {**row, **place})
    place = {"tenant_id": tenant_id, STORED[one.kind].id_column: ids[one.key]}
    return Bound(INSERT[one.kind], {**row, **place, "name": one.name})


def moving_streams(tenant_id: UUID, integration_id: UUID, provider: str) -> Bound:
    """What makes the streams that an integration's endpoints own those of its provider."""
    place = {"the_tenant_id": tenant_id, "the_id": integration_id}
    return Bound(MOVE_STREAMS, {**place, "provider": provider})


def deleting(tenant_id: UUID, one: Complete) -> Iterator[Bound]:
    """What deletes one object, and all that is sealed for it."""
    place = {"tenant_id": tenant_id, "id": one.object_id}
    if one.kind == "Credential":
        yield from (Bound(statement, place) for statement in GOES_WITH_CREDENTIAL)
    yield Bound(DELETE[one.kind], place)


def complete(kind: str, row: Any) -> Complete:
    """The object in a row."""
    stored = STORED[kind]
    fields = {LABELS: row.labels, ANNOTATIONS: row.annotations}
    fields |= {f"spec.{name}": getattr(row, name) for name in stored.fields}
    fields |= {f"spec.{r.field}": getattr(row, f"ref_{r.field}") for r in stored.references}
    for name, columns in stored.spread.items():
        fields[f"spec.{name}"] = {inner: getattr(row, column) for inner, column in columns.items()}
    if kind == "Credential":
        fields[SECRET_VALUES] = row.declared
    version = row.version if kind == "Credential" else 0
    return Complete(kind, row.name, fields, getattr(row, stored.id_column), version)


def _row(one: Complete, ids: Mapping[Key, UUID]) -> dict[str, Any]:
    stored, spec = STORED[one.kind], one.spec()
    values = {name: _value(stored.table.c[name], spec[name]) for name in stored.fields}
    for name, columns in stored.spread.items():
        values |= {column: spec[name][inner] for inner, column in columns.items()}
    for reference in stored.references:
        values[reference.column] = ids.get((reference.kind, spec[reference.field]))
    return {"labels": one.fields[LABELS], "annotations": one.fields[ANNOTATIONS], **values}


def _value(column: Column[Any], value: Any) -> Any:
    # An empty Struct says the same as none; the column keeps one of both.
    return Jsonb({} if value is None else value) if isinstance(column.type, JSONB) else value
