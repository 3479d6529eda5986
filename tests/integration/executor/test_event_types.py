"""What a tenant says of a type of event holds for whatever is published of it."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
import pytest
from tenon.executor.v1 import event_service_pb2 as pb

from services.chassis.database import Database
from services.chassis.status import from_rpc_error
from services.executor.registry.client import Registry
from services.executor.registry.projection import Projection
from services.executor.store import projected
from tests.integration.executor.delivery_bench import DeliveryBench, delivery_bench
from tests.integration.executor.event_calls import PARENT, EventCalls, event_calls, new
from tests.integration.executor.running_registry import RunningRegistry, document

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["id", "total"],
    "properties": {"id": {"type": "string", "minLength": 1}, "total": {"type": "integer"}},
    "additionalProperties": False,
}


def paid(**more: Any) -> dict[str, Any]:
    return document("EventType", "invoice-paid", type="invoice.paid", schema=SCHEMA, **more)


@pytest.fixture
async def tenant_id(
    registry_service: RunningRegistry, registry: Registry, executor_database: Database
) -> UUID:
    """A tenant that says what an invoice that was paid looks like."""
    await registry_service.apply("acme", document("Tenant", "acme", display_name="Acme"), paid())
    tenant_id = await registry_service.tenant_id("acme")
    await Projection(executor_database, registry).project(tenant_id)
    return tenant_id


@pytest.fixture
async def calls(tenant_id: UUID, executor_database: Database) -> AsyncIterator[EventCalls]:
    (told,) = await projected.all_of(executor_database, tenant_id, "EventType")
    async with delivery_bench(executor_database, tenant_id) as out:
        await want(out, told)
        async with event_calls(out) as made:
            yield made


async def want(out: DeliveryBench, told: projected.ProjectedObject) -> None:
    async with out.database.tenant(out.tenant_id) as tx:
        await projected.replace(tx, out.tenant_id, [told])


async def publish(calls: EventCalls, *events: pb.NewEvent) -> list[str]:
    request = pb.PublishEventsRequest(parent=PARENT, events=events)
    return list((await calls.stub.PublishEvents(request)).names)


async def refusal(call: Any) -> tuple[str, dict[str, str], str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    told = from_rpc_error(refused.value)
    return told.code, {each.field: each.description for each in told.violations}, told.message


async def test_a_payload_unlike_its_type_is_refused_at_its_place_and_nothing_of_it_said(
    calls: EventCalls,
) -> None:
    events = (
        new(payload={"id": "i-7", "total": 7}),
        new(payload={"id": "i-7", "total": "hunter2"}),
        new(payload={"id": "", "card": "hunter2"}),
        new("invoice.sent", {"card": 1}),
    )
    code, fields, message = await refusal(publish(calls, *events))
    assert (code, fields) == (
        "PAYLOAD_UNLIKE_TYPE",
        {
            "events[1].payload.total": "must be integer",
            "events[2].payload.total": "is required",
            "events[2].payload.id": "must have at least 1 characters",
            "events[2].payload.card": "must not be there",
        },
    )
    assert "hunter2" not in message
    listed = pb.ListEventsRequest(parent=PARENT)
    assert not (await calls.stub.ListEvents(listed)).events
    # What is right, and what nothing is said of, goes in.
    assert len(await publish(calls, events[0], events[3])) == 2


async def test_a_stream_is_held_to_it_as_well(calls: EventCalls) -> None:
    right, wrong = new(payload={"id": "i-7", "total": 7}), new(payload={"total": 7})
    call: Any = calls.stub.PublishEventStream()
    await call.write(pb.PublishEventStreamRequest(parent=PARENT, events=[right]))
    assert (await call.read()).taken == 1
    await call.write(pb.PublishEventStreamRequest(events=[wrong]))
    code, fields, _ = await refusal(call.read())
    assert (code, list(fields)) == ("PAYLOAD_UNLIKE_TYPE", ["events[1].payload.id"])


async def test_an_inactive_one_checks_nothing(
    calls: EventCalls,
    registry_service: RunningRegistry,
    registry: Registry,
    executor_database: Database,
    tenant_id: UUID,
) -> None:
    await registry_service.apply("acme", paid(is_active=False))
    await Projection(executor_database, registry).project(tenant_id)
    assert len(await publish(calls, new(payload={"anything": 1}))) == 1


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"type": "no spaces", "schema": SCHEMA}, "EventType/other#spec.type"),
        ({"type": "invoice.paid", "schema": SCHEMA}, "EventType/other#spec.type"),
        ({"type": "a"}, "EventType/other#spec.schema"),
        (
            {"type": "a", "schema": {"properties": {"x": {"pattern": "(a+)+"}}}},
            "EventType/other#spec.schema.properties.x.pattern",
        ),
        ({"type": "a", "schema": {"$ref": "#"}}, "EventType/other#spec.schema.$ref"),
    ],
)
async def test_what_cannot_be_held_is_refused_when_it_is_applied(
    said: dict[str, Any], field: str, registry_service: RunningRegistry, tenant_id: UUID
) -> None:
    with pytest.raises(AssertionError) as refused:
        await registry_service.apply("acme", document("EventType", "other", **said))
    assert [each.field for each in refused.value.args[1]] == [field]
