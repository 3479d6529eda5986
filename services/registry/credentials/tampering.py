"""What was moved, changed or rolled back is refused, and stands in the audit log."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.envelope import Unsealable
from services.chassis.errors import TenonError
from services.chassis.rules import Risk
from services.registry.audit.log import Actor, Event, Log

QUIET_S: Final = 60.0
ACTION: Final = "open"
NOBODY: Final = UUID(int=0)
ITSELF: Final = Actor(NOBODY, "service", "registry", "", address="", user_agent="", request_id="")


class Tampering:
    """Tells of it, once a minute for the same thing."""

    def __init__(
        self, database: Database, events: Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._log = events
        self._clock = clock
        self._told: dict[tuple[UUID, str, str], float] = {}

    @asynccontextmanager
    async def telling(
        self, tenant_id: UUID, kind: str, name: str, object_id: UUID = NOBODY
    ) -> AsyncIterator[None]:
        """Tell of an Unsealable that the block raises, and let it go on."""
        try:
            yield
        except Unsealable:
            await self.tell(tenant_id, kind, name, object_id)
            raise

    async def tell(self, tenant_id: UUID, kind: str, name: str, object_id: UUID) -> None:
        """Tell of something that does not open."""
        now, what = self._clock(), (tenant_id, kind, name)
        if now - self._told.get(what, -QUIET_S) < QUIET_S:
            return
        self._told[what] = now
        event = Event(
            ACTION,
            kind,
            name,
            object_id,
            Risk.CRITICAL,
            outcome="failed",
            error=Unsealable.reason,
            alarming=True,
        )
        try:
            async with self._database.tenant(tenant_id) as transaction:
                await self._log.append(transaction, tenant_id, ITSELF, [event])
        except TenonError:
            # The caller shall hear what happened to the credential, not to its record.
            del self._told[what]
