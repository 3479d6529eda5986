"""When something recurs: every so often, or by cron in a time zone; pure.

A cron's clock is the zone's: a time that the clocks skip comes when they have been put forward, and
one that comes twice is taken once, save where the cron asks for many times a day.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

FIELDS: Final = 5
SHORTEST: Final = timedelta(seconds=60)
LONGEST: Final = timedelta(days=366)
LARGEST_JITTER: Final = timedelta(hours=1)
ANY_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)


class RecurrenceError(ValueError):
    """What says no recurrence: the field at fault, and a sentence without its value."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Either `every` or `cron`; each moment up to `jitter` late."""

    every: timedelta | None = None
    cron: str = ""
    timezone: str = "UTC"
    jitter: timedelta = timedelta()

    @classmethod
    def said(cls, fields: Mapping[str, Any]) -> "Recurrence | None":
        """What the fields of a contract's schedule say, unchecked; None where they say nothing."""
        every = fields.get("every")
        found = cls(
            every=None if every is None else _duration(every),
            cron=fields["cron"],
            timezone=fields["timezone"],
            jitter=_duration(fields["jitter"]),
        )
        return None if found == NEVER and not fields.get("input") else found

    def check(self) -> None:
        """Raises RecurrenceError for what has no next moment."""
        if (self.every is None) == (not self.cron):
            raise RecurrenceError("", "needs either every or cron")
        if self.every is not None and not SHORTEST <= self.every <= LONGEST:
            raise RecurrenceError("every", "must be from 60s to 366 days")
        if not timedelta() <= self.jitter <= LARGEST_JITTER:
            raise RecurrenceError("jitter", "must be from 0s to 3600s")
        if self.every is not None and self.timezone != "UTC":
            raise RecurrenceError("timezone", "belongs to cron")
        self.next(ANY_TIME, ANY_TIME)

    def next(self, last: datetime, now: datetime) -> datetime:
        """The first moment after `now`, without jitter; those between it and `last` are missed.

        `every` counts from `last`. Raises RecurrenceError.
        """
        if self.every is None:
            return self._next_of_cron(now)
        behind = max(timedelta(), now - last) // self.every
        return last + (behind + 1) * self.every

    def late(self, moment: datetime, key: bytes) -> datetime:
        """A moment with its jitter, always the same of one key and moment."""
        digest = hashlib.sha256(key + moment.astimezone(UTC).isoformat().encode()).digest()
        return moment + self.jitter * (int.from_bytes(digest[:6], "big") / 2**48)

    def _next_of_cron(self, now: datetime) -> datetime:
        # A sixth field would be seconds.
        if len(self.cron.split()) != FIELDS:
            raise RecurrenceError("cron", "must have five fields")
        try:
            moment = next(CronSim(self.cron, now.astimezone(self._zone())))
        except CronSimError as error:
            raise RecurrenceError("cron", f"is not a cron: {str(error).lower()}") from None
        except (StopIteration, OverflowError):
            raise RecurrenceError("cron", "never comes") from None
        return moment.astimezone(UTC)

    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise RecurrenceError("timezone", "is not the name of a time zone") from None


NEVER: Final = Recurrence()


def _duration(text: str) -> timedelta:
    """A duration as protobuf's JSON writes it: `1.5s`."""
    return timedelta(seconds=float(text.removesuffix("s")))
