"""Schedules: what recurs is started once, at its time, for whom it may be; by an injected clock."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.database import Bound, Database
from services.chassis.errors import Unavailable
from services.executor.engine import lanes, steering
from services.executor.engine.steering import Limits
from services.executor.executions import scheduler
from services.executor.executions.runs import Query
from services.executor.executions.scheduler import Scheduler
from services.executor.registry.client import Registry
from services.executor.registry.credentials import LeasedKey
from services.executor.registry.projection import Projection
from services.executor.store import projected
from services.executor.store.executions import Execution
from services.executor.store.projected import ProjectedObject
from tests.integration.executor.execution_bench import ExecutionBench, Vault, step
from tests.integration.executor.running_registry import RunningRegistry, document

Admin = psycopg.AsyncConnection[Any]
START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTELY = {"every": "60s", "cron": "", "timezone": "UTC", "jitter": "0s"}


@dataclass
class Watch:
    """A clock that is set by hand."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def ticker(runs: ExecutionBench, watch: Watch) -> Scheduler:
    return Scheduler(runs.database, runs.vault, watch)


def connector(name: str = "c", *, active: bool = True, **schedule: Any) -> ProjectedObject:
    spec = {"is_active": active, "steps": [step()], "schedule": {**MINUTELY, **schedule}}
    return ProjectedObject("Connector", uuid4(), name, 0, spec)


async def project(
    runs: ExecutionBench, watch: Watch, *objects: ProjectedObject, tenant_id: UUID | None = None
) -> None:
    """What a projection writes."""
    tenant_id = tenant_id or runs.tenant_id
    async with runs.database.tenant(tenant_id) as tx:
        await projected.replace(tx, tenant_id, objects)
        await scheduler.replace_all(tx, tenant_id, objects, watch())


async def started(runs: ExecutionBench, tenant_id: UUID | None = None) -> list[Execution]:
    page = await runs.executions.list(Query(tenant_id or runs.tenant_id, page_size=500))
    return list(page.executions)


async def test_a_due_schedule_starts_one_run_and_says_so(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler
) -> None:
    one = connector()
    await project(runs, watch, one)
    assert await ticker.tick() == 1.0
    assert await started(runs) == []
    watch.turn(seconds=60)
    await ticker.tick()
    await ticker.tick()
    (run,) = await started(runs)
    assert (run.trigger_kind, run.trigger_id, run.connector) == ("schedule", one.object_id, "c")
    watch.turn(seconds=59)
    assert await ticker.tick() == 1.0
    assert len(await started(runs)) == 1
    watch.turn(seconds=0.4)
    assert await ticker.tick() == pytest.approx(0.6)
    watch.turn(seconds=0.6)
    await ticker.tick()
    assert len(await started(runs)) == 2


async def test_a_scheduled_run_sees_its_input_and_runs_to_its_end(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler
) -> None:
    await runs.want(step(query={"n": "${input.n}"}))
    spec = {
        "is_active": True,
        "steps": [step(query={"n": "${input.n}"})],
        "schedule": {**MINUTELY, "input": {"n": 3}},
    }
    wanted = ProjectedObject("Connector", runs.ids["c"], "c", 0, spec)
    async with runs.database.tenant(runs.tenant_id) as tx:
        await scheduler.replace_all(tx, runs.tenant_id, [wanted], watch())
        await tx.pipeline([Bound(projected.UPSERT, projected._values(runs.tenant_id, wanted))])
    watch.turn(seconds=60)
    await ticker.tick()
    (run,) = await started(runs)
    async with runs.working():
        ended = await runs.end_of(run.id)
    assert ended.state == "success"
    assert runs.box.calls[0].query == {"n": "3"}


async def test_what_was_missed_is_made_up_for_by_one_run_and_the_beat_is_kept(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler
) -> None:
    await project(runs, watch, connector(), connector("d", every=None, cron="*/5 * * * *"))
    watch.turn(minutes=31, seconds=10)
    await ticker.tick()
    assert sorted(each.connector for each in await started(runs)) == ["c", "d"]
    watch.turn(seconds=49)
    await ticker.tick()
    assert len(await started(runs)) == 2
    watch.turn(seconds=1)
    await ticker.tick()
    assert len(await started(runs)) == 3


async def test_two_leaders_at_once_start_one_run(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler
) -> None:
    await project(runs, watch, *(connector(f"c{n}") for n in range(10)))
    other = Scheduler(runs.database, runs.vault, watch)
    for beat in range(1, 6):
        watch.turn(seconds=60)
        await asyncio.gather(ticker.tick(), other.tick(), ticker.tick(), other.tick())
        assert len(await started(runs)) == 10 * beat
    assert ticker.started + other.started == 50


async def test_a_leader_that_dies_before_its_commit_loses_no_run(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await project(runs, watch, connector())
    watch.turn(seconds=60)

    async def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lanes, "begin", die)
        with pytest.raises(KeyboardInterrupt):
            await ticker._start_batch(runs.tenant_id, runs.vault.key, watch())
    await ticker.tick()
    assert len(await started(runs)) == 1


async def test_nothing_inactive_gone_or_disabled_runs_and_nothing_is_made_up_for_later(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler, admin: Admin
) -> None:
    active, sleeping, silent = (
        connector("a"),
        connector("s", active=False),
        connector("n", every=None),
    )
    await project(runs, watch, active, sleeping, silent)
    kept = await (await admin.execute("SELECT schedule_id FROM executor.schedules")).fetchall()
    assert kept == [(active.object_id,)]
    await admin.execute("UPDATE executor.tenants SET enabled = false")
    watch.turn(minutes=10)
    await ticker.tick()
    assert await started(runs) == []
    await admin.execute("UPDATE executor.tenants SET enabled = true")
    await ticker.tick()
    assert await started(runs) == []
    watch.turn(seconds=60)
    await ticker.tick()
    assert [each.connector for each in await started(runs)] == ["a"]
    awake = ProjectedObject("Connector", sleeping.object_id, "s", 0, connector().spec)
    await project(runs, watch, awake)
    watch.turn(seconds=60)
    await ticker.tick()
    assert [each.connector for each in await started(runs)] == ["s", "a"]


async def test_a_connector_projected_as_before_keeps_its_beat_and_a_changed_one_begins_anew(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler
) -> None:
    one = connector()
    await project(runs, watch, one)
    watch.turn(seconds=50)
    await project(runs, watch, one)
    watch.turn(seconds=10)
    await ticker.tick()
    assert len(await started(runs)) == 1
    spec = {**one.spec, "schedule": {**MINUTELY, "every": "120s"}}
    await project(runs, watch, ProjectedObject("Connector", one.object_id, "c", 0, spec))
    watch.turn(seconds=119)
    await ticker.tick()
    assert len(await started(runs)) == 1
    watch.turn(seconds=1)
    await ticker.tick()
    assert len(await started(runs)) == 2


async def test_jitter_delays_each_run_by_a_moment_of_its_own(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler, admin: Admin
) -> None:
    await project(runs, watch, *(connector(f"c{n}", jitter="30s") for n in range(8)))
    cursor = await admin.execute("SELECT next_at - moment FROM executor.schedules")
    delays = {row[0] for row in await cursor.fetchall()}
    assert len(delays) == 8
    assert all(timedelta() <= each < timedelta(seconds=30) for each in delays)
    watch.turn(seconds=60 + max(delays).total_seconds())
    await ticker.tick()
    assert len(await started(runs)) == 8


async def test_a_tenant_that_cannot_start_holds_up_no_other_and_is_tried_again(
    runs: ExecutionBench,
    watch: Watch,
    tenant_ids: tuple[UUID, UUID],
    caplog: pytest.LogCaptureFixture,
) -> None:
    away = tenant_ids[1]

    class Half(Vault):
        async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
            if tenant_id == away and self.fault is not None:
                raise self.fault
            return self.key

    vault = Half()
    vault.fault = Unavailable("the registry does not answer")
    ticker = Scheduler(runs.database, vault, watch)
    await project(runs, watch, connector())
    await project(runs, watch, connector(), tenant_id=away)
    watch.turn(seconds=60)
    with caplog.at_level(logging.WARNING):
        await ticker.tick()
        await ticker.tick()
    assert len(await started(runs)) == 1 and await started(runs, away) == []
    assert caplog.text.count("the registry does not answer") == 1
    vault.fault = None
    watch.turn(seconds=10)
    await ticker.tick()
    assert len(await started(runs, away)) == 1


async def test_a_schedule_waits_for_the_tenants_quota(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    async with runs.database.tenant(runs.tenant_id) as tx:
        await steering.govern(tx, runs.tenant_id, Limits(work_per_hour=1))
    await project(runs, watch, connector())
    watch.turn(seconds=60)
    await ticker.tick()
    watch.turn(seconds=60)
    with caplog.at_level(logging.WARNING):
        await ticker.tick()
    assert len(await started(runs)) == 1 and "an hour" in caplog.text
    async with runs.database.tenant(runs.tenant_id) as tx:
        await steering.govern(tx, runs.tenant_id, Limits())
    watch.turn(minutes=5)
    await ticker.tick()
    assert len(await started(runs)) == 2


async def test_more_than_a_batch_of_a_tenant_starts_in_one_tick(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler
) -> None:
    await project(runs, watch, *(connector(f"c{n}") for n in range(120)))
    watch.turn(seconds=60)
    await ticker.tick()
    assert len(await started(runs)) == 120


async def test_a_zone_our_clocks_do_not_know_stops_nothing_else(
    runs: ExecutionBench, watch: Watch, ticker: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    lost = connector("lost", every=None, cron="* * * * *", timezone="Mars/Base")
    with caplog.at_level(logging.WARNING):
        await project(runs, watch, lost, connector())
    assert "time zone" in caplog.text
    watch.turn(seconds=60)
    await ticker.tick()
    assert [each.connector for each in await started(runs)] == ["c"]


async def test_a_schedule_that_was_applied_is_projected_and_runs(
    registry_service: RunningRegistry,
    executor_database: Database,
    registry: Registry,
    runs: ExecutionBench,
    watch: Watch,
) -> None:
    steps = [{"name": "who", "integration": "plain", "method": "GET", "path": "/x"}]
    plain = document("Integration", "plain", provider="http", base_url="https://example.com")
    named: dict[str, Any] = {"steps": steps}

    async def apply(**spec: Any) -> UUID:
        wanted = document("Connector", "c", **named, **spec)
        await registry_service.apply("umbrella", document("Tenant", "umbrella"), plain, wanted)
        tenant_id = await registry_service.tenant_id("umbrella")
        await Projection(executor_database, registry).project(tenant_id)
        return tenant_id

    tenant_id = await apply(schedule={"every": "60s", "input": {"n": 3}})
    watch.now = datetime.now(UTC) + timedelta(seconds=61)
    ticker = Scheduler(executor_database, registry, watch)
    await ticker.tick()
    (run,) = await started(runs, tenant_id)
    assert (run.trigger_kind, run.connector) == ("schedule", "c")
    await apply(schedule={"every": "60s"}, is_active=False)
    watch.turn(days=1)
    await ticker.tick()
    assert len(await started(runs, tenant_id)) == 1
