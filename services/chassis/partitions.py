"""Time tables by the month: which months are wanted, and which have had their time.

The owner of the tables makes and drops, by rules of its own (`migrations/partitions.py`); a
service's system login asks it to. Months are UTC's, each named by its first day.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from sqlalchemy import Date, Text, bindparam, func, select, text

from services.chassis import errors
from services.chassis.database import Database, Statement

log = logging.getLogger(__name__)

# Made: from the month before, since ids may come from a clock that is behind, to the next.
MADE: Final = (-1, 0, 1)
# Never dropped, whatever the retention: this month and so many before it.
KEPT_BEHIND: Final = 2

_LONGEST_MONTH: Final = timedelta(days=31)
_LONGEST_MONTHS: Final = timedelta(days=92)
"""The longest month, and with it those that are kept behind."""

Partition = tuple[str, date]
# What a service does with a month before it goes.
Closing = Callable[[str, date], Awaitable[None]]


async def just_go(table: str, month: date) -> None:
    """For months of which nothing has to be kept."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What one round did, by the partitions' names; `postponed` met a lock and is tried again."""

    made: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    postponed: tuple[str, ...] = ()


class TimeTables:
    """The time tables of one schema."""

    def __init__(self, schema: str, tables: Sequence[str]) -> None:
        self._schema, self._tables = schema, tables
        self._make = _asking(schema, "make_partition")
        self._detach = _asking(schema, "detach_partition")
        self._drop = _asking(schema, "drop_partition")

    async def keep(
        self, database: Database, now: datetime, retention: timedelta, closing: Closing = just_go
    ) -> Changed:
        """Make the months that are wanted at `now`, and drop those wholly older than `retention`.

        Each is given to `closing` first; where that fails the month is left for later.
        Safe to repeat, and for two at once. Raises Unavailable where the database is away.
        """
        found = await self._found(database)
        missing = [
            (table, month)
            for table in self._tables
            for month in wanted(now)
            if (table, month) not in found
        ]
        outlived = [each for each in sorted(found) if has_had_its_time(each[1], now, retention)]
        made, not_made = await self._each(database, missing, just_go, self._make)
        dropped, not_dropped = await self._each(
            database, outlived, closing, self._detach, self._drop
        )
        return Changed(made, dropped, (*not_made, *not_dropped))

    async def _found(self, database: Database) -> set[Partition]:
        """Every partition there is, those detached but not dropped yet among them."""
        async with database.system() as tx:
            rows = await tx.all(_FOUND, schema=self._schema)
        named = re.compile(rf"({'|'.join(self._tables)})_(\d{{4}})_(\d\d)")
        matches = (named.fullmatch(row.name) for row in rows)
        return {(m[1], date(int(m[2]), int(m[3]), 1)) for m in matches if m}

    async def _each(
        self,
        database: Database,
        partitions: Iterable[Partition],
        closing: Closing,
        *steps: Statement,
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Take the steps for each, every one a transaction; who changed, and who was postponed."""
        changed, postponed = [], []
        for table, month in partitions:
            name = f"{table}_{month:%Y_%m}"
            try:
                await closing(table, month)
                if [await _ask(database, step, table, month) for step in steps][-1]:
                    changed.append(name)
            except errors.Unavailable:
                raise
            except errors.TenonError as error:
                log.warning("%s.%s is left for later: %s", self._schema, name, error.message)
                postponed.append(name)
        return tuple(changed), tuple(postponed)


def wanted(now: datetime) -> list[date]:
    """The months that must be there at `now`."""
    return [_shifted(_month_of(now), by) for by in MADE]


def has_had_its_time(month: date, now: datetime, retention: timedelta) -> bool:
    """Whether all of a month is older than `retention`, and it is not one of those always kept."""
    end = datetime.combine(_shifted(month, 1), time(), UTC)
    return end <= now - retention and month < _shifted(_month_of(now), -KEPT_BEHIND)


def longest_kept(retention: timedelta) -> timedelta:
    """How old a row gets at most before its month goes: it may be the first of a long one."""
    return max(_LONGEST_MONTH + retention, _LONGEST_MONTHS)


def _month_of(moment: datetime) -> date:
    return moment.astimezone(UTC).date().replace(day=1)


def _shifted(month: date, by: int) -> date:
    years, months = divmod(month.month - 1 + by, 12)
    return date(month.year + years, months + 1, 1)


# A partition that is detached is a table like any other: only its name tells.
_FOUND = Statement(
    text(
        "SELECT relname AS name FROM pg_catalog.pg_class"
        " WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind = 'r'"
    )
)


def _asking(schema: str, function: str) -> Statement:
    owner = getattr(func, schema)
    asked = getattr(owner, function)(
        bindparam("relation", type_=Text), bindparam("month", type_=Date)
    )
    return Statement(select(asked.label("done")))


async def _ask(database: Database, step: Statement, table: str, month: date) -> bool:
    async with database.system() as tx:
        return bool((await tx.one(step, relation=table, month=month)).done)
