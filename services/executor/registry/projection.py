"""Follows the registry's feed and keeps each tenant's wanted state here; a leader's job.

A tenant that changed is *owed* until its snapshot is written and reported. One that cannot be had
is tried again later while the others go on; the stored position does not pass it, so that a new
leader owes it too. A snapshot is written only over the revision that was there before it was asked
for: two leaders for a moment cannot put an older one over a newer, and a registry restored to an
older state is followed there. A tenant that the registry has deleted is on its way out here, too;
of one that it does not know (it may have been restored to before its time) nothing begins.
"""

import asyncio
import logging
import math
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from services.chassis import errors, failpoints
from services.chassis.cache import Clock
from services.chassis.database import Database
from services.chassis.retention import utc_now
from services.executor.engine import steering
from services.executor.engine.governing import govern
from services.executor.engine.steering import Limits
from services.executor.executions import scheduler
from services.executor.executions.actions import with_actions
from services.executor.ingress import app_doors
from services.executor.registry.client import Registry
from services.executor.registry.messages import FeedMessage, Snapshot
from services.executor.store import app_streams, cursor, projected, tenants
from services.executor.store.tenants import ProjectedTenant
from services.executor.syncs.streams import with_streams

log = logging.getLogger(__name__)

LEADER: Final = "executor.projection"
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
RECONNECT_S: Final = 1.0
STORED_S: Final = 0.5
"""Between two times that the position is stored."""

BEFORE_COMMIT: Final = failpoints.declare(
    "projection.before_commit", "the older projection is whole, and the tenant is projected again"
)


@dataclass(slots=True)
class _Owed:
    """When a tenant is to be tried, on our clock, and how often it was."""

    due: float
    tries: int = 0


class Projection:
    """The follower."""

    def __init__(
        self, database: Database, registry: Registry, clock: Clock = time.monotonic
    ) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock
        self._owed: dict[UUID, _Owed] = {}
        self._known: dict[UUID, int] = {}
        self._stored = ""
        self._stored_at = -math.inf

    async def follow(self) -> None:
        """Follow the feed until cancelled, whatever becomes of the registry."""
        while True:
            try:
                await self._follow()
            except (errors.OutOfRange, errors.InvalidArgument):
                log.warning("the feed does not reach back to our position: all is read again")
                await cursor.write(self._database, "")
            except errors.TenonError as error:
                log.warning("the feed is interrupted: %s", error.message)
            await asyncio.sleep(RECONNECT_S)

    async def _follow(self) -> None:
        self._owed.clear()
        self._known.clear()
        self._stored = await cursor.read(self._database)
        if not self._stored:
            await self._owe_all()
        async with aclosing(self._registry.watch_feed(self._stored)) as messages:
            async for message in messages:
                self._note(message)
                await self._settle()
                await self._advance(message.position)

    async def _owe_all(self) -> None:
        """Owe every tenant that is here: the feed does not tell of those purged long ago."""
        now = self._clock()
        self._owed = {tenant_id: _Owed(now) for tenant_id in await tenants.ids(self._database)}

    def _note(self, message: FeedMessage) -> None:
        changed = message.changed
        if changed is not None and (
            changed.leaving or changed.revision > self._known.get(changed.tenant_id, 0)
        ):
            self._owed.setdefault(changed.tenant_id, _Owed(self._clock()))

    async def _settle(self) -> None:
        """Project each owed tenant that is due; the feed's sign of life is the clock of retries."""
        now = self._clock()
        for tenant_id, owed in list(self._owed.items()):
            if owed.due <= now:
                await self._try(tenant_id, owed)

    async def _try(self, tenant_id: UUID, owed: _Owed) -> None:
        try:
            self._known[tenant_id] = await self.project(tenant_id)
        except Exception as error:  # one tenant's fault must not stop the others
            owed.tries += 1
            wait = min(FIRST_WAIT_S * 2**owed.tries, LONGEST_WAIT_S)
            owed.due = self._clock() + wait
            expected = isinstance(error, errors.TenonError)
            log.warning(
                "tenant %s is not projected: %s; again in %d s",
                tenant_id,
                error,
                wait,
                exc_info=None if expected else error,
            )
        else:
            del self._owed[tenant_id]

    async def project(self, tenant_id: UUID) -> int:
        """Bring one tenant to what it wants now, and report it; answers with the revision.

        One that the registry does not know is let go. Safe to repeat. Raises Aborted when another
        leader wrote meanwhile.
        """
        before = await tenants.get(self._database, tenant_id)
        try:
            snapshot = await self._registry.snapshot(tenant_id)
        except errors.NotFound:
            return await self._let_go(before)
        await self._write(snapshot, None if before is None else before.revision)
        await self._registry.report_projection(tenant_id, snapshot.revision)
        return snapshot.revision

    async def _let_go(self, before: ProjectedTenant | None) -> int:
        """Put a tenant that the registry has deleted on its way out: it wants nothing any more."""
        if before is None or before.draining:
            return 0
        if not await self._registry.has_deleted(before.tenant_id):
            return await self._hold(before)
        log.warning("the registry has deleted tenant %s: it goes", before.tenant_id)
        # One revision on, as the registry's own deletion does.
        gone = Snapshot(
            *(before.tenant_id, before.slug, before.revision + 1),
            enabled=False,
            limits=Limits(paused=True),
            objects=(),
            draining=True,
        )
        await self._write(gone, before.revision)
        return gone.revision

    async def _hold(self, before: ProjectedTenant) -> int:
        """Let nothing of a tenant begin that the registry does not know: it may be an older one."""
        if not before.enabled:
            return 0
        log.warning("the registry does not know tenant %s: nothing of it begins", before.tenant_id)
        async with self._database.tenant(before.tenant_id) as tx:
            held = replace(before, enabled=False)
            if not await tenants.write(tx, held, seen=before.revision):
                raise errors.Aborted("another leader projects this tenant")
            await steering.govern(tx, before.tenant_id, Limits(paused=True))
        return 0

    async def _write(self, snapshot: Snapshot, seen: int | None) -> None:
        tenant = ProjectedTenant(
            snapshot.tenant_id,
            snapshot.slug,
            snapshot.enabled,
            snapshot.revision,
            snapshot.draining,
        )
        objects = with_streams(with_actions(snapshot.objects))
        async with self._database.tenant(snapshot.tenant_id) as tx:
            if not await tenants.write(tx, tenant, seen=seen):
                raise errors.Aborted("another leader projects this tenant")
            await projected.replace(tx, snapshot.tenant_id, objects)
            await app_streams.replace(
                tx, snapshot.tenant_id, app_doors.owned(objects), app_doors.claimed(objects)
            )
            await scheduler.replace_all(tx, snapshot.tenant_id, objects, utc_now())
            await govern(tx, snapshot.tenant_id, snapshot.limits, objects)
            BEFORE_COMMIT.hit()

    async def _advance(self, position: str) -> None:
        """Store how far we are, now and then: a long feed is read much faster than it is stored.

        A sign of life brings the last position again, and what is read twice is projected once.
        """
        now = self._clock()
        if self._owed or position == self._stored or now < self._stored_at + STORED_S:
            return
        await cursor.write(self._database, position)
        self._stored, self._stored_at = position, now
