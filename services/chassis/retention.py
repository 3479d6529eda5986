"""Makes the months to come and forgets what has had its time; a leader's job."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from services.chassis.database import Database
from services.chassis.partitions import Changed, Closing, TimeTables, just_go

log = logging.getLogger(__name__)

EVERY_S: Final = 3600.0
# Whoever held a table has let go of it by then.
AGAIN_S: Final = 60.0

Clock = Callable[[], datetime]
Forget = Callable[[Database, datetime], Awaitable[Mapping[str, int]]]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: months made and dropped, and rows forgotten by table."""

    months: Changed
    forgotten: Mapping[str, int] = field(default_factory=dict)


def utc_now() -> datetime:
    """This moment."""
    return datetime.now(UTC)


async def forget_nothing(database: Database, now: datetime) -> Mapping[str, int]:
    """For a service all of whose ageing rows go with their month."""
    return {}


class Retention:
    """The loop. `retention` is the deployment's longest: a month goes once all of it is older."""

    def __init__(
        self,
        database: Database,
        tables: TimeTables,
        retention: timedelta,
        forget: Forget = forget_nothing,
        clock: Clock = utc_now,
        closing: Closing = just_go,
    ) -> None:
        self._database = database
        self._tables = tables
        self._retention = retention
        self._forget = forget
        self._clock = clock
        self._closing = closing

    async def follow(self) -> None:
        """A round at once and then every hour, sooner if something was postponed. Never returns."""
        while True:
            done = await self.keep()
            await asyncio.sleep(AGAIN_S if done.months.postponed else EVERY_S)

    async def keep(self) -> Round:
        """One round; safe to repeat, and for two at once."""
        now = self._clock()
        months = await self._tables.keep(self._database, now, self._retention, self._closing)
        done = Round(months, await self._forget(self._database, now))
        log.info(
            "retention: %d months made, %d dropped, %d postponed, %d rows forgotten",
            len(months.made),
            len(months.dropped),
            len(months.postponed),
            sum(done.forgotten.values()),
            extra={"made": months.made, "dropped": months.dropped, **_counts(done.forgotten)},
        )
        return done


def _counts(forgotten: Mapping[str, int]) -> dict[str, int]:
    return {f"forgotten_{table}": count for table, count in forgotten.items()}
