"""Purges tenants of which the executor has nothing any more; a leader's job.

Batch by batch, each with what it deleted counted in its own transaction, so that who goes on after
a crash tells all of it. The last transaction holds the tenant's row, looks once more, blanks what
is left of the tenant, and writes the end into its audit log.
"""

import asyncio
import logging
from collections import Counter
from typing import Any, Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.chassis.rules import Risk
from services.registry.audit import log as audit
from services.registry.store import invalidations, principals, tombstones
from services.registry.store.purge import ROWS

log = logging.getLogger(__name__)

LEADER: Final = "registry.purge"
EVERY_S: Final = 1.0

ITSELF: Final = audit.Actor(
    UUID(int=0), "service", "registry", "", address="", user_agent="", request_id=""
)
"""Who acts where nobody asks any more: the tombstone says who asked."""

AFTER_BATCH: Final = failpoints.declare("purge.batch", "the rest is deleted after the restart")
BEFORE_END: Final = failpoints.declare("purge.before_end", "the tenant is purged after the restart")
AFTER_END: Final = failpoints.declare("purge.after_end", "the tenant is purged")


class Purge:
    """The loop."""

    def __init__(self, database: Database, events: audit.Log) -> None:
        self._database = database
        self._log = events

    async def follow(self) -> None:
        """Purge what is due, and look again every second. Never returns."""
        while True:
            for tenant_id in await tombstones.due(self._database):
                try:
                    await self.purge(tenant_id)
                except TenonError as error:
                    log.warning("tenant %s is not purged yet: %s", tenant_id, error.message)
            await asyncio.sleep(EVERY_S)

    async def purge(self, tenant_id: UUID) -> None:
        """Delete all of a tenant but the proof; safe to repeat."""
        await self._disable(tenant_id)
        while await self._batch(tenant_id):
            AFTER_BATCH.hit()
        await self._end(tenant_id)
        AFTER_END.hit()

    async def _disable(self, tenant_id: UUID) -> None:
        """Let nobody call any more who is the tenant's own: nobody is left to take keys back.

        A tenant on its way out makes no principals, and enables none.
        """
        async with self._database.system() as transaction:
            gone = await transaction.all(principals.DISABLE_OF_TENANT, tenant_id=tenant_id)
            if gone:
                await transaction.pipeline(
                    [invalidations.telling(principal=row.principal_id) for row in gone]
                )

    async def _batch(self, tenant_id: UUID) -> bool:
        """Delete one batch; whether there was anything."""
        async with self._database.tenant(tenant_id) as transaction:
            gone = await ROWS.purge(transaction, tenant_id)
            if gone:
                stone = await tombstones.get(transaction, tenant_id)
                rows = Counter(stone.registry_rows) + gone
                await tombstones.count(transaction, tenant_id, rows)
        return bool(gone)

    async def _end(self, tenant_id: UUID) -> None:
        async with self._database.tenant(tenant_id) as transaction:
            if not await tombstones.still_drains(transaction, tenant_id):
                return
            late = await ROWS.purge(transaction, tenant_id)
            stone = await tombstones.get(transaction, tenant_id)
            rows = Counter(stone.registry_rows) + late
            await tombstones.count(transaction, tenant_id, rows)
            calls = [*tombstones.ending(tenant_id), invalidations.telling(tenant=tenant_id)]
            await transaction.pipeline(calls)
            await self._log.append(transaction, tenant_id, ITSELF, [_event(stone)])
            BEFORE_END.hit()
        log.warning(
            "tenant %s is purged: %d rows here, %d in the executor",
            tenant_id,
            rows.total(),
            sum(stone.executor_rows.values()),
        )


def _event(stone: Any) -> audit.Event:
    return audit.Event(
        action="purge",
        kind="Tenant",
        object=stone.slug,
        object_id=stone.tenant_id,
        risk=Risk.CRITICAL,
    )
