"""Between the messages of TenantService and the registry's values."""

import hashlib
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from tenon.registry.v1 import tenant_service_pb2 as pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis.errors import invalid
from services.chassis.ids import format_tenant
from services.chassis.interceptors import Call
from services.chassis.secret import Secret
from services.registry.answers import Asked
from services.registry.messages.config import moment, uuid_at
from services.registry.store import tombstones

DELETE: Final = "DeleteTenant"
TOMBSTONES: Final = "tombstones"


def tenant_message(row: Any) -> pb2.Tenant:
    """One tenant, and how far it has gone where it is being deleted."""
    message = pb2.Tenant(
        name=format_tenant(row.slug),
        uid=str(row.tenant_id),
        display_name=row.display_name,
        enabled=row.enabled,
        revision=row.revision,
        projected_revision=row.projected_revision,
        labels=row.labels,
        create_time=moment(row.created_at),
        state=_state(row),
        limits=ParseDict(dict(row.limits), wanted_pb2.TenantLimits()),
        etag=str(row.revision),
    )
    stone = tombstones.within(row)
    if stone is not None:
        message.deletion.CopyFrom(tombstone_message(stone))
    return message


def tombstone_message(row: Any) -> pb2.Tombstone:
    """What is known of a tenant that goes or has gone."""
    return pb2.Tombstone(
        name=f"{TOMBSTONES}/{row.slug}",
        tenant_uid=str(row.tenant_id),
        actor=row.actor_name,
        reason=row.reason,
        forced=row.forced,
        create_time=moment(row.created_at),
        executor_rows=row.executor_rows or {},
        report_time=moment(row.reported_at) if row.reported_at else None,
        registry_rows=row.registry_rows,
        purge_time=moment(row.purged_at) if row.purged_at else None,
    )


def tombstone_named(name: str) -> str:
    """The slug in `tombstones/{slug}`. Raises InvalidArgument."""
    collection, _, slug = name.partition("/")
    if collection != TOMBSTONES or not slug:
        raise invalid("name", "must be tombstones/{slug}")
    return slug


def revision_of(etag: str) -> int | None:
    """The revision that an etag stands for; None where none is given."""
    if not etag:
        return None
    if not etag.isascii() or not etag.isdecimal():
        raise invalid("etag", "is not one of a tenant")
    return int(etag)


def deletion_asked(request: pb2.DeleteTenantRequest, call: Call) -> Asked | None:
    """The request as it may come again; None without a request_id."""
    if not request.request_id:
        return None
    request_id = uuid_at("request_id", request.request_id)
    words = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return Asked(call.inside(), call.principal.principal_id, DELETE, request_id, Secret(words))


def _state(row: Any) -> pb2.Tenant.State.ValueType:
    if row.state == "active":
        return pb2.Tenant.STATE_ACTIVE if row.enabled else pb2.Tenant.STATE_DISABLED
    return pb2.Tenant.STATE_DRAINING
