"""The one place that opens transactions: tenants, errors, batches, on real PostgreSQL."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, Uuid, bindparam, insert, select, text

from services.chassis import errors, leader
from services.chassis.database import BEGIN, Bound, Database, Statement
from services.chassis.database_errors import Constraints, Deadlocked, translate
from services.chassis.secret import Secret

WHO = Statement(text("SELECT current_setting('app.current_tenant_id', true) AS tenant"))
NOTIFY = Statement(text("SELECT pg_notify(:channel, :payload)"))
SLEEP = Statement(text("SELECT pg_sleep(:seconds)"))
BROKEN = Statement(text("SELECT 1 / :divisor"))
A, B = UUID(int=0xA), UUID(int=0xB)

notes = Table(
    "notes",
    MetaData(schema="scratch"),
    Column("tenant_id", Uuid),
    Column("number", Integer),
    Column("word", Text),
)
ADD = Statement(insert(notes).values({c.name: bindparam(c.name, type_=c.type) for c in notes.c}))
ALL = Statement(select(notes).order_by(notes.c.number))
CANARY = "very-secret-canary"


@pytest.fixture
def scratch(superuser: Secret, registry_conninfos: tuple[Secret, Secret]) -> None:
    """A table kept to its tenant, as migrations keep theirs."""
    login = psycopg.conninfo.conninfo_to_dict(registry_conninfos[0].reveal_text())["user"]
    with psycopg.connect(superuser.reveal_text(), autocommit=True) as admin:
        admin.execute(
            f"""
            CREATE SCHEMA scratch;
            CREATE TABLE scratch.notes (
                tenant_id uuid NOT NULL,
                number integer CONSTRAINT notes_number_key UNIQUE DEFERRABLE INITIALLY DEFERRED,
                word text CONSTRAINT notes_word_check CHECK (word <> 'bad')
            );
            ALTER TABLE scratch.notes ENABLE ROW LEVEL SECURITY;
            ALTER TABLE scratch.notes FORCE ROW LEVEL SECURITY;
            CREATE POLICY p ON scratch.notes TO {login} USING (tenant_id =
                (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));
            GRANT USAGE ON SCHEMA scratch TO {login};
            GRANT SELECT, INSERT, UPDATE, DELETE ON scratch.notes TO {login};
            """
        )


@pytest.fixture
async def database(
    registry_conninfos: tuple[Secret, Secret], scratch: None
) -> AsyncIterator[Database]:
    """One connection a login, so that whatever leaks meets the next user."""
    constraints: Constraints = {"notes_number_key": lambda _: errors.AlreadyExists("taken")}
    async with Database(*registry_conninfos, pool_size=1, constraints=constraints) as opened:
        yield opened


async def nobody_is_set(database: Database) -> None:
    """The next user of the connection is in no tenant, and the connection is good."""
    async with database._open(database._tenant, BEGIN, None) as transaction:
        assert (await transaction.one(WHO)).tenant in {None, ""}
    assert (await database.read(B, WHO))[0].tenant == str(B)


async def ends_well(database: Database) -> None:
    async with database.tenant(A) as transaction:
        assert (await transaction.one(WHO)).tenant == str(A)


async def throws(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.tenant(A):
            raise ZeroDivisionError


async def breaks_a_statement(database: Database) -> None:
    with pytest.raises(errors.InvalidArgument):
        async with database.tenant(A) as transaction:
            await transaction.one(BROKEN, divisor=0)


async def breaks_a_pipeline(database: Database) -> None:
    with pytest.raises(errors.InvalidArgument):
        async with database.tenant(A) as transaction:
            await transaction.pipeline([Bound(WHO), Bound(BROKEN, {"divisor": 0}), Bound(WHO)])


async def breaks_a_read(database: Database) -> None:
    with pytest.raises(errors.InvalidArgument):
        await database.read(A, BROKEN, divisor=0)


async def breaks_a_snapshot(database: Database) -> None:
    with pytest.raises(errors.Internal):
        async with database.snapshot(A) as transaction:
            await transaction.run(ADD, tenant_id=A, number=1, word="")


async def is_cancelled(database: Database) -> None:
    async def work() -> None:
        async with database.tenant(A) as transaction:
            await transaction.one(SLEEP, seconds=30)

    for after in (0.0, 0.001, 0.003, 0.01, 0.05):
        # A cancellation that overtakes its query ends at the transaction's limit only.
        with suppress(TimeoutError, errors.DeadlineExceeded, errors.Unavailable):
            await asyncio.wait_for(work(), after)


async def is_cancelled_reading(database: Database) -> None:
    for after in (0.0, 0.001, 0.003, 0.01, 0.05):
        # A cancellation that overtakes its query ends at the transaction's limit only.
        with suppress(TimeoutError, errors.DeadlineExceeded, errors.Unavailable):
            await asyncio.wait_for(database.read(A, SLEEP, seconds=30), after)


async def loses_its_connection(database: Database) -> None:
    with pytest.raises(errors.Unavailable):
        async with database.tenant(A) as transaction:
            await transaction._connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize(
    "use",
    [
        ends_well,
        throws,
        breaks_a_statement,
        breaks_a_pipeline,
        breaks_a_read,
        breaks_a_snapshot,
        is_cancelled,
        is_cancelled_reading,
        loses_its_connection,
    ],
)
async def test_a_tenant_is_set_for_one_transaction_only(
    database: Database, use: Callable[[Database], Any]
) -> None:
    await use(database)
    await nobody_is_set(database)


async def test_many_tenants_at_once_see_only_themselves(database: Database) -> None:
    async def see(tenant_id: UUID) -> None:
        for _ in range(10):
            assert (await database.read(tenant_id, WHO))[0].tenant == str(tenant_id)
            async with database.tenant(tenant_id) as transaction:
                assert (await transaction.one(WHO)).tenant == str(tenant_id)

    await asyncio.gather(*(see(uuid4()) for _ in range(8)))


async def write(database: Database, tenant_id: UUID, *notes: Bound) -> None:
    async with database.tenant(tenant_id) as transaction:
        for each in notes:
            await transaction.run(each.statement, **each.parameters)


def note(tenant_id: UUID, number: int, word: str = "good") -> Bound:
    return Bound(ADD, {"tenant_id": tenant_id, "number": number, "word": word})


async def test_what_was_written_before_an_error_is_not_there(database: Database) -> None:
    with pytest.raises(errors.Internal):
        await write(database, A, note(A, 1), note(A, 2, "bad"))
    assert await database.read(A, ALL) == []


async def pass_over_an_error(database: Database) -> None:
    async with database.tenant(A) as transaction:
        await transaction.run(ADD, tenant_id=A, number=1, word="good")
        with suppress(psycopg.Error):
            await transaction.run(BROKEN, divisor=0)


async def test_an_error_that_was_passed_over_is_no_commit(database: Database) -> None:
    with pytest.raises(errors.Internal, match="nothing was committed"):
        await pass_over_an_error(database)
    assert await database.read(A, ALL) == []


async def test_a_broken_constraint_speaks_by_its_name_and_never_by_values(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await write(database, A, note(A, 1, CANARY))
    with pytest.raises(errors.AlreadyExists, match=r"^taken$"):
        # Deferred: it breaks at the commit.
        await write(database, A, note(A, 1, CANARY))
    with pytest.raises(errors.Internal) as caught:
        await write(database, A, note(B, 2, CANARY))
    assert CANARY not in str(caught.value) and str(B) not in str(caught.value)
    with pytest.raises(errors.Internal, match=r"CheckViolation notes_word_check$"):
        await write(database, A, note(A, 3, "bad"))
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (psycopg.errors.SerializationFailure(CANARY), Deadlocked),
        (psycopg.errors.DeadlockDetected(CANARY), Deadlocked),
        (psycopg.errors.LockNotAvailable(CANARY), errors.Aborted),
        (psycopg.errors.QueryCanceled(CANARY), errors.DeadlineExceeded),
        (psycopg.errors.TransactionTimeout(CANARY), errors.DeadlineExceeded),
        (psycopg.errors.AdminShutdown(CANARY), errors.Unavailable),
        (psycopg.OperationalError(CANARY), errors.Unavailable),
        (psycopg.errors.NumericValueOutOfRange(CANARY), errors.InvalidArgument),
        (psycopg.errors.ForeignKeyViolation(CANARY), errors.Internal),
        (psycopg.ProgrammingError(CANARY), errors.Internal),
    ],
)
def test_each_family_of_errors_has_its_own_of_ours(
    theirs: Exception, ours: type[errors.TenonError]
) -> None:
    error = translate(theirs, {})
    assert type(error) is ours
    assert CANARY not in error.message


async def test_a_busy_pool_and_a_dead_server_are_unavailable(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database._tenant, "timeout", 0.1)
    async with database.tenant(A):
        with pytest.raises(errors.Unavailable):
            await database.read(A, WHO)
    await nobody_is_set(database)


async def test_a_writing_transaction_ends_at_its_limit(database: Database) -> None:

    async def outlast() -> None:
        async with database.tenant(A) as transaction:
            await transaction.limit("200ms")
            await transaction.one(SLEEP, seconds=30)

    with pytest.raises(errors.DeadlineExceeded):
        await outlast()
    await nobody_is_set(database)
    shown = Statement(text("SELECT current_setting('transaction_timeout') AS limit"))
    async with database.tenant(A) as transaction:
        assert (await transaction.one(shown)).limit == "5s"
    async with database.snapshot(A) as transaction:
        assert (await transaction.one(shown)).limit == "1min"


async def test_a_bad_tenant_of_a_batch_is_alone_with_its_error(database: Database) -> None:
    tenants = [UUID(int=n) for n in range(1, 12)]
    work = {tenant: [note(tenant, n), note(tenant, 100 + n)] for n, tenant in enumerate(tenants)}
    work[tenants[4]][1] = note(tenants[4], 104, "bad")
    # Another tenant's row, slipped in.
    work[tenants[7]][1] = note(tenants[0], 107)
    outcomes = await database.batch(list(work.items()), dict)
    failed = [items for items, answer in outcomes if isinstance(answer, errors.TenonError)]
    assert [tenant for ((tenant, _),) in failed] == [tenants[4], tenants[7]]
    for n, tenant in enumerate(tenants):
        there = [row.number for row in await database.read(tenant, ALL)]
        assert there == ([] if n in {4, 7} else [n, 100 + n])


async def test_a_batch_goes_on_without_its_caller(database: Database) -> None:
    async with database.tenant(A) as transaction:
        await transaction.one(WHO)
        # The only connection is taken, so the batch must wait when its caller goes.
        caller = asyncio.create_task(database.batch([(A, [note(A, 1)])], dict))
        await asyncio.sleep(0.05)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    await asyncio.gather(*database._batches)
    assert [row.number for row in await database.read(A, ALL)] == [1]


async def test_a_batch_without_a_database_is_not_tried_again_and_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database._tenant, "timeout", 0.2)
    work = [(UUID(int=n), [note(UUID(int=n), n)]) for n in range(1, 33)]
    async with database.tenant(A):
        async with asyncio.timeout(2):
            ((items, error),) = await database.batch(work, dict)
    assert items == work and isinstance(error, errors.Unavailable)


async def test_listeners_hear_what_was_committed_and_say_when_they_may_have_missed(
    database: Database, superuser: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.chassis.database.LISTEN_AGAIN_S", 0.01)
    heard = database.listen("a channel")
    assert await anext(heard) is None
    with suppress(errors.Aborted):
        async with database.tenant(A) as transaction:
            await transaction.run(NOTIFY, channel="a channel", payload="never")
            raise errors.Aborted("rolled back")
    await database.tell("a channel", "hello")
    assert await asyncio.wait_for(anext(heard), 5) == "hello"
    with psycopg.connect(superuser.reveal_text(), autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
    assert await asyncio.wait_for(anext(heard), 5) is None
    await heard.aclose()


async def test_one_process_leads_and_another_follows_when_it_is_gone(
    registry_conninfos: tuple[Secret, Secret], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "RETRY_S", 0.05)
    leading: list[str] = []

    def loop(name: str) -> Callable[[], Any]:
        async def lead() -> None:
            leading.append(name)
            try:
                await asyncio.sleep(60)
            finally:
                leading.remove(name)

        return lead

    async def until(wanted: list[str]) -> None:
        async with asyncio.timeout(5):
            while leading != wanted:
                await asyncio.sleep(0.01)

    first = asyncio.create_task(leader.lead(registry_conninfos[1], "sweeps", loop("first")))
    await until(["first"])
    second = asyncio.create_task(leader.lead(registry_conninfos[1], "sweeps", loop("second")))
    other = asyncio.create_task(leader.lead(registry_conninfos[1], "other", loop("other")))
    await until(["first", "other"])
    await asyncio.sleep(0.3)
    assert leading == ["first", "other"]
    first.cancel()
    await until(["other", "second"])
    for task in (second, other):
        task.cancel()
    await asyncio.gather(first, second, other, return_exceptions=True)


@pytest.mark.parametrize(
    "fault", [errors.Unavailable("the database is not reachable"), KeyError("a fault of ours")]
)
async def test_a_loop_that_fails_is_led_again(
    registry_conninfos: tuple[Secret, Secret], monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(leader, "RETRY_S", 0.01)
    runs: list[int] = []
    twice = asyncio.Event()

    async def loop() -> None:
        runs.append(1)
        if len(runs) == 2:
            twice.set()
        raise fault

    task = asyncio.create_task(leader.lead(registry_conninfos[1], "sweeps", loop))
    await asyncio.wait_for(twice.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
