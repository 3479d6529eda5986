"""Lets pending revisions go that waited too long; a leader's job."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.chassis.retention import Clock, utc_now
from services.registry.reviews.endings import CLOCK, Endings
from services.registry.store import approvals as store
from services.registry.store import tenants

log = logging.getLogger(__name__)

LEADER: Final = "registry.expiry"
EVERY_S: Final = 5.0
AT_ONCE: Final = 100
# Before every row that is due.
FIRST: Final = (datetime.min.replace(tzinfo=UTC), UUID(int=0))


class Expiry:
    """The loop."""

    def __init__(self, database: Database, endings: Endings, clock: Clock = utc_now) -> None:
        self._database = database
        self._endings = endings
        self._clock = clock

    async def follow(self) -> None:
        """A round at once and then every 5 s. Never returns."""
        while True:
            await self.expire()
            await asyncio.sleep(EVERY_S)

    async def expire(self) -> int:
        """One round over all tenants; how many it let go. Safe to repeat, and for two at once.

        What cannot be let go now is left for the next round.
        """
        ended, found, (expiry, pending_id) = 0, AT_ONCE, FIRST
        while found == AT_ONCE:
            place = {"after": expiry, "after_id": pending_id}
            async with self._database.system() as transaction:
                due = await transaction.all(store.DUE, now=self._clock(), size=AT_ONCE, **place)
            found = len(due)
            for one in due:
                ended += await self._tried(one)
                expiry, pending_id = one.expires_at, one.pending_id
        if ended:
            log.info("%d pending revisions expired", ended)
        return ended

    async def _tried(self, due: Any) -> bool:
        """Whether one was let go; one tenant's trouble is not another's."""
        try:
            return await self._expire(due)
        except TenonError as error:
            words = (due.pending_id, due.tenant_id, error.message)
            log.warning("pending revision %s of tenant %s is not let go yet: %s", *words)
            return False

    async def _expire(self, due: Any) -> bool:
        place = {"tenant_id": due.tenant_id, "pending_id": due.pending_id}
        async with self._database.tenant(due.tenant_id) as transaction:
            # The tenant first, as whoever approves does; one that drains is no hindrance.
            await tenants.hold(transaction, due.tenant_id)
            row = await transaction.one(store.LOCK, **place)
            if row is None or row.state != "pending":
                return False
            await self._endings.end(transaction, row, "expired", CLOCK)
        return True
