"""Tells the registry's audit log what was done here; a leader's job.

What the registry has taken is forgotten afterwards: who is killed in between tells it again, and
the registry takes an event of the same id once.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol
from uuid import UUID

from services.chassis import errors, failpoints
from services.chassis.database import Database
from services.executor.store import audit_outbox as store
from services.executor.store.audit_outbox import Told

log = logging.getLogger(__name__)

LEADER: Final = "executor.audit"
EVERY_S: Final = 0.5
AT_ONCE: Final = 200

BEFORE_RECORD: Final = failpoints.declare("ship.before_record", "it waits, and is told later")
AFTER_RECORD: Final = failpoints.declare("ship.after_record", "it is told again, and taken once")


class AuditLog(Protocol):
    """Where events are told: the registry."""

    async def record(self, tenant_id: UUID | None, told: Sequence[Told]) -> None:
        """Take events into a log, each once. Raises NotFound for a tenant that is no more."""
        ...


class Shipping:
    """The loop."""

    def __init__(self, database: Database, audit_log: AuditLog) -> None:
        self._database = database
        self._audit_log = audit_log

    async def follow(self) -> None:
        """Tell what waits, and look again soon. Never returns."""
        while True:
            while await self.ship():
                pass
            await asyncio.sleep(EVERY_S)

    async def ship(self) -> int:
        """Tell the oldest that wait; how many were taken."""
        waiting = await store.oldest(self._database, AT_ONCE)
        by_log: dict[UUID | None, list[Told]] = {}
        for one in waiting:
            by_log.setdefault(one.tenant_id, []).append(one)
        return sum([await self._tell(tenant_id, told) for tenant_id, told in by_log.items()])

    async def _tell(self, tenant_id: UUID | None, told: Sequence[Told]) -> int:
        BEFORE_RECORD.hit()
        try:
            await self._audit_log.record(tenant_id, told)
        except errors.TenonError as error:
            log.warning(
                "%d audit events of %s wait: %s",
                *(len(told), tenant_id or "the platform", error.message),
            )
            return 0
        AFTER_RECORD.hit()
        await store.forget(self._database, tenant_id, [one.event_id for one in told])
        return len(told)
