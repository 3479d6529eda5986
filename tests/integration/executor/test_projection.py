"""What tenants want is known here soon, whole, and again after any interruption."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis import errors
from services.chassis.database import Database
from services.chassis.failpoints import Arming, Failpoint, FailpointError
from services.chassis.process import ended
from services.executor.engine.steering import Limits
from services.executor.registry import projection as projection_module
from services.executor.registry.client import Registry
from services.executor.registry.messages import Snapshot
from services.executor.registry.projection import Projection
from services.executor.store import cursor, projected, tenants
from services.executor.store.projected import ProjectedObject
from tests.integration.executor.running_registry import RunningRegistry, document

Admin = psycopg.AsyncConnection[Any]

TENANT = document("Tenant", "acme", display_name="Acme")
CREDENTIAL = document("Credential", "token", type="bearer", values={"token": {"plain": "c2VjcmV0"}})
INTEGRATION = document(
    "Integration", "github", provider="github", credential="token", config={"owner": "acme"}
)
CONNECTOR = document(
    "Connector",
    "triage",
    steps=[{"name": "who", "integration": "github", "operation": "get_authenticated_user"}],
)


@asynccontextmanager
async def following(projection: Projection) -> AsyncIterator[None]:
    task = asyncio.create_task(projection.follow())
    try:
        yield
    finally:
        await ended(task)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


async def at_revision(database: Database, slug: str, revision: int) -> None:
    async def reached() -> bool:
        found = await tenants.find(database, slug)
        return found is not None and found.revision == revision

    await until(reached)


@pytest.fixture
def projection(executor_database: Database, registry: Registry) -> Projection:
    return Projection(executor_database, registry)


async def test_an_apply_is_projected_whole_and_reported(
    registry_service: RunningRegistry, executor_database: Database, projection: Projection
) -> None:
    async with following(projection):
        await registry_service.apply("acme", TENANT, CREDENTIAL, INTEGRATION, CONNECTOR)
        await at_revision(executor_database, "acme", 1)
        tenant_id = await registry_service.tenant_id("acme")

        integration = await projected.one(executor_database, tenant_id, "Integration", "github")
        credential = await projected.one(executor_database, tenant_id, "Credential", "token")
        connector = await projected.one(executor_database, tenant_id, "Connector", "triage")
        assert integration is not None and credential is not None and connector is not None
        assert integration.spec["credential"] == "token"
        assert integration.spec["is_active"] is True
        assert credential.version == 1
        assert credential.spec["type"] == "bearer" and "values" not in credential.spec
        assert connector.spec["steps"][0]["timeout"] == "30s"
        assert connector.spec["steps"][0]["retry"]["max_attempts"] == 3

        async def reported() -> bool:
            return (await registry_service.tenant("acme")).projected_revision == 1

        await until(reported)


async def test_a_later_apply_replaces_what_changed(
    registry_service: RunningRegistry, executor_database: Database, projection: Projection
) -> None:
    async with following(projection):
        await registry_service.apply("acme", TENANT, CREDENTIAL, INTEGRATION)
        await at_revision(executor_database, "acme", 1)
        rotated = document(
            "Credential", "token", type="bearer", values={"token": {"plain": "bmV3ZXI="}}
        )
        await registry_service.apply("acme", rotated, CONNECTOR)
        await at_revision(executor_database, "acme", 2)
    tenant_id = await registry_service.tenant_id("acme")
    credential = await projected.one(executor_database, tenant_id, "Credential", "token")
    assert credential is not None and credential.version == 2
    assert [
        each.name for each in await projected.all_of(executor_database, tenant_id, "Connector")
    ] == ["triage"]


async def test_a_disabled_tenant_is_known_as_disabled(
    registry_service: RunningRegistry, executor_database: Database, projection: Projection
) -> None:
    await registry_service.apply("acme", document("Tenant", "acme", enabled=False))
    await projection.project(await registry_service.tenant_id("acme"))
    found = await tenants.find(executor_database, "acme")
    assert found is not None and not found.enabled


async def test_a_new_leader_goes_on_where_the_last_one_was(
    registry_service: RunningRegistry, executor_database: Database, registry: Registry
) -> None:
    await registry_service.apply("acme", TENANT)
    async with following(Projection(executor_database, registry)):
        await at_revision(executor_database, "acme", 1)

        async def stored() -> bool:
            return bool(await cursor.read(executor_database))

        await until(stored)
    before = registry_service.calls["GetSnapshot"]
    await registry_service.apply("globex", document("Tenant", "globex", display_name="Globex"))
    async with following(Projection(executor_database, registry)):
        await at_revision(executor_database, "globex", 1)
    assert registry_service.calls["GetSnapshot"] == before + 1


async def test_a_change_behind_a_long_feed_does_not_wait_for_each_entry_to_be_stored(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await registry_service.apply("acme", TENANT)
    await admin.execute(
        "INSERT INTO registry.feed (tenant_id, kind, revision) SELECT tenant_id, 'revision', 1"
        " FROM registry.tenants, generate_series(1, 400)"
    )
    await registry_service.apply("globex", document("Tenant", "globex", display_name="Globex"))
    stored, write = list[str](), cursor.write

    async def counted(database: Database, position: str) -> None:
        stored.append(position)
        await write(database, position)

    monkeypatch.setattr(cursor, "write", counted)
    async with following(Projection(executor_database, registry, clock=lambda: 7.0)):
        await at_revision(executor_database, "globex", 1)
    assert len(stored) == 1, "no time has passed"


async def test_another_incarnation_of_the_registry_is_read_from_its_beginning(
    registry_service: RunningRegistry, executor_database: Database, projection: Projection
) -> None:
    await registry_service.apply("acme", TENANT)
    await cursor.write(executor_database, f"{uuid4()}.900.77")
    async with following(projection):
        await at_revision(executor_database, "acme", 1)


async def test_a_registry_that_went_and_came_back_is_followed_again(
    registry_service: RunningRegistry, executor_database: Database, projection: Projection
) -> None:
    async with following(projection):
        await registry_service.apply("acme", TENANT)
        await at_revision(executor_database, "acme", 1)
        await registry_service.stop()
        await registry_service.start()
        await registry_service.apply("acme", CREDENTIAL)
        await at_revision(executor_database, "acme", 2)


async def test_a_tenant_that_cannot_be_projected_stops_no_other_and_is_not_passed(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    admin: Admin,
) -> None:
    in_the_way = uuid4()
    await admin.execute(
        "INSERT INTO executor.tenants (tenant_id, slug, enabled, revision)"
        " VALUES (%s, 'acme', true, 7)",
        [in_the_way],
    )
    await registry_service.apply("acme", TENANT)
    now = 0.0
    async with following(Projection(executor_database, registry, clock=lambda: now)):
        await registry_service.apply("globex", document("Tenant", "globex", display_name="Globex"))
        await at_revision(executor_database, "globex", 1)
        assert await cursor.read(executor_database) == ""

        await admin.execute("DELETE FROM executor.tenants WHERE tenant_id = %s", [in_the_way])
        now = 100.0
        await registry_service.apply(
            "umbrella", document("Tenant", "umbrella", display_name="Umbrella")
        )
        await at_revision(executor_database, "acme", 1)

        async def stored() -> bool:
            return bool(await cursor.read(executor_database))

        await until(stored)


async def test_an_interruption_before_the_commit_leaves_the_older_projection_whole(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await registry_service.apply("acme", TENANT, CREDENTIAL)
    tenant_id = await registry_service.tenant_id("acme")
    await projection.project(tenant_id)
    await registry_service.apply("acme", INTEGRATION)

    dying = Failpoint("projection.before_commit", Arming("error", 1, ""))
    monkeypatch.setattr(projection_module, "BEFORE_COMMIT", dying)
    with pytest.raises(FailpointError):
        await projection.project(tenant_id)
    kept = await tenants.get(executor_database, tenant_id)
    assert kept is not None and kept.revision == 1
    assert await projected.all_of(executor_database, tenant_id, "Integration") == []

    assert await projection.project(tenant_id) == 2
    assert len(await projected.all_of(executor_database, tenant_id, "Integration")) == 1


async def test_a_leader_that_was_overtaken_writes_nothing(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    projection: Projection,
) -> None:
    await registry_service.apply("acme", TENANT, CREDENTIAL)
    tenant_id = await registry_service.tenant_id("acme")
    late = await registry.snapshot(tenant_id)
    await registry_service.apply("acme", INTEGRATION)
    await projection.project(tenant_id)

    for seen in (None, 1):
        with pytest.raises(errors.Aborted):
            await projection._write(late, seen)
    kept = await tenants.get(executor_database, tenant_id)
    assert kept is not None and kept.revision == 2
    assert len(await projected.all_of(executor_database, tenant_id, "Integration")) == 1


async def test_a_registry_restored_to_an_older_revision_is_followed(
    registry_service: RunningRegistry,
    executor_database: Database,
    projection: Projection,
    admin: Admin,
) -> None:
    await registry_service.apply("acme", TENANT)
    tenant_id = await registry_service.tenant_id("acme")
    await projection.project(tenant_id)
    await admin.execute("UPDATE executor.tenants SET revision = 40")
    await projection.project(tenant_id)
    kept = await tenants.get(executor_database, tenant_id)
    assert kept is not None and kept.revision == 1


async def test_what_is_gone_from_a_snapshot_goes_and_a_name_may_move_to_another_object(
    executor_database: Database, projection: Projection, tenant_ids: tuple[UUID, UUID]
) -> None:
    tenant_id, other = tenant_ids

    async def have(revision: int, *objects: ProjectedObject) -> None:
        snapshot = Snapshot(tenant_id, "acme", revision, True, Limits(), objects)
        await projection._write(snapshot, max(1, revision - 1))

    kept, moved, gone = (
        ProjectedObject("Credential", uuid4(), name, 0, {"n": n})
        for n, name in enumerate(("a", "b", "c"))
    )
    await have(1, kept, moved, gone)
    newer = ProjectedObject("Credential", uuid4(), "b", 0, {"n": 9})
    await have(2, kept, newer)
    assert await projected.all_of(executor_database, tenant_id, "Credential") == [kept, newer]
    assert await projected.all_of(executor_database, other, "Credential") == []
    await have(3)
    assert await projected.all_of(executor_database, tenant_id, "Credential") == []


async def test_one_tenants_projection_is_not_seen_inside_another(
    executor_database: Database, projection: Projection, tenant_ids: tuple[UUID, UUID]
) -> None:
    tenant_id, other = tenant_ids
    mine = ProjectedObject("Credential", uuid4(), "mine", 0, {})
    await projection._write(Snapshot(tenant_id, "acme", 2, True, Limits(), (mine,)), 1)
    async with executor_database.tenant(other) as tx:
        assert await projected.one(tx, tenant_id, "Credential", "mine") is None
        assert await tenants.get(tx, tenant_id) is None


async def test_a_tenant_is_found_by_slug_and_by_id(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> None:
    by_slug = await tenants.find(executor_database, "acme")
    assert by_slug is not None and by_slug.tenant_id == tenant_ids[0]
    assert await tenants.find(executor_database, str(tenant_ids[0])) == by_slug
    assert await tenants.find(executor_database, "nobody") is None
