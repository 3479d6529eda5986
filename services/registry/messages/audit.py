"""Between AuditService's messages and the registry's values."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.registry.v1 import audit_service_pb2 as pb2

from services.chassis.errors import invalid
from services.chassis.ids import format_tenant
from services.chassis.interceptors import Call
from services.chassis.strict_json import whole
from services.registry.audit.log import Actor, Event, Told
from services.registry.audit.reading import Filter
from services.registry.audit.risks import risk_of
from services.registry.audit.verification import Progress
from services.registry.audit.walk import Fault
from services.registry.messages.config import moment, uuid_at
from services.registry.store.audit import LAST, REVIEWED
from services.registry.wanted.plan import NOTHING, FieldChange

MOST_RECORDED: Final = 500


def log_of(call: Call) -> UUID | None:
    """The log that is meant: a tenant's, or the platform's. Raises NotFound."""
    return call.inside() if call.tenant else None


def filter_of(asked: pb2.AuditFilter, after: str = "") -> Filter:
    """Which events are asked for, after the one of a page token."""
    return Filter(
        before=uuid_at("page_token", after) if after else LAST,
        kind=asked.kind or None,
        object=asked.object or None,
        actor=asked.actor or None,
        action=asked.action or None,
        outcome=asked.outcome or None,
        min_severity=asked.min_severity or None,
        min_risk=asked.min_risk,
        since=time_of(asked, "from_time"),
        until=time_of(asked, "to_time"),
        pending=asked.pending,
    )


def time_of(message: Any, field: str) -> datetime | None:
    """The time in a field of a request, if it is set."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid(field, "is no time") from None


def marks(asked: pb2.AuditFilter) -> str:
    """The words of a filter, to which a page token belongs."""
    return asked.SerializeToString(deterministic=True).hex()


def event_message(tenant: str, row: Any) -> pb2.AuditEvent:
    """One audit event, with its review."""
    parent = f"{format_tenant(tenant)}/" if tenant else ""
    answer = pb2.AuditEvent(
        name=f"{parent}auditEvents/{row.id}",
        create_time=moment(row.created_at),
        actor=_actor(row),
        action=row.action,
        kind=row.kind,
        object=row.object,
        object_uid=str(row.object_id) if row.object_id.int else "",
        fields=[pb2.AuditField(**field) for field in row.fields],
        risk=row.risk,
        revision=row.revision,
        request_id=row.request_id,
        origin=pb2.AuditOrigin(source=row.source, commit=row.commit, file=row.file, line=row.line),
        outcome=row.outcome,
        severity=row.severity,
        error=row.error,
        repeats=row.repeats,
        seq=row.seq,
        review_pending=row.reviewed_at is None and row.risk >= REVIEWED and row.outcome == "done",
    )
    if row.reviewed_at is not None:
        review = pb2.AuditReview(reviewer=row.reviewer_name, note=row.note)
        review.create_time.CopyFrom(moment(row.reviewed_at))
        answer.review.CopyFrom(review)
    return answer


def _actor(row: Any) -> pb2.Actor:
    return pb2.Actor(
        uid=str(row.actor_id),
        kind=row.actor_kind,
        display_name=row.actor_name,
        role=row.actor_role,
        address=row.address,
        user_agent=row.user_agent,
        session=row.session,
        reason=row.reason,
        method=row.method,
    )


def lines_message(tenant: str, rows: Iterable[Any]) -> pb2.ExportAuditEventsResponse:
    """Events as lines of JSON."""
    said = (event_message(tenant, row) for row in rows)
    words = (whole(MessageToDict(one, preserving_proto_field_name=True)) for one in said)
    lines = "".join(json.dumps(one, sort_keys=True) + "\n" for one in words)
    return pb2.ExportAuditEventsResponse(lines=lines.encode())


def counts_message(rows: Iterable[Any]) -> pb2.SummarizeAuditEventsResponse:
    """Counts by day."""
    return pb2.SummarizeAuditEventsResponse(
        counts=[
            pb2.AuditCount(
                day=f"{row.day.astimezone(UTC):%Y-%m-%d}",
                kind=row.kind,
                action=row.action,
                risk=row.risk,
                outcome=row.outcome,
                count=int(row.count),
            )
            for row in rows
        ]
    )


def progress_message(tenant: str, progress: Progress) -> pb2.VerifyChainResponse:
    """How far a walk is, or its verdict."""
    answer = pb2.VerifyChainResponse(
        checked=progress.checked,
        total=progress.total,
        faults=[_fault(tenant, fault) for fault in progress.faults],
    )
    if verdict := progress.verdict:
        answer.verdict.intact = not verdict.faults
        answer.verdict.from_seq = verdict.from_seq
        answer.verdict.to_seq = verdict.to_seq
        answer.verdict.faults = verdict.faults
    return answer


def _fault(tenant: str, fault: Fault) -> pb2.ChainFault:
    parent = f"{format_tenant(tenant)}/" if tenant else ""
    return pb2.ChainFault(
        kind=pb2.ChainFault.Kind.Value(f"KIND_{fault.kind.upper()}"),
        seq=fault.seq,
        last_seq=fault.last_seq,
        event=f"{parent}auditEvents/{fault.event_id}" if fault.event_id else "",
        message=fault.message,
    )


def told_of(request: pb2.RecordAuditEventsRequest, call: Call) -> list[Told]:
    """What another service did, by whom. Raises InvalidArgument."""
    if len(request.events) > MOST_RECORDED:
        raise invalid("events", f"must be {MOST_RECORDED} at most")
    return [(_told_actor(one, call), _told_event(one)) for one in request.events]


def _told_actor(one: pb2.RecordedEvent, call: Call) -> Actor:
    said = one.actor
    return Actor(
        uuid_at("actor.uid", said.uid),
        said.kind,
        said.display_name,
        said.role,
        said.address,
        said.user_agent,
        one.request_id,
        said.session,
        said.reason,
        said.method or call.rule.method,
    )


def _told_event(one: pb2.RecordedEvent) -> Event:
    happened = time_of(one, "create_time")
    told_id = uuid_at("uid", one.uid)
    if happened is None or told_id.version != 7:
        raise invalid("events", "need a UUIDv7 and a time each")
    return Event(
        action=one.action,
        kind=one.kind,
        object=one.object,
        object_id=uuid_at("object_uid", one.object_uid) if one.object_uid else UUID(int=0),
        risk=risk_of(one.kind, one.action, (each.path for each in one.fields)),
        fields=[
            *map(_field, one.fields),
            # The log's own times are those of its telling: nobody writes into a month gone by.
            FieldChange("create_time", NOTHING, happened.isoformat()),
        ],
        told_id=told_id,
    )


def _field(one: pb2.AuditField) -> FieldChange:
    return FieldChange(one.path, _value(one.before), _value(one.after))


def _value(text: str) -> Any:
    if not text:
        return NOTHING
    try:
        return json.loads(text)
    except ValueError:
        raise invalid("fields", "must be JSON") from None
