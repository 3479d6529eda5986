"""Statements that share a round trip: each answers for itself, and a fault leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest

from services.chassis import pipelines
from services.chassis.pipelines import Connection
from services.chassis.secret import Secret

SLEEP = ("SELECT pg_sleep(30)", ())


@pytest.fixture
async def connection(superuser: Secret) -> AsyncIterator[Connection]:
    """A connection of its own, as a pool would have it."""
    conninfo = superuser.reveal_text()
    async with await Connection.connect(
        conninfo, autocommit=True, cursor_factory=psycopg.AsyncRawCursor
    ) as connection:
        yield connection


async def number(connection: Connection) -> int:
    """What shows that it can still be used."""
    (answer,) = await connection.send([("SELECT $1::int AS it", [7])])
    return int(answer.rows[0].it)


async def test_each_statement_has_its_own_answer(connection: Connection) -> None:
    made, added, found, gone = await connection.send(
        [
            ("CREATE TEMPORARY TABLE things (id uuid, said text, made timestamptz)", ()),
            (
                "INSERT INTO things SELECT gen_random_uuid(), x, now() FROM unnest($1::text[]) x",
                [["a", None, "c"]],
            ),
            ("SELECT id, said, $1::text AS said_too FROM things ORDER BY said", [None]),
            ("DELETE FROM things WHERE said = $1", ["a"]),
        ]
    )
    assert (made.tag, added.count, gone.count) == ("CREATE TABLE", 3, 1)
    assert [(row.said, row.said_too) for row in found.rows] == [
        ("a", None),
        ("c", None),
        (None,) * 2,
    ]
    assert isinstance(found.rows[0].id, UUID)


async def test_the_first_fault_is_told_and_undoes_what_came_before(connection: Connection) -> None:
    await connection.send([("CREATE TEMPORARY TABLE things (id int PRIMARY KEY)", ())])
    adding = ("INSERT INTO things VALUES ($1)", [1])
    with pytest.raises(psycopg.errors.UniqueViolation):
        await connection.send([adding, adding, ("SELECT 1/$1::int", [0])])
    (left,) = await connection.send([("SELECT count(*) AS many FROM things", ())])
    assert left.rows[0].many == 0


async def test_a_statement_after_a_fault_is_prepared_again(connection: Connection) -> None:
    later = ("SELECT $1::text AS it", ["x"])
    for _ in range(2):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.send([("SELECT 1/$1::int", [0]), later])
        (answer,) = await connection.send([later])
        assert answer.rows[0].it == "x"


async def test_what_cannot_be_adapted_costs_no_connection_and_sends_nothing(
    connection: Connection,
) -> None:
    await connection.send([("CREATE TEMPORARY TABLE things (id int)", ())])
    adding = ("INSERT INTO things VALUES ($1)", [1])
    with pytest.raises(psycopg.ProgrammingError, match="cannot adapt"):
        await connection.send([adding, ("SELECT $1", [object()]), adding])
    (left,) = await connection.send([("SELECT count(*) AS many FROM things", ())])
    assert left.rows[0].many == 0


async def test_one_that_is_cut_short_leaves_no_answer_to_the_next(connection: Connection) -> None:
    cut = asyncio.create_task(connection.send([("SELECT 1 AS it", ()), SLEEP]))
    async with asyncio.timeout(20):
        while connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            await asyncio.sleep(0.01)
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    assert connection.closed or await number(connection) == 7


async def test_one_that_is_cut_short_while_it_is_sent_costs_no_connection(
    connection: Connection,
) -> None:
    # Busy with the first, the server takes little of the second.
    cut = asyncio.create_task(connection.send([SLEEP, ("SELECT $1::text", ["x" * 2**24])]))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        while not await sleeps(connection):
            await asyncio.sleep(0.01)
    assert connection.pgconn.flush()
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    assert await number(connection) == 7


async def sleeps(connection: Connection) -> bool:
    """Whether its server is at `SLEEP`, as another connection sees it."""
    async with await psycopg.AsyncConnection.connect(
        connection.info.dsn, password=connection.info.password
    ) as other:
        asked = await other.execute(
            "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", [connection.info.backend_pid]
        )
        return await asked.fetchone() == ("PgSleep",)


async def test_what_the_server_says_before_it_hangs_up_is_heard(connection: Connection) -> None:
    await connection.send([("SET transaction_timeout = '50ms'", ())])
    with pytest.raises(psycopg.errors.TransactionTimeout):
        await connection.send([("BEGIN", ()), SLEEP])
    assert connection.closed


async def test_more_statements_than_are_prepared_go_all_the_same(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "MOST_PREPARED", 3)
    answers = await connection.send([(f"SELECT {n} AS it", ()) for n in range(9)])
    assert [answer.rows[0].it for answer in answers] == list(range(9))
    (kept,) = await connection.send([("SELECT count(*) AS many FROM pg_prepared_statements", ())])
    assert kept.rows[0].many == 3


async def test_answers_larger_than_the_sockets_come_whole(connection: Connection) -> None:
    large = ("SELECT repeat('x', $1) AS it, $2::text AS back", [2**20, "y" * 2**20])
    answers = await connection.send([large] * 8)
    assert {(len(a.rows[0].it), len(a.rows[0].back)) for a in answers} == {(2**20, 2**20)}
