"""The messages of LaneService and our values, one into the other."""

from uuid import UUID

from tenon.executor.v1 import lane_service_pb2 as pb

from services.chassis.interceptors import Call
from services.executor.engine.switchboard import Lane, LanePage, LaneQuery
from services.executor.messages.executions import moment, uid_in
from services.executor.store.lane_states import ProviderState, ProviderSwitch


def lane_query(request: pb.ListLanesRequest, call: Call) -> LaneQuery:
    """Which lanes a caller wants listed."""
    return LaneQuery(
        tenant_id=call.inside(),
        kind=request.kind,
        not_moving=request.not_moving,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def lane_id(request: pb.PauseLaneRequest | pb.ResumeLaneRequest) -> UUID:
    """The uid in `tenants/{slug}/lanes/{uid}`. Raises InvalidArgument."""
    return uid_in(request.name, "lanes")


def lane_page(found: LanePage, tenant: str) -> pb.ListLanesResponse:
    """A page as the caller sees it."""
    return pb.ListLanesResponse(
        lanes=[lane(each, tenant) for each in found.lanes], next_page_token=found.next_page_token
    )


def lane(found: Lane, tenant: str) -> pb.Lane:
    """A lane of the tenant with this slug, as the caller sees it."""
    state = found.state
    answer = pb.Lane(
        name=f"tenants/{tenant}/lanes/{state.lane_id}",
        owner=state.owner,
        kind=state.kind,
        provider=state.provider,
        waiting=state.waiting + state.blocked,
        running=state.running,
        concurrency=state.concurrency,
        next_look_time=moment(state.next_at),
        breaker=pb.Lane.Breaker.Value(f"BREAKER_{state.breaker}"),
        reasons=[pb.LaneReason(code=each.code, message=each.message) for each in found.reasons],
        failures=state.failures,
        trips=state.trips,
        open_until_time=moment(state.open_until) if state.breaker == "OPEN" else None,
    )
    if state.oldest_age is not None:
        answer.oldest_age.FromTimedelta(state.oldest_age)
    return answer


def provider_states(found: tuple[ProviderState, ...]) -> pb.ListProviderStatesResponse:
    """How a tenant's lanes stand, by provider."""
    return pb.ListProviderStatesResponse(provider_states=map(_provider_state, found))


def _provider_state(found: ProviderState) -> pb.ProviderState:
    answer = pb.ProviderState(
        provider=found.provider,
        closed=found.closed,
        open=found.open,
        half_open=found.half_open,
        paused=found.paused,
        off_reason=found.off_reason,
    )
    if found.oldest_age is not None:
        answer.oldest_age.FromTimedelta(found.oldest_age)
    return answer


def switches(found: tuple[ProviderSwitch, ...]) -> pb.ListProviderSwitchesResponse:
    """The providers that are off."""
    return pb.ListProviderSwitchesResponse(provider_switches=[switch(each) for each in found])


def switch(found: ProviderSwitch) -> pb.ProviderSwitch:
    """A provider that is off."""
    return pb.ProviderSwitch(
        provider=found.provider, reason=found.reason, create_time=moment(found.switched_off_at)
    )
