"""How a connector's runs have gone lately."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import NotFound
from services.chassis.ids import uuid7_floor
from services.executor.executions.runs import CONNECTOR
from services.executor.store import activity as store
from services.executor.store import projected
from services.executor.store.activity import Counts
from services.executor.store.executions import Execution

DAY: Final = timedelta(days=1)
WEEK: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class RunStats:
    """Runs of some time: by state, how many of 1 ended well, and their durations in seconds.

    Those that were cancelled count neither as well nor as badly ended. `truncated`: only the newest
    were counted.
    """

    states: Mapping[str, int]
    success_share: float | None
    median_s: float | None
    p95_s: float | None
    truncated: bool

    @property
    def total(self) -> int:
        """How many were counted."""
        return sum(self.states.values())


@dataclass(frozen=True, slots=True)
class Activity:
    """A connector and its runs."""

    connector: str
    is_active: bool
    last_day: RunStats
    last_week: RunStats
    last: Execution | None


class Activities:
    """Looks at the runs of connectors."""

    def __init__(
        self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self._now = now

    async def of(self, tenant_id: UUID, name: str) -> Activity:
        """How a connector's runs went in the last day and week. Raises NotFound."""
        connector = await projected.one(self._database, tenant_id, CONNECTOR, name)
        if connector is None:
            raise NotFound(f"connectors/{name} does not exist")
        since = [uuid7_floor(self._now() - time) for time in (DAY, WEEK)]
        last, (day, week) = await store.read(self._database, tenant_id, name, since)
        return Activity(name, connector.spec["is_active"], stats(day), stats(week), last)


def stats(counts: Counts) -> RunStats:
    """What counts say."""
    good = counts.states["success"]
    ended = good + counts.states["failed"] + counts.states["timeout"]
    return RunStats(
        states={state: count for state, count in counts.states.items() if count},
        success_share=good / ended if ended else None,
        median_s=counts.median_s,
        p95_s=counts.p95_s,
        truncated=sum(counts.states.values()) >= store.MOST,
    )
