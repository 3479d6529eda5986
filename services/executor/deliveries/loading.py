"""Reads what deliveries need to be sent, many at once.

While one read is on its way, what is wanted meanwhile waits for the next: who comes alone waits for
nobody, and many share a round trip.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import UUID

from services.chassis.database import Answers, Bound, Database
from services.chassis.errors import TenonError
from services.executor.engine.work import Claimed
from services.executor.store import deliveries as store
from services.executor.store.deliveries import Taken, Wanted

AT_ONCE: Final = 2
"""Reads on their way; the second is made ready while the first is read."""
LARGEST: Final = 128


@dataclass(slots=True)
class _Asked:
    """What one delivery waits for."""

    tenant_id: UUID
    wanted: Wanted
    answer: "asyncio.Future[Taken | None]" = field(repr=False)


class Loading:
    """The reads of one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Asked] = []
        self._reads: set[asyncio.Task[None]] = set()

    async def load(self, claimed: Claimed) -> Taken | None:
        """The delivery that a claim is about; None where it is gone. Raises Unavailable."""
        answer: asyncio.Future[Taken | None] = asyncio.get_running_loop().create_future()
        # An endpoint's lane has its id.
        wanted = (claimed.target_id, claimed.lane_id)
        self._waiting.append(_Asked(claimed.tenant_id, wanted, answer))
        self._begin()
        return await answer

    def _begin(self) -> None:
        """Read what waits, unless enough is on its way; each that ends looks again."""
        if not self._waiting or len(self._reads) >= AT_ONCE:
            return
        read = asyncio.create_task(self._read())
        self._reads.add(read)
        read.add_done_callback(self._ended)

    def _ended(self, read: "asyncio.Task[None]") -> None:
        self._reads.discard(read)
        self._begin()

    async def _read(self) -> None:
        # Taken now and not when the read was begun: who is started together is read together.
        asked, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
        if not asked:
            return
        asked.sort(key=attrgetter("tenant_id"))
        try:
            for of, answers in await self._database.batch(asked, _arranged, durable=False):
                _tell(of, answers)
        except Exception as error:  # noqa: BLE001 - those who wait for the answer raise it
            _fail(asked, error)


def _arranged(asked: Sequence[_Asked]) -> dict[UUID, list[Bound]]:
    return {
        tenant_id: store.taking(tenant_id, [each.wanted for each in of])
        for tenant_id, of in _by_tenant(asked).items()
    }


def _by_tenant(asked: Sequence[_Asked]) -> dict[UUID, list[_Asked]]:
    return {tenant_id: list(of) for tenant_id, of in groupby(asked, attrgetter("tenant_id"))}


def _tell(asked: Sequence[_Asked], answers: Answers | TenonError) -> None:
    """Give each its own, of a transaction's answers."""
    if isinstance(answers, TenonError):
        _fail(asked, answers)
        return
    for tenant_id, of in _by_tenant(asked).items():
        found = store.taken([each.wanted for each in of], answers[tenant_id])
        for each, taken in zip(of, found, strict=True):
            if not each.answer.done():
                each.answer.set_result(taken)


def _fail(asked: Sequence[_Asked], error: Exception) -> None:
    for each in asked:
        if not each.answer.done():
            each.answer.set_exception(error)
