"""Between the contract's messages and the registry's values."""

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from google.protobuf.json_format import MessageToDict, ParseDict, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.options.v1 import rule_pb2
from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import integration_service_pb2 as integration_pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis.errors import ResourceExhausted, invalid
from services.chassis.ids import format_name, format_tenant
from services.chassis.interceptors import Call
from services.chassis.plain_text import CONTROL
from services.chassis.redaction import remember
from services.chassis.rules import schema_of
from services.chassis.secret import Secret
from services.chassis.strict_json import whole
from services.chassis.tenancy import Grant, Principal
from services.registry.audit import log as audit
from services.registry.feed import Entry
from services.registry.wanted.apply import Applied, Caller
from services.registry.wanted.drafts import Submission
from services.registry.wanted.objects import (
    ANNOTATIONS,
    LABELS,
    SECRET_VALUES,
    Complete,
    Declared,
    Schemas,
)
from services.registry.wanted.plan import NOTHING, Change, FieldChange, Plan
from services.registry.wanted.snapshots import Snapshot

MOST_BYTES: Final = 16 * 2**20
OBJECTS_A_CHUNK: Final = 200
DEFAULT_SOURCE: Final = "cli"

_SPECS: Final = {
    "".join(word.capitalize() for word in field.name.split("_")): field
    for field in wanted_pb2.Resource.DESCRIPTOR.oneofs_by_name["spec"].fields
}
SCHEMAS: Final[Schemas] = {kind: schema_of(field.message_type) for kind, field in _SPECS.items()}
_KIND_OF: Final = {field.name: kind for kind, field in _SPECS.items()}


Request = config_pb2.PlanConfigRequest | config_pb2.ApplyConfigRequest


async def submission(requests: AsyncIterator[Request], tenant: str) -> Submission:
    """What a stream of one header and chunks says of the tenant the caller was let into.

    Raises ResourceExhausted above 16 MiB, InvalidArgument for what is no such stream.
    """
    header, size, digest = config_pb2.ConfigHeader(), 0, hashlib.sha256()
    declared: list[Declared] = []
    async for request in requests:
        first, size = size == 0, size + request.ByteSize()
        if size > MOST_BYTES:
            raise ResourceExhausted("the change is larger than 16 MiB", reason="CONFIG_TOO_LARGE")
        # Another header later on would be another tenant than the one the caller was let into.
        if (request.WhichOneof("part") == "header") != first:
            raise invalid("header", "must be the first message, and only the first")
        words = request.SerializeToString(deterministic=True)
        digest.update(len(words).to_bytes(4, "big") + words)
        header = request.header if first else header
        declared.extend(to_declared(one) for one in request.chunk.resources)
    _check_plain("header.source", header.source)
    _check_plain("header.commit", header.commit)
    return Submission(
        tenant=tenant,
        source=header.source or DEFAULT_SOURCE,
        declared=tuple(declared),
        base_revision=header.base_revision if header.HasField("base_revision") else None,
        plan_hash=header.plan_hash,
        request_id=uuid_at("header.request_id", header.request_id) if header.request_id else None,
        commit=header.commit,
        digest=Secret(digest.digest()),
    )


def to_declared(resource: wanted_pb2.Resource) -> Declared:
    """The declared object in a resource; secrets leave the message here."""
    which = resource.WhichOneof("spec")
    if which is None:
        raise invalid("resource", "has no spec")
    kind, meta, message = _KIND_OF[which], resource.metadata, getattr(resource, which)
    secrets: dict[str, Secret] = {}
    sealed: dict[str, str] = {}
    if kind == "Credential":
        sealed = {part: value.sealed for part, value in message.values.items() if value.sealed}
        secrets = {
            part: remember(Secret(value.plain))
            for part, value in message.values.items()
            if part not in sealed
        }
        message.ClearField("values")
    fields = {f"spec.{name}": value for name, value in _spec(kind, meta.name, message).items()}
    if secrets or sealed:
        fields[SECRET_VALUES] = dict.fromkeys((*secrets, *sealed), "")
    if meta.labels:
        fields[LABELS] = dict(meta.labels)
    if meta.annotations:
        fields[ANNOTATIONS] = dict(meta.annotations)
    origin = resource.origin
    _check_plain("resource.origin.file", origin.file)
    place = (origin.file, origin.line, meta.tenant)
    return Declared(kind, meta.name, fields, secrets, *place, resource.absent, sealed)


def _spec(kind: str, name: str, message: Message) -> dict[str, Any]:
    try:
        spec = MessageToDict(message, preserving_proto_field_name=True)
    except (ValueError, SerializeToJsonError):
        # Protobuf carries numbers and times which its JSON cannot say: NaN, 10000 years.
        raise invalid(
            f"{kind}/{name}#spec", "has a number or duration that JSON cannot say"
        ) from None
    return {field: whole(value) for field, value in spec.items()}


def from_complete(one: Complete) -> wanted_pb2.Resource:
    """The resource of an object; secrets as fingerprints."""
    resource = wanted_pb2.Resource()
    resource.metadata.name = one.name
    resource.metadata.labels.update(one.fields[LABELS])
    resource.metadata.annotations.update(one.fields[ANNOTATIONS])
    spec = {name: value for name, value in one.spec().items() if value is not None}
    if one.kind == "Credential":
        spec["values"] = {part: {"fingerprint": mark} for part, mark in spec["values"].items()}
    ParseDict(spec, getattr(resource, _SPECS[one.kind].name))
    return resource


def caller_of(call: Call) -> Caller:
    """Who acts, for the audit log, and by what right."""
    principal = call.principal
    actor = audit.Actor(
        principal.principal_id,
        principal.kind,
        principal.display_name,
        call.role,
        call.address,
        call.user_agent,
        call.request_id,
        principal.session,
        call.reason,
        call.rule.method,
    )
    return Caller(actor, principal, call.rule.permission)


def plan_message(plan: Plan) -> config_pb2.Plan:
    """A plan as people may see it."""
    return config_pb2.Plan(
        tenant=plan.tenant,
        base_revision=plan.base_revision,
        plan_hash=plan.digest(),
        changes=[_change(change) for change in plan.changes],
        unchanged=plan.unchanged,
    )


def applied_message(applied: Applied) -> config_pb2.ApplyConfigResponse:
    """What an apply did."""
    return config_pb2.ApplyConfigResponse(
        revision=applied.revision, plan=plan_message(applied.plan)
    )


def snapshot_messages(snapshot: Snapshot) -> Iterator[config_pb2.GetSnapshotResponse]:
    """The head, then the objects in parts."""
    tenant = snapshot.tenant
    yield config_pb2.GetSnapshotResponse(
        head=config_pb2.SnapshotHead(
            tenant=tenant.slug,
            tenant_uid=str(tenant.tenant_id),
            revision=tenant.revision,
            enabled=tenant.enabled,
            limits=ParseDict(dict(tenant.limits), wanted_pb2.TenantLimits()),
            draining=tenant.draining,
        )
    )
    for begin in range(0, len(snapshot.objects), OBJECTS_A_CHUNK):
        part = snapshot.objects[begin : begin + OBJECTS_A_CHUNK]
        objects = [
            config_pb2.SnapshotObject(
                uid=str(one.object_id), resource=from_complete(one), version=one.version
            )
            for one in part
        ]
        yield config_pb2.GetSnapshotResponse(chunk=config_pb2.SnapshotChunk(objects=objects))


def entry_message(entry: Entry) -> config_pb2.WatchFeedResponse:
    """One entry of the feed, or a sign of life."""
    if entry.tenant_id is None:
        return config_pb2.WatchFeedResponse(position=entry.position)
    body = config_pb2.FeedEntry(
        tenant_uid=str(entry.tenant_id),
        kind=entry.kind,
        revision=entry.revision,
        subject=entry.subject,
    )
    return config_pb2.WatchFeedResponse(position=entry.position, entry=body)


def revision_message(tenant: str, row: Any) -> config_pb2.Revision:
    """One revision."""
    return config_pb2.Revision(
        name=f"{format_tenant(tenant)}/revisions/{row.revision}",
        number=row.revision,
        source=row.source,
        principal=row.principal_name,
        plan_hash=row.plan_hash,
        created=row.created,
        updated=row.updated,
        deleted=row.deleted,
        commit=row.commit,
        create_time=moment(row.created_at),
    )


def integration_message(tenant: str, row: Any) -> integration_pb2.Integration:
    """One integration."""
    spec = wanted_pb2.IntegrationSpec(
        display_name=row.display_name,
        provider=row.provider,
        environment=row.environment,
        base_url=row.base_url,
        is_primary=row.is_primary,
        is_active=row.is_active,
        credential=row.ref_credential,
        app=row.ref_app,
    )
    if row.config:
        spec.config.update(row.config)
    ParseDict(row.automation, spec.automation)
    ParseDict(row.sync, spec.sync)
    return integration_pb2.Integration(
        name=format_name(tenant, "integrations", row.name),
        uid=str(row.integration_id),
        spec=spec,
        category=row.category,
        labels=row.labels,
        annotations=row.annotations,
        etag=f'"{row.revision}"',
        create_time=moment(row.created_at),
        update_time=moment(row.updated_at),
    )


def principal_message(principal: Principal) -> access_pb2.Principal:
    """Who that is."""
    return access_pb2.Principal(
        uid=str(principal.principal_id), kind=principal.kind, display_name=principal.display_name
    )


def authenticated_message(principal: Principal) -> access_pb2.AuthenticateResponse:
    """Everything authorisation elsewhere needs."""
    answer = access_pb2.AuthenticateResponse(
        principal=principal_message(principal),
        accesses=[
            access_pb2.Access(
                tenant=access.tenant,
                tenant_uid=str(access.tenant_id or ""),
                state=access.state,
                grants=[_held(grant) for grant in access.grants],
            )
            for access in principal.accesses.values()
        ],
        session=principal.session,
        address_ranges=map(str, principal.ranges),
        identity=principal.identity,
    )
    if principal.expires_at is not None:
        answer.expire_time.FromDatetime(principal.expires_at)
    return answer


def _held(grant: Grant) -> access_pb2.HeldGrant:
    return access_pb2.HeldGrant(
        role=grant.role,
        permissions=sorted(grant.permissions),
        kinds=sorted(grant.kinds),
        sources=sorted(grant.sources),
        needs_reason=grant.needs_reason,
    )


def moment(value: datetime) -> Timestamp:
    """A time on the wire."""
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def uuid_at(field: str, text: str) -> UUID:
    """The id in a field of a request."""
    try:
        return UUID(text)
    except ValueError:
        raise invalid(field, "is not a UUID") from None


def number_at(field: str, text: str) -> int:
    """The whole number in a field of a request."""
    if not (text.isascii() and text.isdigit()):
        raise invalid(field, "is not a number")
    return int(text)


def _check_plain(field: str, text: str) -> None:
    if CONTROL.search(text):
        raise invalid(field, "has a control character")


def _change(change: Change) -> config_pb2.Change:
    return config_pb2.Change(
        kind=change.after.kind,
        name=change.after.name,
        action=config_pb2.Change.Action.Value(f"ACTION_{change.action.upper()}"),
        fields=[_field(field) for field in change.fields],
        risk=rule_pb2.Risk.ValueType(change.risk),
    )


def _field(change: FieldChange) -> config_pb2.FieldChange:
    before, after = audit.masked(change)
    return config_pb2.FieldChange(
        path=change.path,
        before="" if before is NOTHING else json.dumps(before, sort_keys=True),
        after="" if after is NOTHING else json.dumps(after, sort_keys=True),
        owner=change.owner,
    )
