"""The messages of EventService and our values, one into the other."""

from uuid import UUID

from google.protobuf.json_format import MessageToDict
from tenon.executor.v1 import event_service_pb2 as pb

from services.chassis.errors import invalid
from services.chassis.expressions import Json, plain
from services.chassis.ids import parse_name
from services.chassis.interceptors import Call
from services.executor.events.accepting import PUBLISHED
from services.executor.events.log import EventPage, EventQuery, Seen
from services.executor.events.publishing import LARGEST, NewEvent
from services.executor.events.traces import Answer, Trace
from services.executor.messages.executions import moment, uid_in
from services.executor.store.event_pages import Noted


def new_events(request: pb.PublishEventsRequest) -> list[NewEvent]:
    """What a caller tells. Raises InvalidArgument."""
    # A Value takes at most six times the bytes of its JSON.
    if request.ByteSize() > 6 * LARGEST:
        raise invalid("events", f"payloads must have at most {LARGEST} bytes as JSON in all")
    return [
        NewEvent(each.type, _payload(index, each), each.key)
        for index, each in enumerate(request.events)
    ]


def published(ids: list[UUID], tenant: str) -> pb.PublishEventsResponse:
    """What was taken in."""
    return pb.PublishEventsResponse(names=[_name(each, tenant) for each in ids])


def event_id(name: str) -> UUID:
    """The uid in `tenants/{slug}/events/{uid}`. Raises InvalidArgument."""
    return uid_in(name, "events")


def event_query(request: pb.ListEventsRequest, call: Call) -> EventQuery:
    """Which events a caller wants listed."""
    return EventQuery(
        tenant_id=call.inside(),
        type=request.type,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def event_page(found: EventPage, tenant: str) -> pb.ListEventsResponse:
    """A page as the caller sees it."""
    return pb.ListEventsResponse(
        events=[_noted(each, tenant) for each in found.events],
        next_page_token=found.next_page_token,
    )


def event(found: Seen, tenant: str) -> pb.Event:
    """An event as it came, as far as its endpoint lets people see it."""
    told = _noted(found.noted, tenant)
    told.headers.update(found.said.headers)
    told.body, told.redacted = found.shown, found.shown != found.said.body
    return told


def trace(found: Trace, tenant: str) -> pb.TraceEventResponse:
    """What became of an event, as the caller sees it."""
    return pb.TraceEventResponse(
        event=_noted(found.noted, tenant),
        subscriptions=[_answer(each) for each in found.answers],
        deliveries=[f"tenants/{tenant}/deliveries/{each}" for each in found.deliveries],
        executions=[f"tenants/{tenant}/executions/{each}" for each in found.executions],
    )


def endpoint(request: pb.SendTestEventRequest) -> str:
    """The name in `tenants/{slug}/webhookEndpoints/{name}`. Raises BadName."""
    return parse_name(request.endpoint, "webhookEndpoints")[1]


def test_sent(delivery_id: UUID, tenant: str) -> pb.SendTestEventResponse:
    """What was begun."""
    return pb.SendTestEventResponse(delivery=f"tenants/{tenant}/deliveries/{delivery_id}")


def _payload(index: int, given: pb.NewEvent) -> Json:
    try:
        return plain(MessageToDict(given.payload))
    except ValueError:
        field = f"events[{index}].payload"
        raise invalid(field, "holds a number that JSON cannot have") from None


def _noted(found: Noted, tenant: str) -> pb.Event:
    return pb.Event(
        name=_name(found.id, tenant),
        type=found.type,
        endpoint_uid="" if found.endpoint_id == PUBLISHED else str(found.endpoint_id),
        key=found.delivery_key,
        receive_time=moment(found.received_at),
    )


def _answer(found: Answer) -> pb.SubscriptionTrace:
    return pb.SubscriptionTrace(
        subscription=found.subscription,
        takes=found.takes,
        reason=found.reason,
        message=found.message,
    )


def _name(event_uid: UUID, tenant: str) -> str:
    return f"tenants/{tenant}/events/{event_uid}"
