"""Ends work before its time, together with what it is about and the word of who did it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

from services.chassis.database import Bound, Database
from services.chassis.database_errors import Deadlocked
from services.executor.engine import lanes

DEADLOCKS: Final = 2
"""So often another try is made where its worker records something at the same moment."""


async def cancelled(
    database: Database, tenant_id: UUID, target_id: UUID, ending: Sequence[Bound], told: Bound
) -> bool:
    """Cancel the work on a target; True: it waited, and has ended now by `ending`.

    False: it runs, and its worker is told to end it; or there is none. `told` is kept either way.
    """
    for _ in range(DEADLOCKS):
        with suppress(Deadlocked):
            return await _once(database, tenant_id, target_id, ending, told)
    return await _once(database, tenant_id, target_id, ending, told)


async def _once(
    database: Database, tenant_id: UUID, target_id: UUID, ending: Sequence[Bound], told: Bound
) -> bool:
    async with database.tenant(tenant_id) as tx:
        gone = await lanes.cancel(tx, tenant_id, target_id)
        await tx.pipeline([*(ending if gone else ()), told])
    return gone
