"""Finds the tenant that a name means, and remembers it for a moment."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

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

    async def find(self, slug_or_id: str) -> Tenant | None:
        """The tenant, by either of its names."""
        now = self._clock()
        kept = self._found.get(slug_or_id)
        if kept is not None and now < kept[1]:
            return kept[0]
        found = await self._load(slug_or_id)
        if found is None:
            self._found.pop(slug_or_id, None)
            return None
        if len(self._found) >= MOST:
            self._found.clear()
        self._found[slug_or_id] = (found, now + KEPT_S)
        return found
