"""Goes round all tenants, counts the work there is, and repairs lanes that nobody would look at.

It must never find one: the protocol of `lanes` leaves none behind. If it does, work was late by a
fault of ours, which the count of repairs and a warning say. A leader's job.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from services.chassis.cache import Clock
from services.chassis.database import Database
from services.executor.engine import lanes
from services.executor.store import doctor as store
from services.executor.store.doctor import Examined, Load

log = logging.getLogger(__name__)

LEADER: Final = "executor.doctor"
TENANTS_AT_ONCE: Final = 64
REST_S: Final = 5.0
REST_SHARE: Final = 20
"""It rests so many times as long as a round took: it takes a twentieth of one core at most."""
GRACE: Final = timedelta(seconds=15)
"""How much later than it should a lane may be looked at; more than any wait the lanes choose."""


class Doctor:
    """The loop. `loads` is the work by kind in the last round, None while another process leads.

    `repairs` counts what was repaired since the start: lanes and tenants.
    """

    def __init__(
        self, database: Database, grace: timedelta = GRACE, clock: Clock = time.monotonic
    ) -> None:
        self._database = database
        self._grace = grace
        self._clock = clock
        self.loads: dict[str, Load] | None = None
        self.repairs: Counter[str] = Counter({"lane": 0, "tenant": 0})

    async def follow(self) -> None:
        """Round after round, until cancelled."""
        try:
            while True:
                begun = self._clock()
                await self.round()
                await asyncio.sleep(max(REST_S, REST_SHARE * (self._clock() - begun)))
        finally:
            self.loads = None

    async def round(self) -> None:
        """One look at every tenant; safe to repeat, and for two at once."""
        found: list[Load] = []
        after = store.FIRST
        while tenant_ids := await store.tenants_after(self._database, after, TENANTS_AT_ONCE):
            for tenant_id, examined in (await self._examined(tenant_ids)).items():
                found += examined.loads
                if examined.lane_ids or examined.tenant:
                    await self._mend(tenant_id, examined)
            after = tenant_ids[-1]
        self.loads = _totals(found)

    async def _examined(self, tenant_ids: Sequence[UUID]) -> dict[UUID, Examined]:
        return await store.examine(self._database, tenant_ids, self._grace)

    async def _mend(self, tenant_id: UUID, examined: Examined) -> None:
        lane_ids, tenant = await store.mend(
            self._database, tenant_id, examined.lane_ids, self._grace
        )
        await self._database.tell(lanes.CHANNEL)
        self.repairs.update({"lane": len(lane_ids), "tenant": int(tenant)})
        for lane_id in lane_ids:
            log.warning("lane %s of tenant %s slept over its work and is woken", lane_id, tenant_id)
        if tenant:
            log.warning("tenant %s slept over its lanes and is woken", tenant_id)


def _totals(loads: Iterable[Load]) -> dict[str, Load]:
    """The loads of all tenants together, by kind."""
    totals: dict[str, Load] = {}
    for load in loads:
        so_far = totals.get(load.kind, Load(load.kind, 0, 0, 0, 0.0))
        totals[load.kind] = Load(
            load.kind,
            so_far.waiting + load.waiting,
            so_far.due + load.due,
            so_far.claimed + load.claimed,
            max(so_far.oldest_s, load.oldest_s),
        )
    return totals
