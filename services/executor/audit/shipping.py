"""Tells the registry's audit log what was done here; a leader's job.

What the registry has taken is forgotten afterwards: who is killed in between tells it again, and
the registry takes an event of the same id once. A log that cannot be told is tried again later,
while the others go on; of a batch that is refused, the event that is at fault is set aside.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from services.chassis import errors, failpoints
from services.chassis.cache import Clock
from services.chassis.database import Database
from services.executor.store import audit_outbox as store
from services.executor.store.audit_outbox import Told

log = logging.getLogger(__name__)

LEADER: Final = "executor.audit"
EVERY_S: Final = 0.5
AT_ONCE: Final = 200
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0

LATER: Final = (errors.Unavailable, errors.NotFound, errors.ResourceExhausted, errors.Aborted)
"""What says nothing of the events themselves: they may be taken another time, or go with theirs."""

BEFORE_RECORD: Final = failpoints.declare("ship.before_record", "it waits, and is told later")
AFTER_RECORD: Final = failpoints.declare("ship.after_record", "it is told again, and taken once")


class AuditLog(Protocol):
    """Where events are told: the registry."""

    async def record(self, tenant_id: UUID | None, told: Sequence[Told]) -> None:
        """Take events into a log, each once. Raises NotFound for a tenant that is no more."""
        ...


@dataclass(frozen=True, slots=True)
class _Wait:
    """When a log that could not be told is to be tried, on our clock, and how often it was."""

    due: float
    tries: int


class Shipping:
    """The loop."""

    def __init__(
        self, database: Database, audit_log: AuditLog, clock: Clock = time.monotonic
    ) -> None:
        self._database = database
        self._audit_log = audit_log
        self._clock = clock
        self._waits: dict[UUID | None, _Wait] = {}
        self._aside: set[UUID] = set()

    @property
    def aside(self) -> int:
        """How many events the registry refuses; they are kept, and told anew after a start."""
        return len(self._aside)

    async def follow(self) -> None:
        """Tell what waits, and look again soon. Never returns."""
        while True:
            while await self.ship():
                pass
            await asyncio.sleep(EVERY_S)

    async def ship(self) -> int:
        """Tell the oldest that wait of each log that is due; how many were taken."""
        logs = [*await store.tenants(self._database), None]
        self._waits = {each: wait for each, wait in self._waits.items() if each in logs}
        now = self._clock()
        due = [each for each in logs if each not in self._waits or self._waits[each].due <= now]
        return sum([await self._ship(each) for each in due])

    async def _ship(self, tenant_id: UUID | None) -> int:
        told = await store.oldest(self._database, tenant_id, AT_ONCE, self._aside)
        try:
            taken = await self._tell(tenant_id, told) if told else 0
        except LATER as error:
            self._put_off(tenant_id, error)
            return 0
        self._waits.pop(tenant_id, None)
        return taken

    async def _tell(self, tenant_id: UUID | None, told: Sequence[Told]) -> int:
        """Tell some of one log; of what is refused the halves, until it is one event."""
        BEFORE_RECORD.hit()
        try:
            await self._audit_log.record(tenant_id, told)
        except LATER:
            raise
        except errors.TenonError as error:
            half = len(told) // 2
            if half:
                return sum(
                    [await self._tell(tenant_id, each) for each in (told[:half], told[half:])]
                )
            self._put_aside(told[0], error)
            return 0
        AFTER_RECORD.hit()
        await store.forget(self._database, tenant_id, [one.event_id for one in told])
        return len(told)

    def _put_off(self, tenant_id: UUID | None, error: errors.TenonError) -> None:
        tries = self._waits[tenant_id].tries + 1 if tenant_id in self._waits else 0
        wait = min(FIRST_WAIT_S * 2**tries, LONGEST_WAIT_S)
        self._waits[tenant_id] = _Wait(self._clock() + wait, tries)
        log.warning(
            "audit events of %s wait: %s; again in %.1f s",
            *(tenant_id or "the platform", error.message, wait),
        )

    def _put_aside(self, one: Told, error: errors.TenonError) -> None:
        self._aside.add(one.event_id)
        log.error(
            "audit event %s of %s is refused, and set aside: %s",
            *(one.event_id, one.tenant_id or "the platform", error.message),
        )
