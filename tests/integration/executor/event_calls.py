"""EventService of a tenant over gRPC, with what its consumers wait on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value
from tenon.executor.v1 import event_service_pb2 as pb
from tenon.executor.v1 import event_service_pb2_grpc as pb_grpc

from services.chassis.evaluator import Evaluator
from services.chassis.interceptors import Call
from services.chassis.process import background
from services.chassis.server import Listen, Service, serving
from services.chassis.tenancy import Access, Grant, Principal
from services.executor.deliveries.trials import Trials
from services.executor.events.arrivals import Arrivals
from services.executor.events.consuming import CONSUME, Consumers
from services.executor.events.log import EventLog
from services.executor.events.replaying import SETTLED, Replaying
from services.executor.events.streaming import Stream
from services.executor.events.traces import EventTraces
from services.executor.servicers.event import EventServicer
from tests.integration.executor.delivery_bench import DeliveryBench

PARENT: Final = "tenants/acme"


@dataclass
class EventCalls:
    """The stub, and what stands behind it; who is `barred` hears it at their next look.

    Replays take it to be `ahead` later than it is, so that all that is there has settled.
    """

    stub: "pb_grpc.EventServiceAsyncStub"
    arrivals: Arrivals
    may: set[str]
    barred: list[Exception] = field(default_factory=list)
    ahead: timedelta = SETTLED

    def now(self) -> datetime:
        """When it is, for replays."""
        return datetime.now(UTC) + self.ahead


@asynccontextmanager
async def event_calls(
    out: DeliveryBench, *, most: int = 5000, grace_s: float = 0.1
) -> AsyncIterator[EventCalls]:
    """A server for callers of the bench's tenant."""
    arrivals = Arrivals(out.database, poll_s=0.02)
    barred: list[Exception] = []
    may = {CONSUME}

    async def enter(call: Call) -> None:
        """What the gates find for a caller of acme."""
        if call.first is not None:
            call.message, call.first = await call.first(), None
        if barred:
            raise barred[0]
        access = Access("acme", out.tenant_id, (Grant("caller", frozenset(may)),))
        call.principal = Principal(uuid4(), "service", "the caller", {"acme": access})
        call.tenant, call.tenant_id = "acme", out.tenant_id

    async with Evaluator() as evaluator, background(arrivals.follow()):
        log = EventLog(out.database, out.keys)
        servicer = EventServicer(
            out.publishing,
            log,
            EventTraces(out.database, log, evaluator),
            Trials(out.database, out.keys),
            Stream(out.publishing, arrivals),
            Consumers(out.database, out.keys, evaluator, arrivals),
            Replaying(out.database, out.keys, evaluator, lambda: calls.now(), most),
        )
        service = Service(pb.DESCRIPTOR.services_by_name["EventService"], servicer)
        async with (
            serving([service], [enter], Listen("127.0.0.1:0"), grace_s=grace_s) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            calls = EventCalls(pb_grpc.EventServiceStub(channel), arrivals, may, barred)
            yield calls


def new(event_type: str = "invoice.paid", payload: Any = None, **more: Any) -> pb.NewEvent:
    """An event as a service tells it."""
    value = ParseDict({"total": 7} if payload is None else payload, Value())
    return pb.NewEvent(type=event_type, payload=value, **more)


def uid_of(event: pb.Event) -> UUID:
    """The id in an event's name."""
    return UUID(event.name.rpartition("/")[2])
