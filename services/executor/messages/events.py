"""The messages of EventService and our values, one into the other."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.executor.v1 import event_service_pb2 as pb

from services.chassis.errors import invalid
from services.chassis.expressions import Json, plain
from services.chassis.ids import parse_name, uuid7_time
from services.chassis.interceptors import Call
from services.executor.events.accepting import PUBLISHED
from services.executor.events.consuming import CONSUME, Acknowledgement, Told, Wish
from services.executor.events.log import EventPage, EventQuery, Seen
from services.executor.events.publishing import LARGEST, NewEvent
from services.executor.events.replaying import Replay, Replayed
from services.executor.events.selecting import Selection
from services.executor.events.traces import Answer, Trace
from services.executor.messages.executions import moment, uid_in, uuid_at
from services.executor.store.event_pages import Noted

Published = pb.PublishEventsRequest | pb.PublishEventStreamRequest


def new_events(request: Published) -> list[NewEvent]:
    """What a caller tells. Raises InvalidArgument."""
    # A Value takes at most six times the bytes of its JSON.
    if request.ByteSize() > 6 * LARGEST:
        raise invalid("events", f"payloads must have at most {LARGEST} bytes as JSON in all")
    return [
        NewEvent(each.type, _payload(index, each), each.key)
        for index, each in enumerate(request.events)
    ]


class Streamed:
    """What a caller tells, message by message."""

    def __init__(self) -> None:
        self._parent = ""

    def __call__(self, request: pb.PublishEventStreamRequest) -> list[NewEvent]:
        """The events of the next message. Raises InvalidArgument."""
        self._parent = self._parent or request.parent
        # Another one would be another tenant than the one the caller was let into.
        if request.parent not in {"", self._parent}:
            raise invalid("parent", "is that of the first message; leave it out in the others")
        return new_events(request)


def wish(request: pb.SubscribeEventsRequest, call: Call) -> Wish:
    """What a consumer wants to be told. Raises InvalidArgument."""
    return Wish(
        tenant_id=call.inside(),
        selection=_selection(request.types, request.filter),
        group=request.group,
        start=_start(request),
        check_member=partial(call.check, CONSUME),
    )


def told(found: Told, tenant: str) -> pb.SubscribeEventsResponse:
    """What a consumer is told."""
    seen = None if found.event is None else event(found.event, tenant)
    return pb.SubscribeEventsResponse(
        position=found.position, event=seen, unreadable=found.unreadable
    )


def acknowledgement(request: pb.AcknowledgeEventsRequest, call: Call) -> Acknowledgement:
    """What a group is done with."""
    return Acknowledgement(call.inside(), request.group, request.position, request.reset)


def replay(request: pb.ReplayEventsRequest, call: Call) -> Replay:
    """Which events a caller wants routed again. Raises InvalidArgument."""
    if not request.HasField("since"):
        raise invalid("since", "is required: what came in since then is routed again")
    if not (request.request_id or request.validate_only):
        raise invalid("request_id", "is required: by it the replay is gone on with")
    request_id = uuid_at("request_id", request.request_id) if request.request_id else None
    return Replay(
        tenant_id=call.inside(),
        since=_time("since", request.since),
        until=_time("until", request.until) if request.HasField("until") else None,
        selection=_selection(request.types, request.filter),
        endpoint=request.endpoint,
        subscription=request.subscription,
        request_id=None if request.validate_only else request_id,
        page_token=request.page_token,
    )


def replayed(found: Replayed) -> pb.ReplayEventsResponse:
    """How far a replay is."""
    progress = found.progress
    return pb.ReplayEventsResponse(
        events=progress.events,
        deliveries=progress.deliveries,
        executions=progress.executions,
        unreadable=progress.unreadable,
        sync_runs=progress.sync_runs,
        reach_time=moment(uuid7_time(UUID(int=progress.after_id.int + 1))),
        next_page_token=found.next_page_token,
    )


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
        sync_runs=[f"tenants/{tenant}/syncRuns/{each}" for each in found.sync_runs],
    )


def endpoint(request: pb.SendTestEventRequest) -> str:
    """The name in `tenants/{slug}/webhookEndpoints/{name}`. Raises BadName."""
    return parse_name(request.endpoint, "webhookEndpoints")[1]


def test_sent(delivery_id: UUID, tenant: str) -> pb.SendTestEventResponse:
    """What was begun."""
    return pb.SendTestEventResponse(delivery=f"tenants/{tenant}/deliveries/{delivery_id}")


def _selection(types: Iterable[str], condition: str) -> Selection:
    return Selection(tuple(types), condition)


def _start(request: pb.SubscribeEventsRequest) -> str | None:
    """Where a consumer begins, as `Wish` has it. Raises InvalidArgument."""
    if request.WhichOneof("from") == "position":
        if not request.position:
            raise invalid("position", "is empty; START_OLDEST is the oldest")
        return request.position
    if request.start not in pb.SubscribeEventsRequest.Start.values():
        raise invalid("start", "is not a start")
    return "" if request.start == pb.SubscribeEventsRequest.START_OLDEST else None


def _time(field: str, given: Timestamp) -> datetime:
    try:
        # Before 1970 there is no id; after 9999 no time.
        if given.seconds >= 1:
            return given.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    raise invalid(field, "must be a time since 1970")


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
