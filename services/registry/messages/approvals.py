"""Between the contract's messages about approval and the registry's values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from tenon.options.v1 import rule_pb2
from tenon.registry.v1 import config_service_pb2 as pb2

from services.chassis.errors import invalid
from services.chassis.ids import BadName, format_tenant
from services.chassis.interceptors import Call
from services.chassis.secret import Secret
from services.registry.messages import config as messages
from services.registry.reviews.approvals import Verdict
from services.registry.wanted.apply import Applied, Planned

COLLECTION: Final = "pendingRevisions"
LONGEST_NOTE: Final = 1000
NEWEST: Final = UUID(int=2**128 - 1)


def planned_message(planned: Planned) -> pb2.Plan:
    """A plan, and what it needs before it takes effect."""
    message, demand = messages.plan_message(planned.plan), planned.demand
    if demand is not None:
        message.needs_approval.policies.extend(demand.policies)
        message.needs_approval.approvals = demand.approvals
        message.needs_approval.expires.FromTimedelta(demand.expires)
        message.needs_approval.self_approval = demand.self_approval
    return message


def applied_message(applied: Applied) -> pb2.ApplyConfigResponse:
    """What an apply did, or what waits to be done: no values then, since answers are kept."""
    message = messages.applied_message(applied)
    if applied.pending is not None:
        _outline(message.plan)
        message.pending.CopyFrom(listed_message(applied.plan.tenant, applied.pending))
    return message


def pending_message(tenant: str, row: Any) -> pb2.PendingRevision:
    """A pending revision with its plan."""
    message = listed_message(tenant, row)
    message.plan.CopyFrom(
        pb2.Plan(
            tenant=tenant,
            base_revision=row.base_revision,
            plan_hash=row.plan_hash,
            changes=[_change(change) for change in row.plan["changes"]],
            unchanged=row.plan["unchanged"],
        )
    )
    return message


def decided_message(tenant: str, row: Any) -> pb2.PendingRevision:
    """A pending revision as who decides on it is answered, and as that is kept: no values."""
    message = pending_message(tenant, row)
    _outline(message.plan)
    return message


def listed_message(tenant: str, row: Any) -> pb2.PendingRevision:
    """A pending revision as lists have it."""
    return pb2.PendingRevision(
        name=f"{format_tenant(tenant)}/{COLLECTION}/{row.pending_id}",
        state=pb2.PendingRevision.State.Value(f"STATE_{row.state.upper()}"),
        base_revision=row.base_revision,
        plan_hash=row.plan_hash,
        risk=rule_pb2.Risk.ValueType(row.risk),
        source=row.source,
        commit=row.commit,
        author=row.author["display_name"],
        author_kind=row.author["kind"],
        policies=row.policies,
        approvals_needed=row.approvals_needed,
        self_approval=row.self_approval,
        approvals=[_approval(one) for one in row.approvals],
        create_time=messages.moment(row.created_at),
        expire_time=messages.moment(row.expires_at),
        end_time=messages.moment(row.ended_at) if row.ended_at else None,
        ended_by=row.ended_by,
        note=row.note,
        revision=row.revision,
    )


def pending_id_of(name: str) -> UUID:
    """The id in `tenants/{tenant}/pendingRevisions/{id}`. Raises BadName."""
    parts = name.split("/")
    if len(parts) != 4 or parts[2] != COLLECTION:
        raise BadName(f"a name of the form tenants/{{tenant}}/{COLLECTION}/{{id}} is needed")
    return messages.uuid_at("name", parts[3])


def before_of(after: str) -> UUID:
    """The id that a page lies below, from its token's text."""
    return messages.uuid_at("page_token", after) if after else NEWEST


def state_of(request: pb2.ListPendingRevisionsRequest) -> str | None:
    """The one state that is asked for; None for any."""
    if not request.state:
        return None
    if request.state not in pb2.PendingRevision.State.values():
        raise invalid("state", "is none that we know")
    return pb2.PendingRevision.State.Name(request.state).removeprefix("STATE_").lower()


def verdict_of(
    request: pb2.ApproveRevisionRequest | pb2.RejectRevisionRequest, call: Call
) -> Verdict:
    """What a caller says of a pending revision."""
    if len(request.note) > LONGEST_NOTE or "\0" in request.note:
        raise invalid("note", f"must be a text of at most {LONGEST_NOTE} characters")
    asked = request.request_id
    return Verdict(
        call.inside(),
        pending_id_of(request.name),
        messages.caller_of(call).actor,
        request.note,
        messages.uuid_at("request_id", asked) if asked else None,
        Secret(hashlib.sha256(request.SerializeToString(deterministic=True)).digest()),
        lent=call.principal.lent_by is not None,
    )


def _outline(plan: pb2.Plan) -> None:
    """Leave what changes, without the values before and after."""
    for change in plan.changes:
        for field in change.fields:
            field.ClearField("before")
            field.ClearField("after")


def _approval(one: Mapping[str, Any]) -> pb2.Approval:
    moment = Timestamp()
    moment.FromJsonString(one["create_time"])
    return pb2.Approval(principal=one["principal"], note=one["note"], create_time=moment)


def _change(change: Mapping[str, Any]) -> pb2.Change:
    return pb2.Change(
        kind=change["kind"],
        name=change["name"],
        action=pb2.Change.Action.Value(f"ACTION_{change['action'].upper()}"),
        fields=[_field(field) for field in change["fields"]],
        risk=rule_pb2.Risk.ValueType(change["risk"]),
    )


def _field(field: Mapping[str, Any]) -> pb2.FieldChange:
    before, after = (json.dumps(field[s]) if s in field else "" for s in ("before", "after"))
    return pb2.FieldChange(path=field["path"], before=before, after=after, owner=field["owner"])
