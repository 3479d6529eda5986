"""The messages of DeliveryService and our values, one into the other."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from tenon.executor.v1 import delivery_service_pb2 as pb

from services.chassis.errors import invalid
from services.chassis.ids import format_name, parse_name
from services.chassis.interceptors import Call
from services.executor.deliveries.again import Recovered, Recovery
from services.executor.deliveries.endpoints import EndpointPage, EndpointState
from services.executor.deliveries.reading import DeliveryPage, DeliveryQuery
from services.executor.messages.executions import moment, uid_in
from services.executor.messages.lanes import lane
from services.executor.store.delivery_counts import STATES
from services.executor.store.delivery_pages import Delivery, Try

_STATE: Final = "STATE_"
ENDPOINTS: Final = "webhookEndpoints"


def delivery_id(name: str) -> UUID:
    """The uid in `tenants/{slug}/deliveries/{uid}`. Raises InvalidArgument."""
    return uid_in(name, "deliveries")


def delivery_query(request: pb.ListDeliveriesRequest, call: Call) -> DeliveryQuery:
    """Which deliveries a caller wants listed. Raises InvalidArgument."""
    if request.state not in pb.Delivery.State.values():
        raise invalid("state", "is not a state of a delivery")
    state = pb.Delivery.State.Name(request.state).removeprefix(_STATE).lower()
    return DeliveryQuery(
        tenant_id=call.inside(),
        endpoint=request.endpoint,
        state=state if request.state else "",
        page_size=request.page_size,
        page_token=request.page_token,
    )


def delivery_page(found: DeliveryPage, tenant: str) -> pb.ListDeliveriesResponse:
    """A page as the caller sees it."""
    return pb.ListDeliveriesResponse(
        deliveries=[delivery(each, tenant) for each in found.deliveries],
        next_page_token=found.next_page_token,
    )


def delivery(found: Delivery, tenant: str) -> pb.Delivery:
    """A delivery of the tenant with this slug, as the caller sees it."""
    return pb.Delivery(
        name=f"tenants/{tenant}/deliveries/{found.id}",
        state=pb.Delivery.State.Value(_STATE + found.state.upper()),
        event=f"tenants/{tenant}/events/{found.event_id}",
        event_type=found.event_type,
        endpoint=found.endpoint,
        subscription=found.subscription,
        attempts=found.attempts,
        response_status=found.response_status,
        failure_reason=found.failure_reason,
        create_time=moment(found.created_at),
        end_time=moment(found.ended_at),
        tries=[_try(each) for each in found.tries],
        payload_hash=found.payload_hash,
    )


def recovery(request: pb.RecoverEndpointRequest, call: Call) -> Recovery:
    """What a caller wants delivered again. Raises InvalidArgument."""
    return Recovery(
        tenant_id=call.inside(),
        endpoint=endpoint(request),
        since=_since(request),
        page_token=request.page_token,
    )


def endpoint(request: pb.RecoverEndpointRequest | pb.ResetCircuitRequest) -> str:
    """The name in `tenants/{slug}/webhookEndpoints/{name}`. Raises BadName."""
    return parse_name(request.endpoint, ENDPOINTS)[1]


def endpoint_page(found: EndpointPage, tenant: str) -> pb.ListEndpointStatesResponse:
    """A page as the caller sees it."""
    return pb.ListEndpointStatesResponse(
        endpoint_states=[_endpoint_state(each, tenant) for each in found.states],
        next_page_token=found.next_page_token,
    )


def _endpoint_state(found: EndpointState, tenant: str) -> pb.EndpointState:
    counts = found.counts
    return pb.EndpointState(
        name=format_name(tenant, ENDPOINTS, found.lane.state.owner),
        lane=lane(found.lane, tenant),
        **{state: getattr(counts, state) for state in STATES},
        success_rate=found.success_rate,
        last_success_time=moment(counts.last_success_at),
        last_failure_time=moment(counts.last_failure_at),
        last_failure_reason=counts.last_failure_reason or "",
        duration_p50=_lasting(counts.p50_ms),
        duration_p95=_lasting(counts.p95_ms),
    )


def recovered(found: Recovered) -> pb.RecoverEndpointResponse:
    """What was begun."""
    return pb.RecoverEndpointResponse(count=found.count, next_page_token=found.next_page_token)


def _since(request: pb.RecoverEndpointRequest) -> datetime:
    if not request.HasField("since"):
        raise invalid("since", "is required: what was made since then is delivered again")
    try:
        if request.since.seconds >= 0:
            return request.since.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    raise invalid("since", "must be a time since 1970")


def _lasting(ms: float | None) -> Duration | None:
    if ms is None:
        return None
    duration = Duration()
    duration.FromMilliseconds(round(ms))
    return duration


def _try(found: Try) -> pb.Attempt:
    return pb.Attempt(
        number=found.number,
        start_time=moment(found.started_at),
        duration=_lasting(found.duration_ms),
        response_status=found.response_status,
        failure_reason=found.failure_reason,
        response_head=found.response_head,
    )
