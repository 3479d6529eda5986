"""The one place that opens connections and transactions.

A service has two logins and a pool for each: `tenant` works inside one tenant's row-level security,
`system` on the closed list that precedes or spans tenants. Statements are SQLAlchemy Core, compiled
once; psycopg runs them, in pipelines where a round trip can be saved. Errors of both libraries
leave here as ours.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool
from psycopg.rows import namedtuple_row
from psycopg.types.json import JsonbDumper
from sqlalchemy import bindparam, func, select, true
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.types import UserDefinedType

from services.chassis import errors
from services.chassis.database_errors import Constraints, Deadlocked, translate
from services.chassis.pipelines import Answer, Command, Connection, Rows
from services.chassis.secret import Secret

log = logging.getLogger(__name__)

SET_TENANT = "SELECT set_config('app.current_tenant_id', $1, true)"
POOL_WAIT_S = 5.0
LISTEN_AGAIN_S = 1.0
# A plan that was made and kept while a queue was empty reads all of it once it is long (measured: a
# claim took 1.1 s instead of 2 ms), so that after a slow transaction all connections plan anew.
SLOW_S: Final = 0.1
REPLAN_S: Final = 1.0
# How often a batch that met a deadlock is tried again as it is: no item is at fault.
DEADLOCKS: Final = 2
CAPACITY: Final = (
    "SELECT current_setting('max_connections')::int"
    " - current_setting('superuser_reserved_connections')::int"
    # Since PostgreSQL 16.
    " - coalesce(current_setting('reserved_connections', true), '0')::int"
)
# The logins' own limit is for writing; nobody waits for a reader of one moment.
SNAPSHOT_LIMIT = "60s"

Pool = psycopg_pool.AsyncConnectionPool[Connection]
Work = Mapping[UUID, Sequence["Bound"]]
Answers = dict[UUID, list[Rows]]
Item = TypeVar("Item")
Outcome = tuple[Sequence[Item], Answers | errors.TenonError]

BEGIN: Final[Sequence[Command]] = (("BEGIN", ()),)
# The next commit that waits for the disk takes all earlier ones with it.
BEGIN_UNHURRIED: Final = (*BEGIN, ("SET LOCAL synchronous_commit = off", ()))
COMMIT: Final[Command] = ("COMMIT", ())
BEGIN_SNAPSHOT: Final[Sequence[Command]] = (
    ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ()),
)

# Numbers for parameters, as the server takes them: psycopg need not look for names at each call.
_DIALECT = PGDialect_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in SQL."""
        return "xid8"


class Statement:
    """A Core statement compiled once; its parameters are bound by name at each call."""

    __slots__ = ("_fixed", "_names", "sql")

    def __init__(self, core: ClauseElement) -> None:
        compiled = core.compile(dialect=_DIALECT)
        self.sql = compiled.string
        self._names = tuple(getattr(compiled, "positiontup", None) or ())
        self._fixed = {k: v for k, v in (compiled.params or {}).items() if v is not None}

    def bind(self, parameters: Mapping[str, Any]) -> list[Any]:
        """All parameters of one call, in the order of their numbers."""
        given = {**self._fixed, **parameters}
        return [given[name] for name in self._names]

    def given(self, parameters: Mapping[str, Any]) -> Command:
        """The statement with the parameters of one call."""
        return self.sql, self.bind(parameters)


class Bound(NamedTuple):
    """A statement with the parameters of one call, for a batch."""

    statement: Statement
    parameters: Mapping[str, Any] = MappingProxyType({})

    @property
    def command(self) -> Command:
        """It, as it is sent."""
        return self.statement.given(self.parameters)


ENTER: Final = Statement(
    select(func.set_config("app.current_tenant_id", bindparam("tenant_id"), true()))
)


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """Connections a pool may have, has, and has idle; who waits for one now; counts since start."""

    most: int
    open: int
    idle: int
    waiting: int
    requests: int
    waited_s: float


class Transaction:
    """One transaction; it commits when its block ends well.

    It is opened by its first statement, in the same round trip; one that runs none never opens.
    """

    def __init__(self, connection: Connection, opening: Sequence[Command]) -> None:
        self._connection = connection
        self._opening = opening
        self._committed = False

    @property
    def is_open(self) -> bool:
        """Whether anything has run in it."""
        return not self._opening

    async def run(self, statement: Statement, **parameters: Any) -> int:
        """Run a statement; returns how many rows it touched."""
        return (await self._send([statement.given(parameters)]))[0].count

    async def all(self, statement: Statement, **parameters: Any) -> Rows:
        """All rows, as named tuples."""
        return (await self._send([statement.given(parameters)]))[0].rows

    async def one(self, statement: Statement, **parameters: Any) -> Any:
        """The first row, or None."""
        rows = await self.all(statement, **parameters)
        return rows[0] if rows else None

    async def pipeline(self, calls: Sequence[Bound]) -> list[Rows]:
        """Several statements in one round trip; returns the rows of each."""
        return [answer.rows for answer in await self._send([call.command for call in calls])]

    async def conclude(self, calls: Sequence[Bound]) -> list[Rows]:
        """The last statements, committed in the same round trip; returns the rows of each."""
        *answers, committed = await self._send([*(call.command for call in calls), COMMIT])
        self._committed = _checked(committed)
        return [answer.rows for answer in answers]

    async def each(self, work: Work, *, last: bool = False) -> Answers:
        """Statements of many tenants in one round trip, each inside its own tenant.

        Only in a transaction that `across` began. The `last` ones are committed with it.
        """
        calls: list[Bound] = []
        for tenant_id, inside in work.items():
            calls += [Bound(ENTER, {"tenant_id": str(tenant_id)}), *inside]
        rows = iter(await (self.conclude(calls) if last else self.pipeline(calls)))
        # Each tenant's first answer is that it was entered.
        return {
            tenant_id: list(islice(rows, 1 + len(inside)))[1:] for tenant_id, inside in work.items()
        }

    async def limit(self, duration: str) -> None:
        """Let this transaction last longer, or less long, than the login's own limit."""
        # PostgreSQL limits whole transactions from version 17 on.
        modern = self._connection.info.server_version >= 170000
        name = "transaction_timeout" if modern else "statement_timeout"
        await self._send([("SELECT set_config($1, $2, true)", [name, duration])])

    async def commit(self) -> None:
        """Commit what is open. Raises Internal where PostgreSQL rolled back instead."""
        if self.is_open and not self._committed:
            (committed,) = await self._send([COMMIT])
            self._committed = _checked(committed)

    async def _send(self, commands: Sequence[Command]) -> list[Answer]:
        opening, self._opening = self._opening, ()
        answers = await self._connection.send([*opening, *commands])
        return answers[len(opening) :]


class Database:
    """The two pools of one service."""

    def __init__(
        self,
        tenant: Secret,
        system: Secret,
        *,
        pool_size: int = 8,
        constraints: Constraints | None = None,
    ) -> None:
        self._system_conninfo = system
        self._tenant = _pool(tenant, pool_size)
        self._system = _pool(system, _system_size(pool_size))
        self._constraints = constraints or {}
        self._batches: set[asyncio.Task[Any]] = set()
        # Since when the plans of a connection count, and from when on they may.
        self._planned: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self._plans_from = 0.0

    async def __aenter__(self) -> Self:
        await self._tenant.open()
        await self._system.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Their callers may be gone; what they were given is still to happen.
        await asyncio.gather(*self._batches, return_exceptions=True)
        await self._tenant.close()
        await self._system.close()

    @asynccontextmanager
    async def tenant(self, tenant_id: UUID, *, durable: bool = True) -> AsyncIterator[Transaction]:
        """A transaction inside one tenant's row-level security.

        One that need not be `durable` does not wait for the disk: a crash of PostgreSQL may lose
        it, but only together with all that was committed after it.
        """
        async with self._open(
            self._tenant, BEGIN if durable else BEGIN_UNHURRIED, tenant_id
        ) as transaction:
            yield transaction

    @asynccontextmanager
    async def snapshot(self, tenant_id: UUID) -> AsyncIterator[Transaction]:
        """A reading transaction that sees one moment of one tenant."""
        async with self._open(self._tenant, BEGIN_SNAPSHOT, tenant_id) as transaction:
            await transaction.limit(SNAPSHOT_LIMIT)
            yield transaction

    @asynccontextmanager
    async def system(self, *, durable: bool = True) -> AsyncIterator[Transaction]:
        """A transaction of the system login: the closed list, across tenants."""
        async with self._open(
            self._system, BEGIN if durable else BEGIN_UNHURRIED, None
        ) as transaction:
            yield transaction

    async def read(self, tenant_id: UUID, statement: Statement, /, **parameters: Any) -> Rows:
        """One reading statement inside one tenant, in a single round trip."""
        async with self._connection(self._tenant) as connection:
            # Without BEGIN the round trip is the transaction, and so the tenant's, up to its end.
            _, found = await connection.send(
                [(SET_TENANT, [str(tenant_id)]), statement.given(parameters)]
            )
            return found.rows

    async def read_all(self, tenant_id: UUID, calls: Sequence[Bound]) -> list[Rows]:
        """Reading statements inside one tenant, at one moment and in one round trip."""
        entering = (*BEGIN_SNAPSHOT, (SET_TENANT, [str(tenant_id)]))
        async with self._connection(self._tenant) as connection:
            answers = await connection.send([*entering, *(each.command for each in calls), COMMIT])
            return [answer.rows for answer in answers[len(entering) : -1]]

    @asynccontextmanager
    async def across(self, *, durable: bool = True) -> AsyncIterator[Transaction]:
        """A transaction that goes from tenant to tenant (`each`), inside one at a time."""
        async with self._connection(self._tenant) as connection:
            began = time.monotonic()
            if self._planned.get(connection, began) < self._plans_from:
                await connection.execute("DISCARD PLANS")
                began = time.monotonic()
                self._planned[connection] = began
            self._planned.setdefault(connection, began)
            transaction = Transaction(connection, BEGIN if durable else BEGIN_UNHURRIED)
            yield transaction
            await transaction.commit()
            ended = time.monotonic()
            if ended - began > SLOW_S and ended - self._plans_from > REPLAN_S:
                self._plans_from = ended

    async def batch(
        self,
        items: Sequence[Item],
        arrange: Callable[[Sequence[Item]], Work],
        *,
        durable: bool = True,
    ) -> list[Outcome[Item]]:
        """What many items of many tenants need done, in one pipelined transaction.

        `arrange` makes the statements of any of them. On an error nothing of that transaction
        stays; the items are halved until the bad one is alone, so all others still happen. Answers,
        for each transaction, with its items and their rows by tenant, or with the error. It runs in
        a task of its own, so that a cancelled caller cannot cut it in two.
        """
        task = asyncio.create_task(self._batch(items, arrange, durable))
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)
        return await asyncio.shield(task)

    def pools(self) -> Mapping[str, PoolFigures]:
        """How the two pools stand, by login."""
        return {"tenant": _figures(self._tenant), "system": _figures(self._system)}

    async def capacity(self) -> int:
        """How many connections the server has for logins without privileges."""
        async with self._connection(self._system) as connection:
            (row,) = await (await connection.execute(CAPACITY)).fetchall()
            return int(row[0])

    async def flush(self) -> None:
        """Return once all that was committed before is on the disk."""
        async with self._connection(self._system) as connection:
            # A commit waits for the disk where it has written something, if only words.
            await connection.execute("SELECT pg_logical_emit_message(true, 'flush', '')")

    async def tell(self, channel: str, payload: str = "") -> None:
        """Wake listeners now."""
        async with self._connection(self._system) as connection:
            await connection.execute("SELECT pg_notify($1, $2)", [channel, payload])

    async def listen(self, channel: str) -> AsyncGenerator[str | None, None]:
        """Payloads notified on a channel; None after each (re)connection: look for yourself."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._system_conninfo.reveal_text(), autocommit=True
                ) as connection:
                    await connection.execute(f'LISTEN "{channel}"')
                    yield None
                    async for notice in connection.notifies():
                        yield notice.payload
            except psycopg.Error as error:
                log.warning("listening on %s: %s", channel, type(error).__name__)
                await asyncio.sleep(LISTEN_AGAIN_S)

    async def _batch(
        self,
        items: Sequence[Item],
        arrange: Callable[[Sequence[Item]], Work],
        durable: bool,  # noqa: FBT001 - handed on
    ) -> list[Outcome[Item]]:
        try:
            return [(items, await self._batch_once(arrange(items), durable=durable))]
        except errors.TenonError as error:
            # With the database away no item is at fault, and each half would wait for it anew.
            if len(items) <= 1 or isinstance(error, errors.Unavailable):
                return [(items, error)]
        half = len(items) // 2
        return [
            *await self._batch(items[:half], arrange, durable),
            *await self._batch(items[half:], arrange, durable),
        ]

    async def _batch_once(self, work: Work, *, durable: bool) -> Answers:
        for _ in range(DEADLOCKS):
            with suppress(Deadlocked):
                return await self._sent(work, durable=durable)
        return await self._sent(work, durable=durable)

    async def _sent(self, work: Work, *, durable: bool) -> Answers:
        async with self.across(durable=durable) as transaction:
            return await transaction.each(work, last=True)

    @asynccontextmanager
    async def _open(
        self,
        pool: Pool,
        begin: Sequence[Command],
        tenant_id: UUID | None,
    ) -> AsyncIterator[Transaction]:
        enter = () if tenant_id is None else ((SET_TENANT, [str(tenant_id)]),)
        async with self._connection(pool) as connection:
            transaction = Transaction(connection, (*begin, *enter))
            # Whatever is thrown here, the pool's own block rolls back.
            yield transaction
            await transaction.commit()

    @asynccontextmanager
    async def _connection(self, pool: Pool) -> AsyncIterator[Connection]:
        try:
            async with pool.connection() as connection:
                yield connection
        except (psycopg.Error, DBAPIError, psycopg_pool.PoolTimeout) as error:
            raise translate(error, self._constraints) from error


def connections_of(pool_size: int) -> int:
    """How many connections both pools of a service open at most."""
    return pool_size + _system_size(pool_size)


def _system_size(pool_size: int) -> int:
    return max(2, pool_size // 2)


def _pool(conninfo: Secret, size: int) -> Pool:
    return psycopg_pool.AsyncConnectionPool(
        conninfo.reveal_text(),
        connection_class=Connection,
        min_size=1,
        max_size=size,
        timeout=POOL_WAIT_S,
        open=False,
        configure=_configure,
        kwargs={
            "autocommit": True,
            "row_factory": namedtuple_row,
            "cursor_factory": psycopg.AsyncRawCursor,
        },
    )


def _figures(pool: Pool) -> PoolFigures:
    stats = pool.get_stats()
    return PoolFigures(
        most=stats["pool_max"],
        open=stats["pool_size"],
        idle=stats["pool_available"],
        waiting=stats["requests_waiting"],
        requests=stats.get("requests_num", 0),
        waited_s=stats.get("requests_wait_ms", 0) / 1000,
    )


async def _configure(connection: Connection) -> None:
    connection.adapters.register_dumper(dict, JsonbDumper)


def _checked(commit: Answer) -> bool:
    if commit.tag != "COMMIT":
        raise errors.Internal("a statement's error was passed over: nothing was committed")
    return True
