"""The executor's messages and our values, one into the other."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.executor.v1 import execution_service_pb2 as pb

from services.chassis.errors import invalid
from services.chassis.expressions import Json, plain
from services.chassis.ids import parse_name
from services.chassis.interceptors import Call
from services.executor.executions import LARGEST_INPUT, Page, Query, RunRequest
from services.executor.store.executions import Execution, Step

_STATE: Final = "STATE_"


def run_request(request: pb.RunConnectorRequest, call: Call) -> RunRequest:
    """What a caller wants to run. Raises InvalidArgument."""
    return RunRequest(
        tenant_id=call.inside(),
        principal_id=call.principal.principal_id,
        connector=parse_name(request.name, "connectors")[1],
        input=_values(request.input),
        request_id=_uuid("request_id", request.request_id) if request.request_id else None,
        wait_s=request.wait.ToTimedelta().total_seconds(),
    )


def execution_id(request: pb.GetExecutionRequest) -> UUID:
    """The uid in `tenants/{slug}/executions/{uid}`. Raises InvalidArgument."""
    parts = request.name.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] != "executions":
        raise invalid("name", "must be of the form tenants/{tenant}/executions/{uid}")
    return _uuid("name", parts[3])


def query(request: pb.ListExecutionsRequest, call: Call) -> Query:
    """Which executions a caller wants listed. Raises InvalidArgument."""
    if request.state not in pb.Execution.State.values():
        raise invalid("state", "is not a state of an execution")
    state = pb.Execution.State.Name(request.state).removeprefix(_STATE).lower()
    return Query(
        tenant_id=call.inside(),
        connector=request.connector,
        state=state if request.state else "",
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
        create_time=_time(found.created_at),
        start_time=_time(found.started_at),
        end_time=_time(found.ended_at),
    )


def _step(step: Step) -> pb.StepResult:
    return pb.StepResult(
        position=step.position,
        step=step.step,
        state=pb.StepResult.State.Value(_STATE + step.state.upper()),
        attempts=step.attempts,
        response_status=step.response_status,
        output=_struct(step.masked_output),
        failure=_failure(step),
        start_time=_time(step.started_at),
        end_time=_time(step.ended_at),
    )


def _failure(found: Execution | Step) -> pb.Failure | None:
    if not found.failure_reason:
        return None
    return pb.Failure(reason=found.failure_reason, message=found.failure_message)


def _struct(value: dict[str, Any]) -> Struct:
    return ParseDict(value, Struct())


def _time(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _values(given: Struct) -> dict[str, Json]:
    # A Struct takes at most six times the bytes of its JSON.
    if given.ByteSize() > 6 * LARGEST_INPUT:
        raise invalid("input", f"must have at most {LARGEST_INPUT} bytes as JSON")
    try:
        values = plain(MessageToDict(given))
    except ValueError:
        raise invalid("input", "holds a number that JSON cannot have") from None
    return values if isinstance(values, dict) else {}


def _uuid(field: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise invalid(field, "must be a UUID") from None
