"""Starts connectors and transfers of streams when their schedules are due; a leader's job.

A run begins in the same transaction that moves its schedule on, so that two leaders for a moment
start one. What was missed meanwhile, for whatever reason, is made up for by one run. A tenant that
cannot start anything now is tried again, and holds up no other.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import ResourceExhausted, TenonError
from services.chassis.recurrence import Recurrence, RecurrenceError
from services.chassis.retention import utc_now
from services.executor.engine import lanes
from services.executor.engine.work import Started
from services.executor.executions import runs
from services.executor.executions.runs import CONNECTOR, Run
from services.executor.registry.credentials import LeasedKey, Secrets
from services.executor.store import schedules as store
from services.executor.store.projected import ProjectedObject
from services.executor.store.schedules import Due, Schedule
from services.executor.syncs import starting
from services.executor.syncs.streams import STREAM

log = logging.getLogger(__name__)

LEADER: Final = "executor.scheduler"
POLL_S: Final = 1.0
AT_ONCE: Final = 4
"""Tenants whose runs are started side by side."""
AGAIN: Final = timedelta(seconds=10)
LONGEST_AGAIN: Final = timedelta(minutes=5)
FIELDS: Final = ("every", "cron", "timezone", "jitter")

Clock = Callable[[], datetime]


class Scheduler:
    """The loop; `started` counts the runs it has started."""

    def __init__(self, database: Database, secrets: Secrets, clock: Clock = utc_now) -> None:
        self._database = database
        self._secrets = secrets
        self._clock = clock
        self._again: dict[UUID, datetime] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self.started = 0

    async def follow(self) -> None:
        """Start what is due, each second and at each time that something is. Never returns."""
        while True:
            wait_s = await self.tick()
            await asyncio.sleep(wait_s)

    async def tick(self) -> float:
        """Start what is due now; in how many seconds to look again."""
        now = self._clock()
        due, soonest = await store.due_tenants(self._database, now)
        self._again = {each: at for each, at in self._again.items() if at > now}
        await asyncio.gather(*(self._try(each, now) for each in due if each not in self._again))
        if soonest is None:
            return POLL_S
        return max(0.0, min(POLL_S, (soonest - self._clock()).total_seconds()))

    async def _try(self, tenant_id: UUID, now: datetime) -> None:
        """Start all that is due of one tenant; what stops it stops no other."""
        async with self._places:
            try:
                key = await self._secrets.lease_key(tenant_id)
                while await self._start_batch(tenant_id, key, now) == store.BATCH:
                    pass
            except TenonError as error:
                self._again[tenant_id] = now + _wait(error)
                log.warning("schedules of tenant %s wait: %s", tenant_id, error)
            except Exception:
                self._again[tenant_id] = now + AGAIN
                log.exception("schedules of tenant %s wait", tenant_id)

    async def _start_batch(self, tenant_id: UUID, key: LeasedKey, now: datetime) -> int:
        """Start a batch; how many schedules were due."""
        async with self._database.tenant(tenant_id) as tx:
            due = await store.lock_due(tx, tenant_id, now)
            begun = [STARTS[owner.kind](tenant_id, owner, key) for owner in _starting(due)]
            moved, gone = _moved(tenant_id, due.schedules, now)
            await store.move(tx, tenant_id, moved, gone)
            await lanes.begin(tx, tenant_id, begun)
        self.started += len(begun)
        return len(due.schedules)


async def replace_all(
    tx: Transaction, tenant_id: UUID, objects: Sequence[ProjectedObject], now: datetime
) -> None:
    """Keep the schedules of a tenant's active connectors and streams, and no others.

    One that is new, or was changed, counts from now.
    """
    found = (_schedule(tenant_id, each, now) for each in objects if each.kind in STARTS)
    await store.replace(tx, tenant_id, [each for each in found if each is not None])


def _schedule(tenant_id: UUID, owner: ProjectedObject, now: datetime) -> Schedule | None:
    said = owner.spec.get("schedule")
    if not said or not owner.spec["is_active"] or Recurrence.said(said) is None:
        return None
    fields = {name: said.get(name) for name in FIELDS}
    return _next(tenant_id, Schedule(owner.object_id, fields, now, now), now)


def _starting(due: Due) -> list[ProjectedObject]:
    """What is due and may start."""
    found = [due.owners.get(each.schedule_id) for each in due.schedules]
    return [
        owner for owner in found if due.enabled and owner is not None and owner.spec["is_active"]
    ]


def _run(tenant_id: UUID, connector: ProjectedObject, key: LeasedKey) -> Started:
    run = Run(
        tenant_id=tenant_id,
        connector=connector,
        trigger_kind="schedule",
        trigger_id=connector.object_id,
        event_type="",
        subscription="",
        input={"event": None, "input": connector.spec["schedule"].get("input") or {}},
    )
    return runs.started(run, key)


def _transfer(tenant_id: UUID, stream: ProjectedObject, _key: LeasedKey) -> Started:
    return starting.started(tenant_id, stream, ("schedule", stream.object_id))


STARTS: Final[Mapping[str, Callable[[UUID, ProjectedObject, LeasedKey], Started]]] = {
    CONNECTOR: _run,
    STREAM: _transfer,
}
"""By kind of what has a schedule."""


def _moved(
    tenant_id: UUID, schedules: Sequence[Schedule], now: datetime
) -> tuple[list[Schedule], list[UUID]]:
    """The schedules with their next times, and those that have none."""
    nexts = [_next(tenant_id, each, now) for each in schedules]
    moved = [each for each in nexts if each is not None]
    kept = {each.schedule_id for each in moved}
    return moved, [each.schedule_id for each in schedules if each.schedule_id not in kept]


def _next(tenant_id: UUID, schedule: Schedule, now: datetime) -> Schedule | None:
    """The schedule at its first time after now; None, and a line in the log, where it has none.

    The registry has checked it; our clocks may know other time zones.
    """
    recurrence = Recurrence.said(schedule.recurrence)
    try:
        moment = recurrence.next(schedule.moment, now) if recurrence else None
    except RecurrenceError as error:
        log.warning("schedule %s of tenant %s: %s", schedule.schedule_id, tenant_id, error)
        return None
    if recurrence is None or moment is None:
        return None
    late = recurrence.late(moment, schedule.schedule_id.bytes)
    return replace(schedule, moment=moment, next_at=late)


def _wait(error: TenonError) -> timedelta:
    if isinstance(error, ResourceExhausted) and error.retry_after_s:
        return min(timedelta(seconds=error.retry_after_s), LONGEST_AGAIN)
    return AGAIN
