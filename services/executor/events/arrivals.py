"""Wakes those who wait for a tenant's next event: one look for all of them, over many tenants."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.executor.store import positions as store
from services.executor.store.positions import Position

log = logging.getLogger(__name__)

POLL_S: Final = 0.2
TENANTS: Final = 64
"""That one round trip looks at."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """Who wants to hear of what comes after a position."""

    after: Position
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Arrivals:
    """The waiters of one process. Nobody waits: nothing is asked."""

    def __init__(self, database: Database, poll_s: float = POLL_S) -> None:
        self._database = database
        self._poll_s = poll_s
        self._waiting: defaultdict[UUID, set[_Waiter]] = defaultdict(set)
        self._anybody = asyncio.Event()
        self._end = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether the server drains."""
        return self._end.is_set()

    async def end(self) -> None:
        """Return once the server drains."""
        await self._end.wait()

    async def follow(self) -> None:
        """Look for as long as the service runs."""
        while True:
            await self._anybody.wait()
            await asyncio.sleep(self._poll_s)
            tenant_ids = list(self._waiting)
            for begin in range(0, len(tenant_ids), TENANTS):
                try:
                    await self._look(tenant_ids[begin : begin + TENANTS])
                except TenonError as error:
                    log.warning("whether events came in is not known: %s", error.message)

    def close(self) -> None:
        """Wake all for good: a server that drains would wait for them in vain."""
        self._end.set()
        for waiters in self._waiting.values():
            for each in waiters:
                each.woken.set()

    async def after(self, tenant_id: UUID, position: Position, longest_s: float) -> None:
        """Return once there is an event after a position, when it has been long, or at the end."""
        waiter = _Waiter(position)
        with self._registered(tenant_id, waiter), suppress(TimeoutError):
            async with asyncio.timeout(0 if self.closed else longest_s):
                await waiter.woken.wait()

    async def _look(self, tenant_ids: Sequence[UUID]) -> None:
        for tenant_id, head in (await store.heads(self._database, tenant_ids)).items():
            for each in self._waiting.get(tenant_id, ()):
                if each.after < head:
                    each.woken.set()

    @contextmanager
    def _registered(self, tenant_id: UUID, waiter: _Waiter) -> Iterator[None]:
        self._waiting[tenant_id].add(waiter)
        self._anybody.set()
        try:
            yield
        finally:
            self._waiting[tenant_id].discard(waiter)
            if not self._waiting[tenant_id]:
                del self._waiting[tenant_id]
            if not self._waiting:
                self._anybody.clear()
