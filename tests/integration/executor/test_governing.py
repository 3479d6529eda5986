"""Lanes are governed by what tenants want: shares, caps, rates, order, and owners that go."""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from config import cli
from services.chassis.database import Database
from services.chassis.errors import Aborted
from services.executor.engine import steering, turns
from services.executor.engine.governing import govern, policy_of
from services.executor.engine.steering import Limits
from services.executor.engine.work import Claimed, Outcome
from services.executor.engine.worker import Worker, WorkerLimits
from services.executor.executions.runs import KIND, Query
from services.executor.registry.client import Registry
from services.executor.registry.projection import Projection
from services.executor.store import lanes as store
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from tests.integration.executor.execution_bench import ExecutionBench, step
from tests.integration.executor.lane_bench import LaneBench
from tests.integration.executor.running_registry import RunningRegistry
from tests.integration.executor.test_worker import Recorded, working

Admin = psycopg.AsyncConnection[Any]
LANE = {"concurrency": 16, "rate_per_minute": 0, "ordering": "none"}
NO_LIMITS = Limits()


async def pass_time(admin: Admin, seconds: float) -> None:
    """Move everything of the engine into the past, which is all it knows of time."""
    for table, columns in {
        "tenant_lanes": ("next_at", "lease_until", "quota_at"),
        "lanes": ("next_at", "rate_at", "open_until"),
        "work": ("due_at", "lease_until"),
    }.items():
        changes = ", ".join(f"{name} = {name} - '{seconds} s'::interval" for name in columns)
        await admin.execute(f"UPDATE executor.{table} SET {changes}")


async def limit(bench: LaneBench, limits: Limits) -> None:
    """Give the bench's tenant its limits."""
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, limits)


class Watched(Recorded):
    """Work that notes in which order it begins, and how much runs at once, by tenant and lane."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self._seconds = seconds
        self.order: list[Claimed] = []
        self.now: Counter[UUID] = Counter()
        self.most: Counter[UUID] = Counter()

    async def call(self, claimed: Claimed, prepared: None) -> Outcome:
        where = (claimed.tenant_id, claimed.lane_id)
        self.order.append(claimed)
        self.now.update(where)
        self.most |= self.now
        try:
            await asyncio.sleep(self._seconds)
            return await super().call(claimed, prepared)
        finally:
            self.now.subtract(where)


async def test_tenants_share_the_workers_by_their_weights(executor_database: Database) -> None:
    heavy, light = LaneBench(executor_database), LaneBench(executor_database)
    await limit(heavy, Limits(weight=3))
    await limit(light, Limits(weight=1))
    for bench in (heavy, light):
        await bench.enqueue(*(bench.item(uuid4()) for _ in range(20) for _ in range(20)))
    kind = Watched()
    async with working(executor_database, kind, WorkerLimits(items=16)):
        await kind.until(320)
    begun = Counter(claimed.tenant_id for claimed in kind.order[:320])
    assert 2.5 < begun[heavy.tenant_id] / begun[light.tenant_id] < 3.5


async def test_two_workers_never_run_more_of_a_tenant_than_it_may(
    executor_database: Database,
) -> None:
    capped, free = LaneBench(executor_database), LaneBench(executor_database)
    await limit(capped, Limits(max_running=5))
    for bench in (capped, free):
        await bench.enqueue(*(bench.item(lane) for lane in (uuid4(), uuid4()) for _ in range(40)))
    kind = Watched(seconds=0.01)
    async with AsyncExitStack() as workers:
        for _ in range(2):
            limits = WorkerLimits(poll_s=0.2)
            await workers.enter_async_context(working(executor_database, kind, limits))
        await kind.until(160)
    assert kind.most[capped.tenant_id] == 5
    assert kind.most[free.tenant_id] > 5


async def test_two_workers_never_run_more_on_a_provider_than_a_tenant_may(
    bench: LaneBench,
) -> None:
    await limit(bench, Limits(provider_caps={"github": 3}))
    capped, free = uuid4(), uuid4()
    also = uuid4()
    await bench.enqueue(*(bench.item(capped, provider="github") for _ in range(30)))
    await bench.enqueue(*(bench.item(also, provider="github") for _ in range(30)))
    await bench.enqueue(*(bench.item(free, provider="slack") for _ in range(60)))
    kind = Watched(seconds=0.01)
    together = 0

    async def look(claimed: Claimed) -> None:
        nonlocal together
        together = max(together, kind.now[capped] + kind.now[also])

    kind._before = look
    async with AsyncExitStack() as workers:
        for _ in range(2):
            limits = WorkerLimits(poll_s=0.2)
            await workers.enter_async_context(working(bench.database, kind, limits))
        await kind.until(120)
    assert together == 3
    assert kind.most[free] > 3


@pytest.mark.parametrize("per_minute", [60, 240])
async def test_a_minute_sees_no_more_begin_than_the_rate(
    per_minute: int, bench: LaneBench, admin: Admin
) -> None:
    spec = {"lane": {**LANE, "rate_per_minute": per_minute}, "steps": [{"integration": "x"}]}
    policy = policy_of(spec, {})
    shaped = {name: getattr(policy, name) for name in ("rate_per_s", "burst")}
    await bench.enqueue(*(bench.item(concurrency=1000, **shaped) for _ in range(400)))
    begun, looks = 0, 120
    clock = asyncio.get_running_loop().time
    started = clock()
    for _ in range(looks):
        begun += len(await bench.take(share=400))
        await pass_time(admin, 0.25)
    # The database's clock goes on meanwhile.
    least = per_minute * looks * 0.25 / 60
    most = per_minute * (looks * 0.25 + clock() - started) / 60
    assert least - 1 <= begun <= most + policy.burst


async def test_an_ordered_connector_keeps_its_order_through_failures(
    runs: ExecutionBench, admin: Admin
) -> None:
    """The first waits for its next try, and those behind it wait with it."""
    connector = await _project(runs, lane={**LANE, "ordering": "lane"})
    ids = [await runs.start(connector, number=n) for n in range(5)]
    faults = iter([True, True, False, True] + [False] * 10)
    began: list[UUID] = []
    call = runs.running.call

    async def flaky(claimed: Claimed, prepared: Any) -> Outcome:
        began.append(claimed.target_id)
        if next(faults):
            raise LookupError
        return await call(claimed, prepared)

    await admin.execute("UPDATE executor.lanes SET retry_s = '{0.05,0.05,0.05}'")
    runs.running.call = flaky  # type: ignore[method-assign]
    async with runs.working(), runs.working():
        ended = [await runs.end_of(each) for each in ids]
    assert [each.state for each in ended] == ["success"] * 5
    assert began == [ids[0]] * 3 + [ids[1]] * 2 + ids[2:]


async def _project(
    runs: ExecutionBench,
    *more: ProjectedObject,
    limits: Limits = NO_LIMITS,
    there: bool = True,
    **connector: Any,
) -> ProjectedObject:
    """Project the bench's tenant as the leader does: the connector `c`, unless it is not there."""
    spec = {"is_active": True, "steps": [step()], "lane": LANE, **connector}
    made = runs._object("Connector", "c", spec)
    github = {"is_active": True, "base_url": runs.box.url, "config": {}, "provider": "github"}
    objects = [
        runs._object("Integration", "github", {**github, "credential": "token"}),
        runs._object("Credential", "token", {"type": "bearer"}, version=1),
        *([made] if there else []),
        *more,
    ]
    async with runs.database.tenant(runs.tenant_id) as tx:
        await projected.replace(tx, runs.tenant_id, objects)
        await govern(tx, runs.tenant_id, limits, objects)
    return made


async def _lane(admin: Admin, *columns: str) -> Any:
    names = ", ".join(columns)
    found = await admin.execute(f"SELECT {names} FROM executor.lanes")
    return await found.fetchone()


async def _nothing_begins(runs: ExecutionBench, seconds: float = 0.6) -> None:
    """A worker that looks several times finds nothing to run."""
    async with runs.working():
        await asyncio.sleep(seconds)
    assert runs.box.calls == []


async def test_what_waits_for_an_inactive_connector_goes_on_when_it_is_active_again(
    runs: ExecutionBench,
) -> None:
    execution_id = await runs.start(await _project(runs))
    await _project(runs, is_active=False)
    await _nothing_begins(runs)
    assert (await runs.executions.get(runs.tenant_id, execution_id)).state == "pending"
    async with runs.working():
        await _project(runs)
        assert (await runs.end_of(execution_id)).state == "success"


async def test_a_disabled_tenant_begins_nothing_until_it_is_enabled(runs: ExecutionBench) -> None:
    execution_id = await runs.start(await _project(runs))
    await _project(runs, limits=Limits(paused=True))
    await _nothing_begins(runs)
    async with runs.working():
        await _project(runs)
        assert (await runs.end_of(execution_id)).state == "success"


async def test_neither_a_projection_nor_an_operator_undoes_the_others_pause(
    runs: ExecutionBench, admin: Admin
) -> None:
    connector = await _project(runs)
    execution_id = await runs.start(connector)
    lane = (runs.tenant_id, connector.object_id)
    async with runs.database.tenant(runs.tenant_id) as tx:
        await steering.pause(tx, *lane, "an operator looks into it")
    await _project(runs, is_active=False)
    await _project(runs)
    assert await _lane(admin, "pause_reason") == ("an operator looks into it",)
    await _nothing_begins(runs)

    await _project(runs, is_active=False)
    async with runs.database.tenant(runs.tenant_id) as tx:
        await steering.resume(tx, *lane)
    await _nothing_begins(runs)
    assert (await runs.executions.get(runs.tenant_id, execution_id)).state == "pending"
    async with runs.working():
        await _project(runs)
        assert (await runs.end_of(execution_id)).state == "success"


HELD = {
    "free": "SELECT",
    "paused by an operator": "UPDATE executor.lanes SET pause_reason = 'an operator'",
    "with an open breaker": "UPDATE executor.lanes SET breaker = 'OPEN', breaker_threshold = 1,"
    " open_until = now() + '1 h'",
    "over its rate": "UPDATE executor.lanes SET rate_per_s = 0.001, rate_at = now() + '1 h'",
    "switched off": "INSERT INTO executor.provider_switches VALUES ('github', 'an incident')",
    "inactive": "UPDATE executor.lanes SET owner = 'inactive', next_at = 'infinity'",
    "asleep": "UPDATE executor.lanes SET next_at = 'infinity'",
    "due much later": "UPDATE executor.work SET due_at = now() + '1 h'",
    "in order": "UPDATE executor.lanes SET ordering = 'lane'",
}


@pytest.mark.parametrize("held", HELD)
async def test_what_waits_for_a_connector_that_is_gone_ends_and_its_lane_goes(
    held: str, runs: ExecutionBench, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    connector = await _project(runs, steps=[step(continue_on_error=True)])
    if held == "in order":
        await admin.execute(HELD[held])
    ids = [await runs.start(connector) for _ in range(3)]
    if held != "in order":
        await admin.execute(HELD[held])
    await _project(runs, there=False)
    (said,) = [r.getMessage() for r in caplog.records if "is gone" in r.getMessage()]
    lane = f"lane {connector.object_id}"
    assert said == f"the owner of {lane} is gone: 3 pieces of work that wait for it end"
    async with runs.working():
        for each in ids:
            found = await runs.end_of(each)
            assert (found.state, found.failure_reason) == ("failed", "CONNECTOR_GONE")
        listed = await runs.executions.list(Query(runs.tenant_id, connector="c", state="failed"))
        assert {each.failure_reason for each in listed.executions} == {"CONNECTOR_GONE"}
        # The lane is looked at once more when the lease of what ran last would have ended.
        await pass_time(admin, 31)
        async with asyncio.timeout(10):
            while await _lane(admin, "lane_id") is not None:
                await asyncio.sleep(0.05)
    assert runs.box.calls == []


async def test_a_lane_without_work_goes_with_its_connector(
    runs: ExecutionBench, admin: Admin
) -> None:
    await _project(runs)
    async with runs.working():
        await _project(runs, there=False)
        async with asyncio.timeout(10):
            while await _lane(admin, "lane_id") is not None:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("waited_for", [False, True])
async def test_work_that_comes_as_its_lane_goes_is_refused_and_not_lost(
    waited_for: bool, bench: LaneBench, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane goes between the statement that finds it there and the one that inserts."""
    await bench.enqueue(bench.item())
    await admin.execute("DELETE FROM executor.work")
    await admin.execute("UPDATE executor.lanes SET owner = 'gone'")
    async with bench.database.across() as settling:
        await turns.settle_lanes(settling, {bench.tenant_id: [bench.lane_id]})
    assert await _lane(admin, "lane_id") is None
    # It was still there when this looked.
    monkeypatch.setattr(store, "ENSURE_LANE", store.KEEP_TENANT_LANE)
    enqueue = bench.take_at_once if waited_for else bench.enqueue
    with pytest.raises(Aborted):
        await enqueue(bench.item())
    for table in ("lanes", "work"):
        assert (await admin.execute(f"SELECT FROM executor.{table}")).rowcount == 0


async def test_nothing_on_a_switched_off_provider_begins_or_goes_on(
    runs: ExecutionBench, admin: Admin
) -> None:
    connector = await _project(runs)
    before = await runs.start(connector)
    claimed = await runs.claim()
    waiting = await runs.start(connector)
    async with runs.database.system() as tx:
        await tx.run(store.SWITCH_OFF, provider="github", reason="an incident")
    worker = Worker(runs.database, {KIND: runs.running}, runs.recorder, WorkerLimits(away_s=0.1))
    async with runs.working():
        # Its step, whose run was claimed before, waits instead of failing.
        await worker.start(claimed)
        await asyncio.sleep(0.5)
        for each in (before, waiting):
            assert not (await runs.executions.get(runs.tenant_id, each)).ended
        assert runs.box.calls == []
        async with runs.database.system() as tx:
            await tx.run(store.SWITCH_ON, provider="github")
        await pass_time(admin, 60)
        for each in (before, waiting):
            assert (await runs.end_of(each)).state == "success"


async def test_a_switched_off_provider_costs_a_look_in_ten_seconds(
    bench: LaneBench, admin: Admin
) -> None:
    await bench.enqueue(bench.item(provider="github"))
    async with bench.database.system() as tx:
        await tx.run(store.SWITCH_OFF, provider="github", reason="an incident")
    assert await bench.take() == []
    look = await turns.claim_tenants(bench.database, 1)
    assert look.turns == () and look.next_s is not None and 9 < look.next_s <= 10
    async with bench.database.system() as tx:
        await tx.run(store.SWITCH_ON, provider="github")
    await pass_time(admin, 10)
    assert len(await bench.take()) == 1


async def test_a_lane_follows_its_connector(runs: ExecutionBench, admin: Admin) -> None:
    shape = ("provider", "concurrency", "ordering", "rate_per_s", "owner")
    await _project(runs)
    assert await _lane(admin, *shape) == ("github", 16, "none", None, "active")
    await _project(runs, lane={"concurrency": 2, "rate_per_minute": 30, "ordering": "lane"})
    assert await _lane(admin, *shape) == ("github", 2, "lane", 0.5, "active")


async def test_a_wider_lane_takes_up_what_waited(runs: ExecutionBench) -> None:
    connector = await _project(runs, lane={**LANE, "concurrency": 1})
    for _ in range(2):
        await runs.start(connector)
    worker = LaneBench(runs.database)
    assert len(await worker.take()) == 1
    assert (await turns.claim_tenants(runs.database, 1)).turns == ()
    await _project(runs, lane={**LANE, "concurrency": 2})
    assert len(await worker.take()) == 1


async def test_a_large_tenant_is_projected_quickly_and_only_what_changed_is_written(
    runs: ExecutionBench, admin: Admin
) -> None:
    spec = {"is_active": True, "steps": [step()], "lane": LANE}
    many = [ProjectedObject("Connector", uuid4(), f"c{n}", 0, spec) for n in range(1000)]
    clock = asyncio.get_running_loop().time
    began = clock()
    await _project(runs, *many)
    assert clock() - began < 5
    before = await _versions(admin)
    assert len(before) == 1001
    began = clock()
    changed = replace(many[7], spec={**spec, "lane": {**LANE, "concurrency": 3}})
    await _project(runs, *many[:7], changed, *many[8:])
    assert clock() - began < 2
    after = await _versions(admin)
    assert {lane for lane in after if after[lane] != before[lane]} == {changed.object_id}


async def test_projections_under_load_strand_nothing_and_wait_for_nobody(
    bench: LaneBench, admin: Admin
) -> None:
    """Connectors change, fall asleep and wake while work comes and goes in all of their lanes."""
    ids = [uuid4() for _ in range(6)]
    rng = Random(7)

    def wanted(*, last: bool) -> list[ProjectedObject]:
        steps = {"steps": [{"integration": "x"}]}
        return [
            ProjectedObject("Connector", lane_id, str(n), 0, {
                **steps,
                "is_active": last or rng.random() < 0.7,
                # Two of them go in order all the time.
                "lane": {"concurrency": rng.randint(1, 9), "rate_per_minute": 0,
                         "ordering": "lane" if n < 2 else "none"},
            })
            for n, lane_id in enumerate(ids)
        ]  # fmt: skip

    async def project(*, last: bool = False) -> None:
        async with bench.database.tenant(bench.tenant_id) as tx:
            await govern(tx, bench.tenant_id, NO_LIMITS, wanted(last=last))

    async def enqueue() -> None:
        for _ in range(100):
            some = rng.sample(ids, 3)
            await bench.enqueue(*(bench.item(lane_id) for lane_id in some))

    await project()
    kind = Watched()
    limits = WorkerLimits(poll_s=0.2)
    async with working(bench.database, kind, limits), working(bench.database, kind, limits):
        enqueuing = asyncio.gather(enqueue(), enqueue())
        while not enqueuing.done():
            await project()
        await enqueuing
        await project(last=True)
        await kind.until(600)
    assert set(kind.ran.values()) == {1}
    assert kind.most[ids[0]] == kind.most[ids[1]] == 1
    assert (await admin.execute("SELECT FROM executor.work")).rowcount == 0
    deadlocks = await admin.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert await deadlocks.fetchone() == (0,)


async def _versions(admin: Admin) -> dict[UUID, str]:
    rows = await admin.execute("SELECT lane_id, xmin::text FROM executor.lanes")
    return dict(await rows.fetchall())


YAML = """
apiVersion: tenon/v1
kind: Tenant
metadata: {name: acme}
spec:
  display_name: Acme
  limits:
    weight: 7
    max_running: 20
    max_running_per_provider: {http: 4}
    work_per_hour: 1000
---
apiVersion: tenon/v1
kind: Integration
metadata: {name: web, tenant: acme}
spec: {provider: http, base_url: "https://example.com"}
---
apiVersion: tenon/v1
kind: Connector
metadata: {name: ping, tenant: acme}
spec:
  lane: {concurrency: 2, rate_per_minute: 90, ordering: lane}
  steps: [{name: ping, integration: web, method: GET, path: /}]
"""


async def test_limits_go_from_yaml_through_plan_and_apply_into_the_lanes(
    registry_service: RunningRegistry,
    registry: Registry,
    executor_database: Database,
    admin: Admin,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = tmp_path / "owner.key"
    key.write_text(registry_service.owner_key.reveal_text())
    key.chmod(0o600)
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    (wanted / "acme.yaml").write_text(YAML)

    async def tenon(command: str) -> int:
        to = ["--registry", registry_service.target, "--key-file", str(key)]
        return await asyncio.to_thread(_command, [command, str(wanted), *to])

    assert await tenon("plan") == 2
    shown = capsys.readouterr().out
    assert "limits.weight" in shown and "limits.max_running_per_provider.http" in shown
    assert await tenon("apply") == 0
    assert await tenon("plan") == 0
    await Projection(executor_database, registry).project(await registry_service.tenant_id("acme"))
    limits = await admin.execute(
        "SELECT paused, weight, max_running, provider_caps, work_per_hour FROM executor.tenant_lanes"
    )
    assert await limits.fetchall() == [(False, 7, 20, {"http": 4}, 1000)]
    shape = ("provider", "concurrency", "ordering", "rate_per_s")
    assert await _lane(admin, *shape) == ("http", 2, "lane", 1.5)

    (wanted / "acme.yaml").write_text(YAML.replace("limits:", "enabled: false\n  limits:"))
    assert await tenon("apply") == 0
    await Projection(executor_database, registry).project(await registry_service.tenant_id("acme"))
    paused = await admin.execute("SELECT paused FROM executor.tenant_lanes")
    assert await paused.fetchall() == [(True,)]


def _command(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    args = parser.parse_args([*words, "--reason", "a test"])
    return int(args.run(args))
