"""A new data key for a tenant; what the old one wraps is wrapped anew afterwards, by the leader."""

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.rules import Risk
from services.registry.access.changes import By, Changes, Done
from services.registry.audit.log import Event, Log
from services.registry.credentials.sealing import Sealing
from services.registry.credentials.tampering import ITSELF
from services.registry.store import invalidations, tenants
from services.registry.store import keys as store

KIND: Final = "DataKey"
MOST_SEALS: Final = 2**31
"""How often one data key may seal or wrap; after that the tenant gets another one by itself."""

Answer = Callable[[Any], bytes]


class Replacing:
    """The use case; `by_itself` where a key has sealed as often as it may."""

    def __init__(self, database: Database, changes: Changes, sealing: Sealing, events: Log) -> None:
        self._database = database
        self._changes = changes
        self._sealing = sealing
        self._log = events

    async def replace(self, by: By, tenant_id: UUID, answer: Answer) -> bytes:
        """Somebody asks for it."""

        async def act(transaction: Transaction) -> Done:
            row = await self._replaced(transaction, tenant_id)
            return Done(answer(row), _event(row), [invalidations.telling(tenant=tenant_id)])

        return await self._changes.make_inside(by, act)

    async def by_itself(self, tenant_id: UUID) -> None:
        """It is time, unless somebody has seen that before and done it."""
        async with self._database.tenant(tenant_id) as transaction:
            await tenants.hold(transaction, tenant_id)
            current = await transaction.one(store.DATA_KEY, tenant_id=tenant_id)
            if current is None or current.wraps < MOST_SEALS:
                return
            row = await self._replaced(transaction, tenant_id)
            await transaction.pipeline([invalidations.telling(tenant=tenant_id)])
            await self._log.append(transaction, tenant_id, ITSELF, [_event(row)])

    async def _replaced(self, transaction: Transaction, tenant_id: UUID) -> Any:
        """The row of the new key; the old one wraps nothing new from now on."""
        await transaction.run(store.RETIRE, the_tenant_id=tenant_id)
        await transaction.pipeline(self._sealing.fresh(tenant_id).adding)
        return await transaction.one(store.DATA_KEY, tenant_id=tenant_id)


def _event(row: Any) -> Event:
    return Event("replace", KIND, str(row.data_key_id), row.data_key_id, Risk.CRITICAL)
