"""Finds the tenant that a name means, and remembers it for a moment."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from services.chassis.invalidation import Invalidation
from services.chassis.tenancy import Tenant

KEPT_S: Final = 1.0
"""For so long a tenant that has just been disabled may still be taken for an active one."""

MOST: Final = 10_000

Load = Callable[[str], Awaitable[Tenant | None]]


class TenantFinder:
    """Asks `load` for what it has not found within the last moment, or not at all."""

    def __init__(self, load: Load, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._found: dict[str, tuple[Tenant, float]] = {}
        self._drops = 0

    async def find(self, slug_or_id: str) -> Tenant | None:
        """The tenant, by either of its names."""
        now = self._clock()
        kept = self._found.get(slug_or_id)
        if kept is not None and now < kept[1]:
            return kept[0]
        drops = self._drops
        found = await self._load(slug_or_id)
        if found is None or drops != self._drops:
            self._found.pop(slug_or_id, None)
            return found
        if len(self._found) >= MOST:
            self._found.clear()
        self._found[slug_or_id] = (found, now + KEPT_S)
        return found

    def forget(self, told: Invalidation) -> None:
        """Drop a tenant that is in another state now; what is being loaded is not kept."""
        if told.what not in {"tenant", "everything"}:
            return
        self._drops += 1
        tenant_id = told.tenant_id
        gone = [
            name for name, (found, _) in self._found.items() if tenant_id in {None, found.tenant_id}
        ]
        for name in gone:
            del self._found[name]
