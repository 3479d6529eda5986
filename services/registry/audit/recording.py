"""Takes what another service of ours did into the log it belongs to, each event once."""

from collections.abc import Sequence
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.registry.audit.log import Log, Told
from services.registry.store import audit as store


class Recording:
    """The use case; the service tells again what it does not know to have been taken."""

    def __init__(self, database: Database, log: Log) -> None:
        self._database = database
        self._log = log

    async def take(self, tenant_id: UUID | None, told: Sequence[Told]) -> int:
        """Append what is not there yet; how many events that were."""
        if tenant_id is None:
            async with self._database.system() as transaction:
                return await self._take(transaction, None, told)
        async with self._database.tenant(tenant_id) as transaction:
            return await self._take(transaction, tenant_id, told)

    async def _take(
        self, transaction: Transaction, tenant_id: UUID | None, told: Sequence[Told]
    ) -> int:
        # The same may be told twice at one time: the second one waits here for the first.
        await self._log.hold(transaction, tenant_id)
        first = {event.told_id: (actor, event) for actor, event in reversed(told)}
        asked = {"ids": list(first)}
        known = Bound(store.book_of(tenant_id).known, {**store.scope_of(tenant_id), **asked})
        (rows,) = await transaction.pipeline([known])
        there = {row.told_id for row in rows}
        new = [each for told_id, each in reversed(first.items()) if told_id not in there]
        await self._log.take(transaction, tenant_id, new)
        return len(new)
