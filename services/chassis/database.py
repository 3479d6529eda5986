"""The one place that opens connections and transactions.

A service has two logins and a pool for each: `tenant` works inside one tenant's row-level security,
`system` on the closed list that precedes or spans tenants. Statements are SQLAlchemy Core, compiled
once; psycopg runs them, in pipelines where a round trip can be saved. Errors of both libraries
leave here as ours.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import psycopg
import psycopg_pool
from psycopg.rows import namedtuple_row
from psycopg.types.json import JsonbDumper
from sqlalchemy import bindparam, func, select, true
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import ClauseElement

from services.chassis import errors
from services.chassis.secret import Secret

log = logging.getLogger(__name__)

SET_TENANT = "SELECT set_config('app.current_tenant_id', %s, true)"
POOL_WAIT_S = 5.0
LISTEN_AGAIN_S = 1.0
# The logins' own limit is for writing; nobody waits for a reader of one moment.
SNAPSHOT_LIMIT = "60s"

Connection = psycopg.AsyncConnection[Any]
Cursor = psycopg.AsyncCursor[Any]
Parameters = Mapping[str, Any] | Sequence[Any]
Command = tuple[str, Parameters | None]
Rows = list[Any]
Constraints = Mapping[str, Callable[[], errors.TenonError]]
Outcomes = dict[UUID, errors.TenonError | None]

BEGIN: Final[Sequence[Command]] = (("BEGIN", None),)
# The next commit that waits for the disk takes all earlier ones with it.
BEGIN_UNHURRIED: Final = (*BEGIN, ("SET LOCAL synchronous_commit = off", None))
BEGIN_SNAPSHOT: Final[Sequence[Command]] = (
    ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", None),
)

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


class Statement:
    """A Core statement compiled once; its parameters are bound by name at each call."""

    __slots__ = ("_fixed", "sql")

    def __init__(self, core: ClauseElement) -> None:
        compiled = core.compile(dialect=_DIALECT)
        self.sql = compiled.string
        self._fixed = {k: v for k, v in (compiled.params or {}).items() if v is not None}

    def bind(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters of one call."""
        return {**self._fixed, **parameters}


@dataclass(frozen=True, slots=True)
class Bound:
    """A statement with the parameters of one call, for a batch."""

    statement: Statement
    parameters: Mapping[str, Any] = field(default_factory=dict)


ENTER: Final = Statement(
    select(func.set_config("app.current_tenant_id", bindparam("tenant_id"), true()))
)


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
        return (await self._execute(statement.sql, statement.bind(parameters))).rowcount

    async def all(self, statement: Statement, **parameters: Any) -> Rows:
        """All rows, as named tuples."""
        return await (await self._execute(statement.sql, statement.bind(parameters))).fetchall()

    async def one(self, statement: Statement, **parameters: Any) -> Any:
        """The first row, or None."""
        return await (await self._execute(statement.sql, statement.bind(parameters))).fetchone()

    async def pipeline(self, calls: Sequence[Bound]) -> list[Rows]:
        """Several statements in one round trip; returns the rows of each."""
        commands = [(call.statement.sql, call.statement.bind(call.parameters)) for call in calls]
        return [await _rows(cursor) for cursor in await self._execute_all(commands)]

    async def conclude(self, calls: Sequence[Bound]) -> list[Rows]:
        """The last statements, committed in the same round trip; returns the rows of each."""
        commands = [(call.statement.sql, call.statement.bind(call.parameters)) for call in calls]
        *cursors, committed = await self._execute_all([*commands, ("COMMIT", None)])
        self._committed = _checked(committed)
        return [await _rows(cursor) for cursor in cursors]

    async def limit(self, duration: str) -> None:
        """Let this transaction last longer, or less long, than the login's own limit."""
        # PostgreSQL limits whole transactions from version 17 on.
        modern = self._connection.info.server_version >= 170000
        name = "transaction_timeout" if modern else "statement_timeout"
        await self._execute("SELECT set_config(%s, %s, true)", [name, duration])

    async def notify(self, channel: str, payload: str) -> None:
        """Wake listeners when this transaction commits."""
        await self._execute("SELECT pg_notify(%s, %s)", [channel, payload])

    async def commit(self) -> None:
        """Commit what is open. Raises Internal where PostgreSQL rolled back instead."""
        if self.is_open and not self._committed:
            self._committed = _checked(await self._execute("COMMIT"))

    async def _execute(self, sql: str, parameters: Parameters | None = None) -> Cursor:
        if self.is_open:
            return await self._connection.execute(sql, parameters)
        return (await self._execute_all([(sql, parameters)]))[-1]

    async def _execute_all(self, commands: Sequence[Command]) -> list[Cursor]:
        opening, self._opening = self._opening, ()
        async with self._connection.pipeline():
            for sql, parameters in opening:
                await self._connection.execute(sql, parameters)
            return [await self._connection.execute(sql, given) for sql, given in commands]


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
        self._system = _pool(system, max(2, pool_size // 2))
        self._constraints = constraints or {}
        self._batches: set[asyncio.Task[Outcomes]] = set()

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
        return (await self.read_all(tenant_id, [Bound(statement, parameters)]))[0]

    async def read_all(self, tenant_id: UUID, calls: Sequence[Bound]) -> list[Rows]:
        """Reading statements inside one tenant, at one moment and in one round trip."""
        async with self._connection(self._tenant) as connection:
            async with connection.pipeline():
                await connection.execute(BEGIN_SNAPSHOT[0][0])
                await connection.execute(SET_TENANT, [str(tenant_id)])
                cursors = [
                    await connection.execute(
                        call.statement.sql, call.statement.bind(call.parameters)
                    )
                    for call in calls
                ]
                await connection.execute("COMMIT")
            return [await cursor.fetchall() for cursor in cursors]

    async def batch(self, work: Mapping[UUID, Sequence[Bound]]) -> Outcomes:
        """Statements of many tenants in one pipelined transaction, each inside its own tenant.

        On an error nothing of that transaction stays; the batch is halved until the bad tenant is
        alone, so every other tenant's statements still happen. Answers with each tenant's error. It
        runs in a task of its own, so that a cancelled caller cannot cut it in two.
        """
        task = asyncio.create_task(self._batch(dict(work)))
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)
        return await asyncio.shield(task)

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

    async def _batch(self, work: dict[UUID, Sequence[Bound]]) -> Outcomes:
        try:
            await self._batch_once(work)
        except errors.TenonError as error:
            # With the database away no tenant is at fault, and each half would wait for it anew.
            if len(work) == 1 or isinstance(error, errors.Unavailable):
                return dict.fromkeys(work, error)
            tenants = list(work)
            half = len(tenants) // 2
            first = await self._batch({t: work[t] for t in tenants[:half]})
            return first | await self._batch({t: work[t] for t in tenants[half:]})
        return dict.fromkeys(work)

    async def _batch_once(self, work: Mapping[UUID, Sequence[Bound]]) -> None:
        calls: list[Bound] = []
        for tenant_id, inside in work.items():
            calls += [Bound(ENTER, {"tenant_id": str(tenant_id)}), *inside]
        async with self._open(self._tenant, BEGIN, None) as transaction:
            await transaction.pipeline(calls)

    @asynccontextmanager
    async def _open(
        self,
        pool: psycopg_pool.AsyncConnectionPool[Any],
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
    async def _connection(
        self, pool: psycopg_pool.AsyncConnectionPool[Any]
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        try:
            async with pool.connection() as connection:
                yield connection
        except (psycopg.Error, DBAPIError, psycopg_pool.PoolTimeout) as error:
            raise translate(error, self._constraints) from error


def translate(error: BaseException, constraints: Constraints) -> errors.TenonError:
    """Our error for a driver's one; a broken constraint speaks by its name."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.errors.IntegrityError):
        named = constraints.get(cause.diag.constraint_name or "")
        if named is not None:
            return named()
    for kinds, ours, message in _FAMILIES:
        if isinstance(cause, kinds):
            return ours(message)
    # The driver's text may quote values: only its class and place leave this function.
    where = getattr(getattr(cause, "diag", None), "constraint_name", None) or ""
    return errors.Internal(f"database error {type(cause).__name__} {where}".rstrip())


_FAMILIES: tuple[tuple[tuple[type[Exception], ...], type[errors.TenonError], str], ...] = (
    (
        (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected),
        errors.Aborted,
        "somebody changed the same rows; try again",
    ),
    (
        (psycopg.errors.LockNotAvailable,),
        errors.Aborted,
        "somebody holds the same rows; try again",
    ),
    (
        (
            psycopg.errors.QueryCanceled,
            psycopg.errors.TransactionTimeout,
            psycopg.errors.IdleInTransactionSessionTimeout,
        ),
        errors.DeadlineExceeded,
        "the database took too long",
    ),
    ((psycopg_pool.PoolTimeout,), errors.Unavailable, "no database connection was free"),
    ((psycopg.OperationalError,), errors.Unavailable, "the database is not reachable"),
    ((psycopg.DataError,), errors.InvalidArgument, "a value is not one the database can keep"),
)


def _pool(conninfo: Secret, size: int) -> psycopg_pool.AsyncConnectionPool[Any]:
    return psycopg_pool.AsyncConnectionPool(
        conninfo.reveal_text(),
        min_size=1,
        max_size=size,
        timeout=POOL_WAIT_S,
        open=False,
        configure=_configure,
        kwargs={"autocommit": True, "row_factory": namedtuple_row},
    )


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    connection.adapters.register_dumper(dict, JsonbDumper)


def _checked(commit: Cursor) -> bool:
    if commit.statusmessage != "COMMIT":
        raise errors.Internal("a statement's error was passed over: nothing was committed")
    return True


async def _rows(cursor: psycopg.AsyncCursor[Any]) -> Rows:
    return await cursor.fetchall() if cursor.description else []
