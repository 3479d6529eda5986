"""What the registry's messages say, as the executor's own values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from ipaddress import ip_network
from typing import Final, cast
from uuid import UUID

from google.protobuf.json_format import MessageToDict
from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import config_service_pb2 as config

from services.chassis import tenancy
from services.chassis.strict_json import whole
from services.chassis.usage import Counted
from services.executor.engine.steering import Limits
from services.executor.store.projected import ProjectedObject

KINDS: Final[Mapping[str, str]] = {
    "integration": "Integration",
    "credential": "Credential",
    "connection": "Connection",
    "connector": "Connector",
    "webhook_endpoint": "WebhookEndpoint",
    "subscription": "Subscription",
    "event_type": "EventType",
}
"""The snapshot's word for each kind that is projected, and the YAML's."""

REVISION: Final = "revision"
LEAVING: Final = "tenant"
"""What the feed says of a tenant that is being deleted."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one tenant wants at one revision."""

    tenant_id: UUID
    slug: str
    revision: int
    enabled: bool
    limits: Limits
    objects: tuple[ProjectedObject, ...]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """A tenant has come to a revision, or is `leaving`."""

    tenant_id: UUID
    revision: int
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class FeedMessage:
    """Where to go on, and what changed; a sign of life has no change."""

    position: str
    changed: Changed | None


def principal(answer: access.AuthenticateResponse) -> tenancy.Principal:
    """The registry's answer as the gates take it."""
    return tenancy.Principal(
        principal_id=UUID(answer.principal.uid),
        kind=answer.principal.kind,
        display_name=answer.principal.display_name,
        accesses={
            each.tenant: tenancy.Access(
                tenant=each.tenant,
                tenant_id=UUID(each.tenant_uid) if each.tenant_uid else None,
                grants=tuple(_grant(grant) for grant in each.grants),
                state=cast("tenancy.State", each.state),
            )
            for each in answer.accesses
        },
        expires_at=answer.expire_time.ToDatetime(UTC) if answer.HasField("expire_time") else None,
        session=answer.session,
        ranges=tuple(map(ip_network, answer.address_ranges)),
        identity=answer.identity,
    )


def _grant(held: access.HeldGrant) -> tenancy.Grant:
    return tenancy.Grant(
        held.role,
        frozenset(held.permissions),
        frozenset(held.kinds),
        frozenset(held.sources),
        held.needs_reason,
    )


def projected(each: config.SnapshotObject) -> ProjectedObject:
    """One object of a snapshot; of a Credential, nothing of its values."""
    resource = each.resource
    word = resource.WhichOneof("spec") or ""
    spec = MessageToDict(
        getattr(resource, word),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    if word == "credential":
        spec.pop("values")
    return ProjectedObject(
        KINDS[word], UUID(each.uid), resource.metadata.name, each.version, whole(spec)
    )


def snapshot(
    tenant_id: UUID, head: config.SnapshotHead, objects: Iterable[config.SnapshotObject]
) -> Snapshot:
    """What a tenant wants, by the parts of a snapshot."""
    return Snapshot(
        tenant_id,
        head.tenant,
        head.revision,
        head.enabled,
        _limits(head),
        tuple(projected(each) for each in objects if each.resource.WhichOneof("spec") in KINDS),
        head.draining,
    )


def _limits(head: config.SnapshotHead) -> Limits:
    """What a tenant may; a tenant that is not enabled runs nothing."""
    told = head.limits
    return Limits(
        paused=not head.enabled,
        weight=told.weight,
        max_running=told.max_running or None,
        provider_caps=dict(told.max_running_per_provider),
        work_per_hour=told.work_per_hour or None,
    )


def feed_message(answer: config.WatchFeedResponse) -> FeedMessage:
    """Where the feed is, and what of its entry concerns us."""
    return FeedMessage(answer.position, _changed(answer))


def _changed(answer: config.WatchFeedResponse) -> Changed | None:
    if not answer.HasField("entry"):
        return None
    entry = answer.entry
    if entry.kind not in {REVISION, LEAVING}:
        return None
    return Changed(UUID(entry.tenant_uid), entry.revision, leaving=entry.kind == LEAVING)


def usage_report(counted: Counted) -> access.ReportUsageRequest:
    """What was counted of calls by API key."""
    request = access.ReportUsageRequest()
    for use in counted.uses:
        row = request.uses.add(
            key_id=use.key_id,
            method=use.method,
            address=use.address,
            user_agent=use.user_agent,
            count=use.count,
        )
        row.bucket_time.FromSeconds(use.bucket)
        row.last_use_time.FromNanoseconds(int(use.last * 1e9))
    for stay in counted.stays:
        switch = request.switches.add(
            principal_uid=str(stay.principal_id), tenant_uid=str(stay.tenant_id)
        )
        switch.switch_time.FromNanoseconds(int(stay.since * 1e9))
    return request
