"""The executor's messages and our values, one into the other."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.executor.v1 import execution_service_pb2 as pb

from services.chassis.errors import invalid
from services.chassis.expressions import Json, plain
from services.chassis.ids import format_name, parse_name
from services.chassis.interceptors import Call
from services.executor.executions.activity import Activity, RunStats
from services.executor.executions.dry_runs import DryRun, DryRunRequest, DryStep, Example, Fault
from services.executor.executions.runs import LARGEST_INPUT, Page, Query, RunRequest
from services.executor.store.executions import Execution, Step

_STATE: Final = "STATE_"
_OUTCOME: Final = "OUTCOME_"
LARGEST_SHOWN: Final = 64 * 1024
"""Bytes of a body that a dry run shows."""


def run_request(request: pb.RunConnectorRequest, call: Call) -> RunRequest:
    """What a caller wants to run. Raises InvalidArgument."""
    return RunRequest(
        tenant_id=call.inside(),
        principal_id=call.principal.principal_id,
        connector=parse_name(request.name, "connectors")[1],
        input=_values("input", request.input),
        request_id=uuid_at("request_id", request.request_id) if request.request_id else None,
        wait_s=request.wait.ToTimedelta().total_seconds(),
        links=dict(request.links),
    )


def execution_id(name: str) -> UUID:
    """The uid in `tenants/{slug}/executions/{uid}`. Raises InvalidArgument."""
    return uid_in(name, "executions")


def uid_in(name: str, collection: str) -> UUID:
    """The uid in `tenants/{slug}/{collection}/{uid}`. Raises InvalidArgument."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] != collection:
        raise invalid("name", f"must be of the form tenants/{{tenant}}/{collection}/{{uid}}")
    return uuid_at("name", parts[3])


def query(request: pb.ListExecutionsRequest, call: Call) -> Query:
    """Which executions a caller wants listed. Raises InvalidArgument."""
    if request.state not in pb.Execution.State.values():
        raise invalid("state", "is not a state of an execution")
    state = pb.Execution.State.Name(request.state).removeprefix(_STATE).lower()
    return Query(
        tenant_id=call.inside(),
        connector=request.connector,
        state=state if request.state else "",
        link=(request.link.name, request.link.value) if request.HasField("link") else None,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def page(found: Page, tenant: str) -> pb.ListExecutionsResponse:
    """A page as the caller sees it."""
    return pb.ListExecutionsResponse(
        executions=[execution(each, tenant) for each in found.executions],
        next_page_token=found.next_page_token,
    )


def execution(found: Execution, tenant: str) -> pb.Execution:
    """An execution of the tenant with this slug, as the caller sees it."""
    return pb.Execution(
        name=f"tenants/{tenant}/executions/{found.id}",
        connector=found.connector,
        state=pb.Execution.State.Value(_STATE + found.state.upper()),
        trigger=pb.Trigger(
            kind=found.trigger_kind,
            uid=str(found.trigger_id),
            event_type=found.event_type,
            subscription=found.subscription,
        ),
        failure=_failure(found),
        steps=[_step(each) for each in found.steps],
        create_time=moment(found.created_at),
        start_time=moment(found.started_at),
        end_time=moment(found.ended_at),
        output=_struct(found.output),
        links=found.links,
        retries=found.retries,
        failed_steps=found.failed_steps,
    )


def dry_run_request(request: pb.DryRunConnectorRequest, call: Call) -> DryRunRequest:
    """What a caller wants to try out. Raises InvalidArgument."""
    if sum(each.ByteSize() for each in request.steps.values()) > 6 * LARGEST_INPUT:
        raise invalid("steps", f"must have at most {LARGEST_INPUT} bytes as JSON")
    return DryRunRequest(
        tenant_id=call.inside(),
        connector=parse_name(request.name, "connectors")[1],
        input=_values("input", request.input),
        event=_values("event", request.event) if request.HasField("event") else None,
        examples={name: _example(each) for name, each in request.steps.items()},
    )


def dry_run(found: DryRun) -> pb.DryRunConnectorResponse:
    """What a dry run came to, as the caller sees it."""
    return pb.DryRunConnectorResponse(
        steps=[_dry_step(position, each) for position, each in enumerate(found.steps)],
        output=_struct(found.output),
        output_failure=_fault(found.output_fault) if found.output_fault else None,
    )


def connector(found: Activity, tenant: str) -> pb.Connector:
    """A connector of the tenant with this slug, with how its runs went."""
    return pb.Connector(
        name=format_name(tenant, "connectors", found.connector),
        is_active=found.is_active,
        last_day=_stats(found.last_day),
        last_week=_stats(found.last_week),
        last_execution=execution(found.last, tenant) if found.last else None,
    )


def _example(given: pb.StepExample) -> Example:
    error: Json = {"reason": given.error.reason, "message": given.error.message}
    body = _values("steps", Struct(fields={"body": given.body})) if given.HasField("body") else {}
    return Example(
        output=_values("steps", given.output),
        status=given.status or 200,
        body=body.get("body"),
        error=error if given.HasField("error") else None,
    )


def _dry_step(position: int, step: DryStep) -> pb.DryStep:
    shown = pb.DryStep(
        position=position,
        step=step.name,
        outcome=pb.DryStep.Outcome.Value(_OUTCOME + step.outcome.upper()),
        failures=[_fault(each) for each in step.faults],
    )
    if step.request is not None:
        body = step.request.body or b""
        shown.method, shown.url = step.request.method, step.request.url
        shown.headers.update(step.request.headers)
        shown.body = body.decode() if len(body) <= LARGEST_SHOWN else ""
        shown.body_size = len(body)
    return shown


def _fault(fault: Fault) -> pb.Failure:
    return pb.Failure(reason=fault.reason, message=fault.message)


def _stats(found: RunStats) -> pb.RunStats:
    return pb.RunStats(
        total=found.total,
        states=found.states,
        success_share=found.success_share,
        median=_duration(found.median_s),
        p95=_duration(found.p95_s),
        truncated=found.truncated,
    )


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    told = Duration()
    told.FromMilliseconds(round(seconds * 1000))
    return told


def _step(step: Step) -> pb.StepResult:
    return pb.StepResult(
        position=step.position,
        step=step.step,
        state=pb.StepResult.State.Value(_STATE + step.state.upper()),
        attempts=step.attempts,
        response_status=step.response_status,
        output=_struct(step.masked_output),
        failure=_failure(step),
        start_time=moment(step.started_at),
        end_time=moment(step.ended_at),
    )


def _failure(found: Execution | Step) -> pb.Failure | None:
    if not found.failure_reason:
        return None
    return pb.Failure(reason=found.failure_reason, message=found.failure_message)


def _struct(value: Mapping[str, Any]) -> Struct:
    return ParseDict(dict(value), Struct())


def moment(value: datetime | None) -> Timestamp | None:
    """A time on the wire, or none."""
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def _values(field: str, given: Struct) -> dict[str, Json]:
    # A Struct takes at most six times the bytes of its JSON.
    if given.ByteSize() > 6 * LARGEST_INPUT:
        raise invalid(field, f"must have at most {LARGEST_INPUT} bytes as JSON")
    try:
        values = plain(MessageToDict(given))
    except ValueError:
        raise invalid(field, "holds a number that JSON cannot have") from None
    return values if isinstance(values, dict) else {}


def uuid_at(field: str, text: str) -> UUID:
    """The id in a field of a request. Raises InvalidArgument."""
    try:
        return UUID(text)
    except ValueError:
        raise invalid(field, "must be a UUID") from None
