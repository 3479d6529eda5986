"""What a round of retention forgets, that it comes again, and that both services do it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.database import Database
from services.chassis.envelope import new_key
from services.chassis.partitions import Changed, Closing, TimeTables, just_go
from services.chassis.retention import Retention, Round
from services.chassis.secret import Secret
from services.executor.store import retention
from tests.conftest import Conninfos

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC)
DAYS_90 = timedelta(days=90)
FORGET = partial(retention.forget, unused=DAYS_90)
TENANTS = (UUID(int=0xA), UUID(int=0xB))
NOTHING = dict.fromkeys(("event_receipts", "run_requests", "replays", "consumer_groups"), 0)
RECEIPT = """
    INSERT INTO executor.event_receipts (tenant_id, endpoint_id, key, event_id, received_at)
    VALUES (%s, %s, %s, %s, %s)"""
REQUEST = """
    INSERT INTO executor.run_requests
        (tenant_id, principal_id, request_id, request_hash, execution_id, created_at)
    VALUES (%s, %s, %s, '', %s, %s)"""

GROUP = """
    INSERT INTO executor.consumer_groups (tenant_id, name, xid, event_id, used_at)
    VALUES (%s, %s, '0', gen_random_uuid(), %s)"""
REPLAY = """
    INSERT INTO executor.replays (
        tenant_id, replay_id, request_hash, after_id, until_id, updated_at)
    VALUES (%s, %s, '', gen_random_uuid(), gen_random_uuid(), %s)"""


@pytest.fixture
async def admin(superuser: Secret) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(
        superuser.reveal_text(), autocommit=True
    ) as connection:
        yield connection


async def fill(admin: psycopg.AsyncConnection[Any], ages: Mapping[str, timedelta]) -> None:
    """In each tenant a receipt and a request of every age."""
    for tenant_id in TENANTS:
        for name, age in ages.items():
            await admin.execute(RECEIPT, [tenant_id, uuid4(), name, uuid4(), NOW - age])
            await admin.execute(REQUEST, [tenant_id, uuid4(), uuid4(), uuid4(), NOW - age])


async def left(admin: psycopg.AsyncConnection[Any], table: str, at: str) -> list[timedelta]:
    """The ages of what is left in both tenants."""
    cursor = await admin.execute(f"SELECT %s - {at} FROM executor.{table} ORDER BY 1", [NOW])
    return [age for (age,) in await cursor.fetchall()]


async def test_receipts_go_after_seven_days_and_requests_after_one(
    admin: psycopg.AsyncConnection[Any],
    executor_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # More than one batch, and a last one that is full.
    monkeypatch.setattr(retention, "BATCH", 2)
    hours = [timedelta(hours=h) for h in (1, 23, 25, 24 * 7 - 1, 24 * 7 + 1, 24 * 400)]
    await fill(admin, {str(age): age for age in hours})
    keeper = Retention(executor_database, retention.TIME_TABLES, DAYS_90, FORGET, lambda: NOW)
    assert (await keeper.keep()).forgotten == {
        **NOTHING,
        "event_receipts": 4,
        "run_requests": 8,
    }
    assert await left(admin, "event_receipts", "received_at") == sorted(hours[:4] * 2)
    assert await left(admin, "run_requests", "created_at") == sorted(hours[:2] * 2)
    assert await keeper.keep() == Round(Changed(), NOTHING)


async def test_a_clock_that_is_ahead_forgets_nothing_young(
    admin: psycopg.AsyncConnection[Any], executor_database: Database
) -> None:
    await fill(admin, {"young": timedelta(hours=23), "old": timedelta(days=8)})
    assert await FORGET(executor_database, NOW + timedelta(days=365)) == {
        **NOTHING,
        "event_receipts": 2,
        "run_requests": 2,
    }


async def test_a_group_goes_once_nobody_has_used_it_for_as_long_as_events_are_kept(
    admin: psycopg.AsyncConnection[Any], executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> None:
    ages = [timedelta(days=each) for each in (6, 8, 29, 31)]
    for age in ages:
        await admin.execute(GROUP, [tenant_ids[0], str(age), NOW - age])
        await admin.execute(REPLAY, [tenant_ids[0], uuid4(), NOW - age])
    days_30 = timedelta(days=30)
    gone = await retention.forget(executor_database, NOW, unused=days_30)
    assert (gone["consumer_groups"], gone["replays"]) == (1, 3)
    assert await left(admin, "consumer_groups", "used_at") == ages[:3]
    # However soon events are forgotten, a consumer may be away for a week.
    gone = await retention.forget(executor_database, NOW, unused=timedelta(days=1))
    assert gone == {**NOTHING, "consumer_groups": 2}


async def test_a_row_goes_by_the_clock_of_the_round(
    admin: psycopg.AsyncConnection[Any], executor_database: Database
) -> None:
    days = timedelta(days=3)
    hours = [days + timedelta(hours=h) for h in (23, 25, 24 * 7 - 1, 24 * 7 + 1)]
    await fill(admin, {str(age): age for age in hours})
    assert await FORGET(executor_database, NOW - days) == {
        **NOTHING,
        "event_receipts": 2,
        "run_requests": 6,
    }


async def test_the_system_login_sees_no_young_row_and_writes_none(
    admin: psycopg.AsyncConnection[Any], executor_conninfos: Conninfos
) -> None:
    await fill(admin, {"young": timedelta(hours=23)})
    async with await psycopg.AsyncConnection.connect(
        executor_conninfos[1].reveal_text(), autocommit=True
    ) as system:
        for table in ("event_receipts", "run_requests"):
            assert (await system.execute(f"SELECT FROM executor.{table}")).rowcount == 0
            assert (await system.execute(f"DELETE FROM executor.{table}")).rowcount == 0
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await system.execute(f"UPDATE executor.{table} SET tenant_id = tenant_id")


async def test_a_forgotten_batch_is_found_by_its_index(
    admin: psycopg.AsyncConnection[Any], executor_conninfos: Conninfos
) -> None:
    await admin.execute(
        "INSERT INTO executor.event_receipts SELECT gen_random_uuid(), gen_random_uuid(), n::text,"
        " gen_random_uuid(), now() - n * interval '2 minutes' FROM generate_series(1, 20000) n"
    )
    await admin.execute("ANALYZE executor.event_receipts")
    _, cutoff, statement = retention.FORGETS["event_receipts"]
    async with await psycopg.AsyncConnection.connect(
        executor_conninfos[1].reveal_text(), autocommit=True, cursor_factory=psycopg.AsyncRawCursor
    ) as system:
        reached = await _one(
            system, cutoff.sql, cutoff.bind({"before": NOW - timedelta(days=7), "batch": 100})
        )
        plan = await _one(
            system, "EXPLAIN (FORMAT JSON) " + statement.sql, statement.bind({"cutoff": reached})
        )
    assert "Seq Scan" not in json.dumps(plan)


async def _one(
    connection: psycopg.AsyncConnection[Any], query: str, parameters: Mapping[str, Any] | list[Any]
) -> Any:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return row[0]


class Away(TimeTables):
    """Tables on which the first rounds find a lock."""

    def __init__(self, locked: int) -> None:
        super().__init__("executor", ())
        self.locked, self.rounds = locked, 0

    async def keep(
        self, database: Database, now: datetime, retention: timedelta, closing: Closing = just_go
    ) -> Changed:
        self.rounds += 1
        return Changed(postponed=("events_2020_02",) if self.rounds <= self.locked else ())


@pytest.mark.parametrize(
    ("pause", "locked", "rounds"),
    [
        # What was put off is tried again soon, until there is nothing more to do for an hour.
        ("AGAIN_S", 2, 3),
        # And after an hour, again.
        ("EVERY_S", 0, 10),
    ],
)
async def test_rounds_come_every_hour_and_sooner_after_a_lock(
    executor_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    pause: str,
    locked: int,
    rounds: int,
) -> None:
    monkeypatch.setattr(f"services.chassis.retention.{pause}", 0)
    tables = Away(locked)
    task = asyncio.create_task(Retention(executor_database, tables, DAYS_90).follow())
    async with asyncio.timeout(5):
        while tables.rounds < rounds:
            await asyncio.sleep(0)
    if pause == "AGAIN_S":
        for _ in range(100):
            await asyncio.sleep(0)
        assert tables.rounds == rounds
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("service", "table"), [("registry", "audit_events"), ("executor", "events")]
)
async def test_a_service_makes_its_months_when_it_starts(
    admin: psycopg.AsyncConnection[Any],
    executor_conninfos: Conninfos,
    registry_conninfos: Conninfos,
    tmp_path: Path,
    service: str,
    table: str,
) -> None:
    logins = {"registry": registry_conninfos, "executor": executor_conninfos}[service]
    newest = "SELECT max(relname) FROM pg_class WHERE relkind = 'r' AND relname ~ %s"
    next_month = f"{service}.{await _one(admin, newest, [f'^{table}_20'])}"
    await admin.execute(f"DROP TABLE {next_month}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{service}.main",
        cwd=ROOT, env=_environment(service, logins, tmp_path),
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            while await _one(admin, "SELECT to_regclass(%s)", [next_month]) is None:
                assert process.returncode is None
                await asyncio.sleep(0.05)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _environment(service: str, logins: Conninfos, directory: Path) -> dict[str, str]:
    tenant, system = (login.reveal_text() for login in logins)
    key = new_key().reveal().hex()
    secrets = {"DATABASE_URL": tenant, "SYSTEM_DATABASE_URL": system, "SERVICE_KEY": "none"}
    secrets |= dict.fromkeys(("KEY_ENCRYPTION_KEY", "FINGERPRINT_KEY", "PEPPER"), key)
    told = {
        "LISTEN": "127.0.0.1:0",
        "INGRESS_PORT": "0",
        "METRICS_PORT": "0",
        "REGISTRY": "127.0.0.1:1",
    }
    for name, secret in secrets.items():
        (directory / name).write_text(secret)
        told[f"{name}_FILE"] = str(directory / name)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TENON_")}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    prefix = f"TENON_{service.upper()}"
    return plain | {f"{prefix}_{k}": v for k, v in told.items()} | {"PYTHONPATH": paths}
