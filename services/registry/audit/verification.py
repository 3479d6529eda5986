"""Walks a whole log, page by page, and says what is wrong with it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.registry.audit.anchors import Anchors
from services.registry.audit.chain import Chains
from services.registry.audit.reading import Audit
from services.registry.audit.walk import Fault, Walk
from services.registry.store import audit as store

PAGE: Final = 1000
MOST_NAMED: Final = 1000
FIRST: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a walk came to; `faults` counts those that were not named, too."""

    from_seq: int
    to_seq: int
    faults: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a walk is; the last one has the verdict."""

    checked: int
    total: int
    faults: tuple[Fault, ...] = ()
    verdict: Verdict | None = None


class Verification:
    """Verifies logs while they are appended to: nothing is locked."""

    def __init__(self, audit: Audit, anchors: Anchors, chains: Chains) -> None:
        self._audit = audit
        self._anchors = anchors
        self._chains = chains

    async def verify(self, tenant_id: UUID | None) -> AsyncGenerator[Progress, None]:
        """How the walk goes on, and what it finds; the verdict last."""
        head = await self._head(tenant_id)
        walk = Walk(self._chains(tenant_id), await self._anchors.known(tenant_id), head)
        total, count = head.seq - walk.from_seq if head else 0, 0
        place = (0, FIRST)
        while True:
            # In this order: whatever the head had counted by now is among the rows read next.
            head = await self._head(tenant_id)
            rows = await self._page(tenant_id, place)
            if not rows:
                break
            place = (rows[-1].seq, rows[-1].id)
            if walk.lacks(rows):
                await self._forgive(walk, tenant_id)
            faults = list(walk.take(rows))
            named, count = _named(faults, count)
            yield Progress(walk.checked, max(total, walk.checked), named)
        await self._forgive(walk, tenant_id)
        named, count = _named(list(walk.end(head)), count)
        verdict = Verdict(walk.from_seq, walk.seq, count)
        yield Progress(walk.checked, walk.checked, named, verdict)

    async def _forgive(self, walk: Walk, tenant_id: UUID | None) -> None:
        """A month may have gone meanwhile; its anchor was there before it went."""
        walk.forgive(await self._anchors.known(tenant_id))

    async def _head(self, tenant_id: UUID | None) -> Any:
        rows = await self._audit.read(tenant_id, store.book_of(tenant_id).head, {})
        return rows[0] if rows else None

    async def _page(self, tenant_id: UUID | None, place: tuple[int, UUID]) -> list[Any]:
        after, seen = place
        asked = {"after": after, "seen": seen, "size": PAGE}
        return await self._audit.read(tenant_id, store.book_of(tenant_id).walk, asked)


def _named(faults: list[Fault], before: int) -> tuple[tuple[Fault, ...], int]:
    """Those of the faults that are still to be named, and how many there are by now."""
    return tuple(faults[: max(0, MOST_NAMED - before)]), before + len(faults)
