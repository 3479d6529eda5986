"""A tenant that is being deleted: nothing of it begins, what runs may end, then all of it goes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from tenon.registry.v1 import tenant_service_pb2 as pb2
from tenon.registry.v1 import tenant_service_pb2_grpc

from services.chassis import errors
from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.purge import BATCH
from services.executor.draining import Draining
from services.executor.engine import lanes
from services.executor.engine.work import WorkItem
from services.executor.events import accepting
from services.executor.events.accepting import Event
from services.executor.events.routing import Route
from services.executor.ingress.intake import Intake
from services.executor.registry.client import Registry
from services.executor.registry.messages import Snapshot
from services.executor.registry.projection import Projection
from services.executor.store import cursor, deliveries, delivery_pages, projected, tenants
from services.executor.store import draining as store
from services.executor.store.deliveries import Attempt
from services.executor.store.draining import ROWS
from tests.integration.executor.running_registry import RunningRegistry, document
from tests.integration.executor.test_projection import following, until

Admin = psycopg.AsyncConnection[Any]

OBJECTS = (
    document("Credential", "hook", type="webhook_secret", values={"secret": {"plain": "c2VjcmV0"}}),
    document("Credential", "token", type="bearer", values={"token": {"plain": "c2VjcmV0"}}),
    document(
        "Integration", "github", provider="github", credential="token", config={"owner": "acme"}
    ),
    document(
        "Connector",
        "triage",
        steps=[{"name": "who", "integration": "github", "operation": "get_authenticated_user"}],
        schedule={"every": "3600s"},
    ),
    document("WebhookEndpoint", "hooks", integration="github", secret="hook"),
    document(
        "WebhookEndpoint", "out", direction="OUTBOUND", url="https://example.com/in", secret="hook"
    ),
    document("Subscription", "all", endpoint="hooks", connector="triage", event_types=["push"]),
)


@pytest.fixture
def projection(executor_database: Database, registry: Registry) -> Projection:
    return Projection(executor_database, registry)


@pytest.fixture
def draining(executor_database: Database, registry: Registry) -> Draining:
    return Draining(executor_database, registry, drain_s=60, settled_s=0)


@pytest.fixture
async def ids(registry_service: RunningRegistry, projection: Projection) -> tuple[UUID, UUID]:
    """Two tenants with objects of each kind, `acme` and `globex`, both projected."""
    found = []
    for slug in ("acme", "globex"):
        await registry_service.apply(slug, document("Tenant", slug), *OBJECTS)
        found.append(await registry_service.tenant_id(slug))
        await projection.project(found[-1])
    return found[0], found[1]


class Slow(Registry):
    """A registry whose snapshots reach the executor late."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.taken, self.go_on = asyncio.Event(), asyncio.Event()

    async def snapshot(self, tenant_id: UUID) -> Snapshot:
        found = await super().snapshot(tenant_id)
        self.taken.set()
        await self.go_on.wait()
        return found


@pytest.fixture
async def slow(registry_service: RunningRegistry) -> AsyncIterator[Slow]:
    async with open_channel(registry_service.target, key=registry_service.service_key) as channel:
        yield Slow(channel)


async def deliver(database: Database, registry: Registry, tenant_id: UUID, key: str) -> UUID:
    """Take a webhook in that runs a connector and goes out, as far as the database sees it."""
    out = await projected.one(database, tenant_id, "WebhookEndpoint", "out")
    endpoint = await projected.one(database, tenant_id, "WebhookEndpoint", "hooks")
    subscription = await projected.one(database, tenant_id, "Subscription", "all")
    assert endpoint is not None and subscription is not None and out is not None
    connector = await projected.one(
        database, tenant_id, "Connector", subscription.spec["connector"]
    )
    assert connector is not None
    event = Event(tenant_id, endpoint, "push", key, {}, {}, b"canary-of-an-event")
    leased = await registry.lease_key(tenant_id)
    routes = [Route(subscription, connector), Route(subscription, out)]
    known = await Intake(database).accept(accepting.draft(event, routes, leased))
    async with database.tenant(tenant_id) as tx:
        (delivery_id,) = await delivery_pages.of_event(tx, tenant_id, event.id)
        refused = Attempt(1, timedelta(seconds=1), 500, "HTTP_500", "canary of an answer")
        await tx.pipeline([deliveries.tried(tenant_id, delivery_id, refused, "retrying")])
    return known


async def let_go(service: RunningRegistry, slug: str) -> None:
    """Delete a tenant, as its owner does."""
    async with open_channel(service.target, key=service.owner_key, reason="a test") as channel:
        stub: tenant_service_pb2_grpc.TenantServiceAsyncStub = (
            tenant_service_pb2_grpc.TenantServiceStub(channel)
        )
        request = pb2.DeleteTenantRequest(name=f"tenants/{slug}", force=True)
        await stub.DeleteTenant(request, timeout=20)


async def rows_of(admin: Admin, tenant_id: UUID) -> dict[str, list[str]]:
    """All rows of a tenant, by table; of tables with none, nothing."""
    found = {}
    for table in (*ROWS.tables, "tenants"):
        query = f"SELECT t::text FROM executor.{table} t WHERE tenant_id = %s ORDER BY 1"
        cursor = await admin.execute(query, [tenant_id])
        if rows := [str(text) for (text,) in await cursor.fetchall()]:
            found[table] = rows
    return found


async def look(database: Database, draining: Draining, tenant_id: UUID, age_s: float = 0) -> bool:
    """One look of the leader's at a tenant that has been on its way for so long."""
    assert tenant_id in [one.tenant_id for one in await store.leaving(database)]
    return await draining.look_after(store.Leaving(tenant_id, age_s))


async def test_a_draining_tenant_is_known_as_one_that_begins_nothing(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    projection: Projection,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    await deliver(executor_database, registry, ids[0], "first")
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    found = await tenants.finder(executor_database).find("acme")
    assert found is not None and found.state == "draining"
    cursor = await admin.execute(
        "SELECT paused FROM executor.tenant_lanes WHERE tenant_id = %s", [ids[0]]
    )
    assert await cursor.fetchone() == (True,)
    before = await rows_of(admin, ids[0])
    with pytest.raises(errors.NotFound):
        await deliver(executor_database, registry, ids[0], "second")
    assert await rows_of(admin, ids[0]) == before


async def test_a_purge_leaves_nothing_reports_it_and_touches_nobody_else(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    projection: Projection,
    draining: Draining,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    mine, other = ids
    for tenant_id in ids:
        await deliver(executor_database, registry, tenant_id, "first")
        await admin.execute(
            "INSERT INTO executor.event_receipts"
            " SELECT %s, gen_random_uuid(), n::text, gen_random_uuid() FROM generate_series(1, %s) n",
            [tenant_id, BATCH * 2],
        )
    others, before = await rows_of(admin, other), await rows_of(admin, mine)
    assert {"deliveries", "delivery_attempts"} <= before.keys()
    await let_go(registry_service, "acme")
    await projection.project(mine)
    assert await look(executor_database, draining, mine)

    assert await rows_of(admin, mine) == {}
    assert await rows_of(admin, other) == others
    told = (await registry_service.tenant("acme")).deletion
    assert dict(told.executor_rows) == {
        table: len(rows) for table, rows in before.items() if table != "tenants"
    }
    assert await store.leaving(executor_database) == []


async def test_what_runs_may_end_and_is_then_told_to(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    draining: Draining,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    item = WorkItem("execution", uuid4(), uuid4())
    async with executor_database.tenant(ids[0]) as tx:
        await lanes.enqueue(tx, ids[0], [item])
    await admin.execute(
        "UPDATE executor.work SET claim_id = gen_random_uuid(), lease_until = now() + '1 min'"
    )
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    cancelled = "SELECT cancelled FROM executor.work"
    assert not await look(executor_database, draining, ids[0], age_s=59)
    assert await (await admin.execute(cancelled)).fetchall() == [(False,)]
    slow = Draining(executor_database, draining._registry, drain_s=60, settled_s=6)
    assert not await look(executor_database, slow, ids[0], age_s=61)
    assert await (await admin.execute(cancelled)).fetchall() == [(True,)]
    assert await look(executor_database, slow, ids[0], age_s=66.5)
    assert await rows_of(admin, ids[0]) == {}


async def test_nothing_is_deleted_while_older_transactions_may_still_add_to_it(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    projection: Projection,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    before = await rows_of(admin, ids[0])
    draining = Draining(executor_database, registry, drain_s=60)
    assert not await look(executor_database, draining, ids[0], age_s=5)
    assert await rows_of(admin, ids[0]) == before


async def test_a_purge_that_cannot_be_reported_goes_on_later(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    draining: Draining,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    await registry_service.stop()
    with pytest.raises(errors.Unavailable):
        await look(executor_database, draining, ids[0])
    assert list(await rows_of(admin, ids[0])) == ["tenants"]
    await registry_service.start()
    assert await look(executor_database, draining, ids[0])
    assert await rows_of(admin, ids[0]) == {}
    assert (await registry_service.tenant("acme")).deletion.executor_rows["projected_objects"] == 7


async def test_the_service_cannot_delete_history_of_a_tenant_that_stays(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    projection: Projection,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    await deliver(executor_database, registry, ids[0], "first")
    history = (
        *("events", "event_receipts", "executions", "deliveries", "delivery_attempts"),
        *("tenant_lanes", "tenants"),
    )
    before = await rows_of(admin, ids[0])
    async with executor_database.tenant(ids[0]) as tx:
        await ROWS.purge(tx, ids[0])
        await store.forget(tx, ids[0])
    after = await rows_of(admin, ids[0])
    assert {table: after.get(table) for table in history} == {
        table: before[table] for table in history
    }


async def test_what_was_done_here_is_told_to_the_audit_log_before_it_goes(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    draining: Draining,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    await admin.execute(
        "INSERT INTO executor.audit_outbox (tenant_id, id, event) VALUES (%s, %s, '{}')",
        [ids[0], uuid4()],
    )
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    before = await rows_of(admin, ids[0])
    assert not await look(executor_database, draining, ids[0])
    assert await rows_of(admin, ids[0]) == before
    await admin.execute("DELETE FROM executor.audit_outbox")
    assert await look(executor_database, draining, ids[0])
    assert await rows_of(admin, ids[0]) == {}


async def test_a_slow_former_leader_does_not_call_a_tenant_back(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    draining: Draining,
    slow: Slow,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    former = asyncio.create_task(Projection(executor_database, slow).project(ids[0]))
    await slow.taken.wait()
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    slow.go_on.set()
    with pytest.raises(errors.Aborted):
        await former
    found = await tenants.get(executor_database, ids[0])
    assert found is not None and found.draining and not found.enabled


async def test_a_slow_former_leader_does_not_bring_a_tenant_back(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    draining: Draining,
    slow: Slow,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    former = asyncio.create_task(Projection(executor_database, slow).project(ids[0]))
    await slow.taken.wait()
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    assert await look(executor_database, draining, ids[0])
    slow.go_on.set()
    with pytest.raises(errors.Aborted):
        await former
    assert await rows_of(admin, ids[0]) == {}


async def test_of_a_tenant_that_the_registry_does_not_know_nothing_begins_and_nothing_goes(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    admin: Admin,
) -> None:
    """The registry may have been restored to before the tenant was made."""
    unknown = uuid4()
    made = tenants.ProjectedTenant(unknown, "later", enabled=True, revision=4)
    async with executor_database.tenant(unknown) as tx:
        assert await tenants.write(tx, made, seen=None)
    assert await projection.project(unknown) == 0
    found = await tenants.get(executor_database, unknown)
    assert found == replace(made, enabled=False)
    paused = await admin.execute(
        "SELECT paused FROM executor.tenant_lanes WHERE tenant_id = %s", [unknown]
    )
    assert await paused.fetchall() == [(True,)]


async def kept(database: Database) -> bool:
    """Whether a position in the feed is kept."""
    return bool(await cursor.read(database))


@pytest.mark.parametrize("position", ["kept", "lost"])
async def test_a_restored_executor_lets_go_of_what_the_registry_has_purged(
    position: str,
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    draining: Draining,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    mine, other = ids
    async with following(projection):
        await until(lambda: kept(executor_database))
    before = await cursor.read(executor_database)
    await let_go(registry_service, "acme")
    await registry_service.purge("acme")
    if position == "lost":
        # Of what went long ago the feed tells nothing.
        await admin.execute("DELETE FROM registry.feed WHERE tenant_id = %s", [mine])
    await cursor.write(executor_database, before if position == "kept" else "")
    others = await rows_of(admin, other)
    async with following(projection):

        async def goes() -> bool:
            found = await tenants.get(executor_database, mine)
            return found is not None and found.draining and not found.enabled

        await until(goes)
    assert await look(executor_database, draining, mine)
    assert await rows_of(admin, mine) == {}
    after = await rows_of(admin, other)
    assert [after.keys(), after["projected_objects"]] == [
        others.keys(),
        others["projected_objects"],
    ]


async def test_what_no_log_is_left_for_goes_untold(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    draining: Draining,
    ids: tuple[UUID, UUID],
    admin: Admin,
) -> None:
    await admin.execute(
        "INSERT INTO executor.audit_outbox (tenant_id, id, event) VALUES (%s, %s, '{}')",
        [ids[0], uuid4()],
    )
    await let_go(registry_service, "acme")
    await projection.project(ids[0])
    assert not await look(executor_database, draining, ids[0])
    await registry_service.purge("acme")
    assert await look(executor_database, draining, ids[0])
    assert await rows_of(admin, ids[0]) == {}
