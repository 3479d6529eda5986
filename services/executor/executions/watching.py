"""Who waits for an execution's end, or watches it change: in this process, wherever it runs."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import NotFound, ResourceExhausted
from services.executor.store import executions as store
from services.executor.store.executions import Execution

POLL_S: Final = 2.0
"""How often one who waits looks by themselves; notices make them look sooner."""
LONGEST_WATCH_S: Final = 600.0
MOST_WATCHES: Final = 500
"""At once in one process: each looks at the database every `POLL_S` seconds."""


class Waiter:
    """One who waits: `woken` when to look, `found` where the end is known without.

    Where the execution `runs_here`, its end is told with what was found, so that notices, which
    come a little sooner, wake nobody.
    """

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.found: Execution | None = None
        self.runs_here = False

    async def rest(self, seconds: float) -> None:
        """Return when woken, or when the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self.woken.wait()


class Changes:
    """Tells waiters of this process that an execution has changed or ended, wherever it runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: defaultdict[str, set[Waiter]] = defaultdict(set)

    async def follow(self) -> None:
        """Listen to the other processes; never returns."""
        async with aclosing(self._database.listen(store.CHANGED_CHANNEL)) as notices:
            async for changed in notices:
                for name in list(self._waiting) if changed is None else [changed]:
                    self._tell(name, None)

    def tell(self, execution_id: UUID, found: Execution | None) -> None:
        """An execution has ended in this process, as `found`."""
        self._tell(str(execution_id), found)

    @asynccontextmanager
    async def waiting(self, execution_id: UUID) -> AsyncIterator[Waiter]:
        """A waiter that is woken when the execution may have changed."""
        waiter, name = Waiter(), str(execution_id)
        self._waiting[name].add(waiter)
        try:
            yield waiter
        finally:
            self._waiting[name].discard(waiter)
            if not self._waiting[name]:
                del self._waiting[name]

    def waiters(self) -> int:
        """How many wait in this process."""
        return sum(map(len, self._waiting.values()))

    def _tell(self, name: str, found: Execution | None) -> None:
        for waiter in self._waiting.get(name, ()):
            if found is not None or not waiter.runs_here:
                waiter.found = found or waiter.found
                waiter.woken.set()


class Watches:
    """Shows executions as they change."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes
        self._open = 0

    async def watch(self, tenant_id: UUID, execution_id: UUID) -> AsyncGenerator[Execution, None]:
        """An execution as it is, then each time it has changed, until it has ended.

        It ends after `LONGEST_WATCH_S` seconds at the latest. Who reads slowly misses what was
        between, never the end. Raises NotFound; ResourceExhausted where too many watch.
        """
        if self._open >= MOST_WATCHES:
            raise ResourceExhausted(
                f"{MOST_WATCHES} executions are watched here already", reason="WATCHES_EXHAUSTED"
            )
        self._open += 1
        try:
            async with self._changes.waiting(execution_id) as waiter:
                async for found in self._changing(tenant_id, execution_id, waiter):
                    yield found
        finally:
            self._open -= 1

    async def _changing(
        self, tenant_id: UUID, execution_id: UUID, waiter: Waiter
    ) -> AsyncGenerator[Execution, None]:
        now = asyncio.get_running_loop().time
        until = now() + LONGEST_WATCH_S
        # First through the tenant's own eyes: what a waiter is told is not asked for its tenant.
        last = await self._look(tenant_id, execution_id)
        yield last
        while not last.ended and now() < until:
            await waiter.rest(min(POLL_S, until - now()))
            waiter.woken.clear()
            found = waiter.found or await self._look(tenant_id, execution_id)
            if found != last:
                yield found
            last = found

    async def _look(self, tenant_id: UUID, execution_id: UUID) -> Execution:
        found = await store.watch(self._database, tenant_id, execution_id)
        if found is None:
            raise NotFound(f"executions/{execution_id} does not exist")
        return found
