"""How the runs of a connector went: counted by state, over a day and a week, bounded."""

from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.errors import NotFound
from services.chassis.ids import uuid7
from services.executor.store import activity as store
from tests.integration.executor.execution_bench import ExecutionBench, step

Admin = psycopg.AsyncConnection[Any]
NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


async def ran(
    runs: ExecutionBench,
    admin: Admin,
    state: str,
    *,
    ago: timedelta = HOUR,
    took_s: float | None = None,
    connector: str = "c",
    tenant_id: UUID | None = None,
) -> UUID:
    """A run as it stands in the table, some time ago."""
    began = NOW - ago
    execution_id = uuid7(int(began.timestamp() * 1000))
    ended = None if took_s is None else began + timedelta(seconds=took_s)
    await admin.execute(
        "INSERT INTO executor.executions (tenant_id, id, connector_id, connector, state, trigger_kind, trigger_id, event_type, subscription, data_key_id, links, failure_reason, failure_message, started_at, ended_at)"
        " VALUES (%s, %s, %s, %s, %s, 'rpc', %s, '', '', %s, '{}', '', '', %s, %s)",
        [
            tenant_id or runs.tenant_id, execution_id, uuid4(), connector, state, uuid4(), uuid4(),
            began, ended,
        ],
    )  # fmt: skip
    return execution_id


async def test_runs_are_counted_by_state_and_time(
    runs: ExecutionBench, admin: Admin, tenant_ids: tuple[UUID, UUID]
) -> None:
    await runs.want(step())
    for took_s in (1, 2, 3):
        await ran(runs, admin, "success", took_s=took_s)
    await ran(runs, admin, "failed", took_s=10)
    await ran(runs, admin, "cancelled", took_s=500)
    await ran(runs, admin, "timeout", ago=30 * HOUR, took_s=100)
    await ran(runs, admin, "success", ago=timedelta(days=8), took_s=1000)
    await ran(runs, admin, "failed", took_s=1000, connector="other")
    await ran(runs, admin, "failed", took_s=1000, tenant_id=tenant_ids[1])
    last = await ran(runs, admin, "running", ago=timedelta(minutes=1))
    found = await runs.activities.of(runs.tenant_id, "c")
    day, week = found.last_day, found.last_week
    assert day.states == {"success": 3, "failed": 1, "cancelled": 1, "running": 1}
    assert week.states == {**day.states, "timeout": 1}
    assert (day.total, week.total) == (6, 7)
    assert day.success_share == pytest.approx(3 / 4)
    assert week.success_share == pytest.approx(3 / 5)
    assert (day.median_s, week.median_s) == (2.5, 3)
    assert day.p95_s == pytest.approx(8.95) and not day.truncated
    assert found.last is not None and (found.last.id, found.last.state) == (last, "running")


async def test_one_that_never_ran_says_so(runs: ExecutionBench) -> None:
    await runs.want(step(), active=False)
    found = await runs.activities.of(runs.tenant_id, "c")
    assert not found.is_active and found.last is None
    assert (found.last_day.total, found.last_day.success_share, found.last_day.p95_s) == (
        0, None, None,
    )  # fmt: skip


async def test_only_the_newest_are_counted(
    runs: ExecutionBench, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST", 2)
    await runs.want(step())
    for state, hours in (("failed", 3), ("success", 2), ("success", 1)):
        await ran(runs, admin, state, ago=hours * HOUR, took_s=1)
    day = (await runs.activities.of(runs.tenant_id, "c")).last_day
    assert (day.states, day.truncated) == ({"success": 2}, True)


async def test_another_tenants_connector_is_not_there(
    runs: ExecutionBench, tenant_ids: tuple[UUID, UUID]
) -> None:
    await runs.want(step())
    with pytest.raises(NotFound):
        await runs.activities.of(tenant_ids[1], "c")


async def test_counting_goes_by_the_index(runs: ExecutionBench, admin: Admin) -> None:
    await admin.execute(
        "INSERT INTO executor.executions (tenant_id, id, connector_id, connector, state, trigger_kind, trigger_id, event_type, subscription, data_key_id, links, failure_reason, failure_message)"
        " SELECT %s, uuidv7(), gen_random_uuid(), 'c' || n %% 500, 'success', 'rpc', gen_random_uuid(), '', '', gen_random_uuid(), '{}', '', '' FROM generate_series(1, 20000) n",
        [runs.tenant_id],
    )
    await admin.execute("ANALYZE executor.executions")
    values = {"tenant_id": runs.tenant_id, "connector": "c7", "since": UUID(int=0), "most": 100}
    explained = copy(store.COUNTS)
    explained.sql = f"EXPLAIN {store.COUNTS.sql}"
    async with runs.database.tenant(runs.tenant_id) as tx:
        told = "\n".join(row[0] for row in await tx.all(explained, **values))
    assert "tenant_id_connector_id_idx on executions_" in told, told
