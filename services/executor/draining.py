"""Lets go of tenants that are being deleted; a leader's job.

Such a tenant is disabled, so nothing of it begins. What runs may end within `drain_s` and is then
cancelled. Transactions that began before the tenant was known to go end within SETTLED_S, and only
after that are its rows deleted, batch by batch, each counted in its own transaction. When none is
left the registry is told, and the tenant itself goes last: who goes on after a crash finds it.
"""

import asyncio
import logging
from collections import Counter
from typing import Final
from uuid import UUID

from services.chassis import errors, failpoints
from services.chassis.database import Database, Transaction
from services.executor.engine import lanes
from services.executor.registry.client import Registry
from services.executor.store import draining as store
from services.executor.store.draining import ROWS, Leaving

log = logging.getLogger(__name__)

LEADER: Final = "executor.draining"
EVERY_S: Final = 0.5
SETTLED_S: Final = 6.0
"""No transaction of ours lasts as long. Source: migrations/roles.py:TRANSACTION_LIMIT."""

AFTER_BATCH: Final = failpoints.declare("drain.batch", "the rest is deleted after the restart")
BEFORE_REPORT: Final = failpoints.declare("drain.before_report", "all is gone, and reported later")
AFTER_REPORT: Final = failpoints.declare("drain.after_report", "all is gone, and reported again")


class Draining:
    """The loop."""

    def __init__(
        self, database: Database, registry: Registry, drain_s: float, settled_s: float = SETTLED_S
    ) -> None:
        self._database = database
        self._registry = registry
        self._drain_s = drain_s
        self._settled_s = settled_s

    async def follow(self) -> None:
        """Look after every tenant that goes, and again soon. Never returns."""
        while True:
            for one in await store.leaving(self._database):
                try:
                    await self.look_after(one)
                except errors.TenonError as error:
                    log.warning("tenant %s is not purged yet: %s", one.tenant_id, error.message)
            await asyncio.sleep(EVERY_S)

    async def look_after(self, one: Leaving) -> bool:
        """Purge a tenant if that is due; whether it has gone."""
        running = await store.running(self._database, one.tenant_id)
        if running and one.age_s >= self._drain_s:
            await self._cancel(one.tenant_id, running)
        # Who does not hear of it loses its claim with the work.
        patience = self._drain_s if running else 0
        if one.age_s < patience + self._settled_s:
            return False
        # What was done here is proof, and goes to the registry first.
        untold = await store.untold(self._database, one.tenant_id)
        if untold and not await self._untellable(one.tenant_id, untold):
            return False
        await self.purge(one.tenant_id)
        return True

    async def purge(self, tenant_id: UUID) -> None:
        """Delete all of a tenant, report it, and forget the tenant. Safe to repeat."""
        while True:
            while await self._batch(tenant_id):
                AFTER_BATCH.hit()
            await self._report(tenant_id)
            if await self._forget(tenant_id):
                return

    async def _untellable(self, tenant_id: UUID, untold: int) -> bool:
        """Whether the registry has no log any more in which what is untold could stand."""
        try:
            await self._registry.record(tenant_id, [])
        except errors.NotFound:
            log.warning("%d audit events of tenant %s go untold", untold, tenant_id)
            return True
        return False

    async def _cancel(self, tenant_id: UUID, running: list[UUID]) -> None:
        for target_id in running:
            async with self._database.tenant(tenant_id) as tx:
                await lanes.cancel(tx, tenant_id, target_id)

    async def _batch(self, tenant_id: UUID) -> bool:
        """Delete one batch; whether there was anything."""
        async with self._database.tenant(tenant_id) as tx:
            return await _delete(tx, tenant_id)

    async def _report(self, tenant_id: UUID) -> None:
        async with self._database.tenant(tenant_id) as tx:
            rows = await store.purged(tx, tenant_id)
        if rows is None:
            return
        BEFORE_REPORT.hit()
        try:
            await self._registry.report_purge(tenant_id, rows)
        except errors.NotFound:
            log.info("the registry knows tenant %s no more", tenant_id)
        AFTER_REPORT.hit()
        log.warning("tenant %s is purged here: %d rows", tenant_id, sum(rows.values()))

    async def _forget(self, tenant_id: UUID) -> bool:
        """Delete the tenant itself, unless somebody has added to it meanwhile; whether it went."""
        async with self._database.tenant(tenant_id) as tx:
            if await _delete(tx, tenant_id):
                return False
            await store.forget(tx, tenant_id)
        return True


async def _delete(tx: Transaction, tenant_id: UUID) -> bool:
    """Delete and count one batch; whether there was anything."""
    gone = await ROWS.purge(tx, tenant_id)
    if gone:
        await store.count(tx, tenant_id, gone + Counter(await store.purged(tx, tenant_id)))
    return bool(gone)
