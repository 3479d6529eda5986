"""Months made and dropped by the owner's functions, and the round that asks for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import bindparam, insert

from services.chassis import errors
from services.chassis.database import Database, Statement
from services.chassis.ids import uuid7, uuid7_floor
from services.chassis.partitions import Changed
from services.chassis.secret import Secret
from services.executor.store.retention import TIME_TABLES
from services.executor.tables import EVENTS
from services.registry.store import retention as of_registry

Conninfos = tuple[Secret, Secret]
EXECUTORS = (
    *("events", "executions", "execution_links", "execution_steps"),
    *("deliveries", "delivery_attempts", "sync_runs"),
)
DAYS_90 = timedelta(days=90)
ACME = UUID(int=0xACE)
MAKE, DETACH, DROP = "make_partition", "detach_partition", "drop_partition"
OLD = date(2020, 2, 1)
KEEP = Statement(
    insert(EVENTS).values(
        tenant_id=ACME,
        id=bindparam("id"),
        endpoint_id=ACME,
        type="push",
        delivery_key="",
        headers={},
        body=b"canary",
    )
)


@pytest.fixture
def admin(superuser: Secret) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(superuser.reveal_text(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def system(executor_conninfos: Conninfos) -> Iterator[psycopg.Connection[Any]]:
    """The executor's system login, which may ask the owner."""
    with psycopg.connect(executor_conninfos[1].reveal_text(), autocommit=True) as connection:
        yield connection


@pytest.fixture
async def second_database(executor_conninfos: Conninfos) -> AsyncIterator[Database]:
    """The pools of another process that leads at the same time."""
    async with Database(*executor_conninfos) as database:
        yield database


def ask(login: psycopg.Connection[Any], function: str, table: str, month: date | str) -> bool:
    query = sql.SQL("SELECT executor.{}(%s, %s::date)").format(sql.Identifier(function))
    found = login.execute(query, [table, str(month)]).fetchone()
    assert found is not None
    return bool(found[0])


def tables(admin: psycopg.Connection[Any], schema: str = "executor") -> set[str]:
    query = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace"
    return {name for (name,) in admin.execute(query, [schema])}


def months(admin: psycopg.Connection[Any], year: str, schema: str = "executor") -> set[str]:
    """The partitions of a year that are attached to their time tables."""
    query = (
        "SELECT c.relname FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid"
        " WHERE relnamespace = %s::regnamespace AND relkind = 'r' AND relname LIKE %s"
    )
    return {name for (name,) in admin.execute(query, [schema, f"%_{year}_%"])}


def shifted(by: int) -> date:
    """The month so far from this one."""
    now = datetime.now(UTC)
    years, month = divmod(now.month - 1 + by, 12)
    return date(now.year + years, month + 1, 1)


async def store_event(database: Database, moment: datetime) -> UUID:
    event_id = uuid7(int(moment.timestamp() * 1000))
    async with database.tenant(ACME) as tx:
        await tx.run(KEEP, id=event_id)
    return event_id


def stored(admin: psycopg.Connection[Any]) -> set[UUID]:
    return {found for (found,) in admin.execute("SELECT id FROM executor.events")}


# What the owner does and refuses.


def test_a_month_is_made_once_detached_once_and_dropped_once(
    admin: psycopg.Connection[Any], system: psycopg.Connection[Any]
) -> None:
    before = tables(admin)
    assert [ask(system, MAKE, "events", OLD) for _ in range(2)] == [True, False]
    bounds = admin.execute(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'events_2020_02'"
    ).fetchone()
    low, high = (
        uuid7_floor(datetime(2020, 2, 1, tzinfo=UTC)),
        uuid7_floor(datetime(2020, 3, 1, tzinfo=UTC)),
    )
    assert bounds == (f"FOR VALUES FROM ('{low}') TO ('{high}')",)
    with pytest.raises(psycopg.DataError, match="not detached"):
        ask(system, DROP, "events", OLD)
    assert [ask(system, DETACH, "events", OLD) for _ in range(2)] == [True, False]
    assert months(admin, "2020") == set()
    assert [ask(system, DROP, "events", OLD) for _ in range(2)] == [True, False]
    assert tables(admin) == before


@pytest.mark.parametrize(
    ("table", "month"),
    [
        ("work", "2020-02-01"),
        ("event_receipts", "2020-02-01"),
        ("event_receipts_0", "2020-02-01"),
        ("audit_events", "2020-02-01"),
        ("executor.events", "2020-02-01"),
        ("EVENTS", "2020-02-01"),
        ("", "2020-02-01"),
        ('events"; DROP TABLE executor.work; --', "2020-02-01"),
        ("events'); DROP TABLE executor.work; --", "2020-02-01"),
        ("events", "2020-02-02"),
        ("events", "1969-12-01"),
        ("events", "0044-03-01 BC"),
        ("events", "infinity"),
        ("events", "-infinity"),
        ("events", str(shifted(4))),
    ],
)
def test_other_tables_and_months_are_refused(
    admin: psycopg.Connection[Any], system: psycopg.Connection[Any], table: str, month: str
) -> None:
    before = tables(admin)
    for function in (MAKE, DETACH, DROP):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            ask(system, function, table, month)
    assert tables(admin) == before


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_what_is_young_is_kept_whoever_asks(
    admin: psycopg.Connection[Any], system: psycopg.Connection[Any], behind: int
) -> None:
    ask(system, MAKE, "events", shifted(-behind))
    before = months(admin, "20__")
    with pytest.raises(psycopg.DataError, match="too young"):
        ask(system, DETACH, "events", shifted(-behind))
    assert months(admin, "20__") == before
    ask(system, MAKE, "events", shifted(-3))
    assert ask(system, DETACH, "events", shifted(-3))


def test_only_the_services_system_login_may_ask(
    executor_conninfos: Conninfos, registry_conninfos: Conninfos
) -> None:
    calls = [
        f"SELECT {schema}.{function}('{table}', '2020-02-01')"
        for schema, table in (("executor", "events"), ("registry", "audit_events"))
        for function in (MAKE, DETACH, DROP, "partition_name")
    ]
    may = {
        (number, call)
        for number, login in enumerate((*executor_conninfos, *registry_conninfos))
        for call in calls
        if _may(login, call)
    }
    # Each system login the three of its own schema, and nothing else.
    assert may == {(1, call) for call in calls[:3]} | {(3, call) for call in calls[4:7]}


def _may(login: Secret, call: str) -> bool:
    with psycopg.connect(login.reveal_text(), autocommit=True) as connection:
        try:
            connection.execute(call)
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True


# What a round does.


async def test_months_are_made_ahead_of_the_clock(
    admin: psycopg.Connection[Any], executor_database: Database
) -> None:
    now = datetime(2024, 1, 31, 23, 59, 59, tzinfo=UTC)
    made = await TIME_TABLES.keep(executor_database, now, DAYS_90)
    names = {
        f"{table}_{month}" for table in EXECUTORS for month in ("2023_12", "2024_01", "2024_02")
    }
    assert set(made.made) == names == months(admin, "2023") | months(admin, "2024")
    assert await TIME_TABLES.keep(executor_database, now, DAYS_90) == Changed()
    made = await TIME_TABLES.keep(executor_database, now + timedelta(seconds=1), DAYS_90)
    assert made.made == tuple(f"{table}_2024_03" for table in EXECUTORS)
    await store_event(executor_database, datetime(2024, 3, 31, 23, 59, 59, 999_000, tzinfo=UTC))


async def test_old_months_are_dropped_and_nothing_else(
    admin: psycopg.Connection[Any], executor_database: Database
) -> None:
    before = tables(admin)
    ids = []
    for month in range(1, 8):
        now = datetime(2024, month, 10, tzinfo=UTC)
        dropped = (await TIME_TABLES.keep(executor_database, now, DAYS_90)).dropped
        # Until the end of a month is 90 days past, it stays.
        assert dropped == tuple(
            f"{table}_2023_12" if month == 4 else f"{table}_2024_{month - 4:02}"
            for table in sorted(EXECUTORS)
            if month > 3
        )
        ids.append(await store_event(executor_database, now))
    assert stored(admin) == set(ids[3:])
    assert {name for name in months(admin, "2024") if name.startswith("events")} == {
        f"events_2024_{month:02}" for month in (4, 5, 6, 7, 8)
    }
    assert before <= tables(admin)


async def test_the_audit_log_goes_by_months_too(
    admin: psycopg.Connection[Any], registry_database: Database
) -> None:
    for month in (1, 6):
        now = datetime(2024, month, 10, tzinfo=UTC)
        done = await of_registry.TIME_TABLES.keep(registry_database, now, DAYS_90)
    tables = ("api_key_usage", "audit_events", "platform_audit_events")
    gone = ("2023_12", "2024_01", "2024_02")
    assert done.dropped == tuple(f"{table}_{month}" for table in tables for month in gone)
    assert months(admin, "2024", "registry") == {
        f"{table}_2024_{m}" for table in tables for m in ("05", "06", "07")
    }


async def test_a_month_that_was_only_detached_is_dropped_by_the_next_round(
    admin: psycopg.Connection[Any],
    system: psycopg.Connection[Any],
    executor_database: Database,
) -> None:
    ask(system, MAKE, "events", OLD)
    ask(system, DETACH, "events", OLD)
    done = await TIME_TABLES.keep(executor_database, datetime.now(UTC), DAYS_90)
    assert done == Changed(dropped=("events_2020_02",))
    assert "events_2020_02" not in tables(admin)


async def test_a_clock_that_is_far_ahead_neither_makes_nor_drops(
    admin: psycopg.Connection[Any], executor_database: Database
) -> None:
    before = tables(admin)
    now = datetime.now(UTC) + timedelta(days=365)
    done = await TIME_TABLES.keep(executor_database, now, DAYS_90)
    assert (done.made, done.dropped) == ((), ())
    assert len(done.postponed) == 2 * 3 * len(EXECUTORS)
    assert tables(admin) == before


async def test_a_row_whose_month_is_missing_is_refused_in_words(
    executor_database: Database,
) -> None:
    with pytest.raises(errors.Internal) as caught:
        await store_event(executor_database, datetime(2001, 1, 1, tzinfo=UTC))
    assert caught.value.message == "executor.events has no partition for the month of an id"


# Beside those who work.


async def test_two_who_lead_at_once_do_each_thing_once(
    admin: psycopg.Connection[Any],
    executor_database: Database,
    second_database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = (executor_database, second_database)
    done = []
    for month in range(1, 7):
        now = datetime(2024, month, 10, tzinfo=UTC)
        done += await asyncio.gather(*(TIME_TABLES.keep(one, now, DAYS_90) for one in both))
    # On a slow machine one may have waited too long for the other, and nothing worse.
    left = [r.message for r in caplog.records if "left for later" in r.message]
    assert all("somebody holds" in message for message in left)
    done.append(await TIME_TABLES.keep(executor_database, now, DAYS_90))
    made = [name for each in done for name in each.made]
    dropped = [name for each in done for name in each.dropped]
    assert len(made) == len(set(made)) == len(EXECUTORS) * 8
    assert len(dropped) == len(set(dropped)) == len(EXECUTORS) * 3
    assert len(months(admin, "2024")) == len(EXECUTORS) * 5


async def test_inserts_go_on_while_months_come_and_go(
    admin: psycopg.Connection[Any], executor_database: Database
) -> None:
    stop, slowest, count = asyncio.Event(), 0.0, 0

    async def insert() -> None:
        nonlocal slowest, count
        while not stop.is_set():
            began = time.perf_counter()
            await store_event(executor_database, datetime.now(UTC))
            slowest, count = max(slowest, time.perf_counter() - began), count + 1

    inserting = [asyncio.create_task(insert()) for _ in range(3)]
    changed: list[str] = []
    for month in range(36):
        now = datetime(2021 + month // 12, month % 12 + 1, 10, tzinfo=UTC)
        done = await TIME_TABLES.keep(executor_database, now, DAYS_90)
        changed += [*done.made, *done.dropped]
    stop.set()
    await asyncio.gather(*inserting)
    assert len(changed) > 150
    assert count == len(stored(admin)) > 50
    assert slowest < 4


async def test_a_reader_puts_a_drop_off_and_inserts_wait_for_a_moment_only(
    admin: psycopg.Connection[Any],
    system: psycopg.Connection[Any],
    executor_database: Database,
    superuser: Secret,
) -> None:
    ask(system, MAKE, "events", OLD)
    now = datetime.now(UTC)
    with psycopg.connect(superuser.reveal_text()) as reader:
        reader.execute("SELECT count(*) FROM executor.events")
        # Nobody who makes a month waits for a reader.
        assert ask(system, MAKE, "events", date(2020, 3, 1))
        keeping = asyncio.create_task(TIME_TABLES.keep(executor_database, now, DAYS_90))
        await _until_somebody_waits(admin)
        await asyncio.wait_for(store_event(executor_database, now), 2)
        assert (await keeping).postponed == ("events_2020_02", "events_2020_03")
    done = await TIME_TABLES.keep(executor_database, now, DAYS_90)
    assert done == Changed(dropped=("events_2020_02", "events_2020_03"))


async def _until_somebody_waits(admin: psycopg.Connection[Any]) -> None:
    query = "SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    async with asyncio.timeout(10):
        while not admin.execute(query).rowcount:
            await asyncio.sleep(0)
