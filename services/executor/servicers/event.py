"""EventService: what happened, and what came of it."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from tenon.executor.v1 import event_service_pb2 as pb

from services.chassis.interceptors import Call
from services.executor.audit.outbox import doer_of
from services.executor.deliveries.trials import Trials
from services.executor.events.consuming import Consumers
from services.executor.events.log import EventLog
from services.executor.events.publishing import Publishing
from services.executor.events.replaying import Replaying
from services.executor.events.streaming import Stream
from services.executor.events.traces import EventTraces
from services.executor.messages import events as messages


class EventServicer:
    """Message in, use case, message out."""

    def __init__(
        self,
        publishing: Publishing,
        log: EventLog,
        traces: EventTraces,
        trials: Trials,
        stream: Stream,
        consumers: Consumers,
        replaying: Replaying,
    ) -> None:
        self._publishing = publishing
        self._stream = stream
        self._consumers = consumers
        self._replaying = replaying
        self._log = log
        self._traces = traces
        self._trials = trials

    async def PublishEvents(
        self, request: pb.PublishEventsRequest, call: Call
    ) -> pb.PublishEventsResponse:
        """Take events in, and route them."""
        ids = await self._publishing.publish(call.inside(), messages.new_events(request))
        return messages.published(ids, call.tenant)

    async def PublishEventStream(
        self, requests: AsyncIterator[pb.PublishEventStreamRequest], call: Call
    ) -> AsyncIterator[pb.PublishEventStreamResponse]:
        """Take events in as they come, and say how far that is."""
        publishing = self._stream.publish(call.inside(), requests, messages.Streamed())
        async with aclosing(publishing) as counts:
            async for taken in counts:
                yield pb.PublishEventStreamResponse(taken=taken)

    async def SubscribeEvents(
        self, request: pb.SubscribeEventsRequest, call: Call
    ) -> AsyncIterator[pb.SubscribeEventsResponse]:
        """Events as they come in."""
        following = self._consumers.follow(messages.wish(request, call))
        async with aclosing(following) as told:
            async for each in told:
                yield messages.told(each, call.tenant)

    async def AcknowledgeEvents(
        self, request: pb.AcknowledgeEventsRequest, call: Call
    ) -> pb.AcknowledgeEventsResponse:
        """Move a group's position."""
        done = messages.acknowledgement(request, call)
        moved = await self._consumers.acknowledge(done, doer_of(call))
        return pb.AcknowledgeEventsResponse(position=moved)

    async def ReplayEvents(
        self, request: pb.ReplayEventsRequest, call: Call
    ) -> pb.ReplayEventsResponse:
        """Route events again."""
        found = await self._replaying.replay(messages.replay(request, call), doer_of(call))
        return messages.replayed(found)

    async def ListEvents(self, request: pb.ListEventsRequest, call: Call) -> pb.ListEventsResponse:
        """A page of events, the newest first."""
        found = await self._log.page(messages.event_query(request, call))
        return messages.event_page(found, call.tenant)

    async def GetEvent(self, request: pb.GetEventRequest, call: Call) -> pb.Event:
        """One event as it came."""
        found = await self._log.get(call.inside(), messages.event_id(request.name))
        return messages.event(found, call.tenant)

    async def TraceEvent(self, request: pb.TraceEventRequest, call: Call) -> pb.TraceEventResponse:
        """What each subscription says to an event, and what it has begun."""
        found = await self._traces.of(call.inside(), messages.event_id(request.name))
        return messages.trace(found, call.tenant)

    async def SendTestEvent(
        self, request: pb.SendTestEventRequest, call: Call
    ) -> pb.SendTestEventResponse:
        """Deliver a test to an endpoint."""
        sent = await self._trials.send(call.inside(), messages.endpoint(request))
        return messages.test_sent(sent, call.tenant)
