"""Brings everything to the newest keys: a leader's job, in small batches, safe to repeat.

What is left to do stands in the rows themselves: which version wraps them, which data key. So
whoever leads next goes on where the last one was killed, and a second leader does no harm.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis import envelope, failpoints
from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import TenonError
from services.chassis.rules import Risk
from services.registry.access.changes import event
from services.registry.audit.log import Actor, Log
from services.registry.credentials.places import key_place
from services.registry.keys.holding import Holding
from services.registry.keys.vault import TenantKey, Vault, Wrapped
from services.registry.keys.versions import KIND
from services.registry.store import keys as store
from services.registry.store.keys import OfDataKey, Rewrapped

log = logging.getLogger(__name__)

LEADER: Final = "registry.keys"
EVERY_S: Final = 1.0
GLANCE_S: Final = 0.25
BATCH: Final = 500

AFTER_PROMOTION: Final = failpoints.declare(
    "rewrap.after_promotion", "the new version wraps; the next leader rewraps everything"
)
IN_BATCH: Final = failpoints.declare("rewrap.in_batch", "the batch is as it was, and is done again")
AFTER_BATCH: Final = failpoints.declare("rewrap.after_batch", "the next leader goes on behind it")

ITSELF: Final = Actor(
    UUID(int=0), "service", "registry", "", address="", user_agent="", request_id=""
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: `waiting_for` has the hosts that lack the pending version."""

    version: int
    done: int
    total: int
    waiting_for: tuple[str, ...] = ()


class Rewrapping:
    """The loop, and how far it is. `retired_for`: how long a replaced data key stays openable."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        holding: Holding,
        events: Log,
        retired_for: timedelta,
    ) -> None:
        self._database = database
        self._vault = vault
        self._holding = holding
        self._log = events
        self._retired_for = retired_for

    async def follow(self) -> None:
        """Promote, rewrap, shred; look again every second. Never returns."""
        while True:
            await self.round()
            await asyncio.sleep(EVERY_S)

    async def round(self) -> None:
        """All there is to do now."""
        await self._promote()
        for each in store.WRAPPED_BY_VERSION:
            while await self._rewrap(each):
                AFTER_BATCH.hit()
        async with self._database.system() as transaction:
            retired = await transaction.all(store.RETIRED, shredded_after=self._retired_for)
        for row in retired:
            try:
                await self._replace(row)
            except TenonError as error:
                log.warning("data key of tenant %s: %s", row.tenant_id, error.message)

    async def progress(self, tenant_id: UUID | None) -> AsyncIterator[Progress]:
        """How far a tenant, or the deployment, is; ends once nothing is left."""
        most = 0
        while True:
            version, left, waiting_for = await self._left(tenant_id)
            most = max(most, left)
            yield Progress(version, most - left, most, waiting_for)
            if not left and not waiting_for:
                return
            await asyncio.sleep(GLANCE_S)

    async def _promote(self) -> None:
        """Let the pending version wrap once every registry that runs has it."""
        async with self._database.system() as transaction:
            await transaction.run(store.FORGET_HOLDERS, gone=store.GONE)
            rows = await transaction.all(store.LOCK_VERSIONS)
            pending = next((row for row in rows if row.state == "pending"), None)
            if pending is None or await _lacking(transaction, pending.version):
                return
            active = next(row for row in rows if row.state == "active")
            moves = ((active.version, "decrypt_only"), (pending.version, "active"))
            await transaction.pipeline(
                [
                    *(Bound(store.SET_STATE, {"the_version": v, "state": s}) for v, s in moves),
                    Bound(store.TELL),
                ]
            )
            told = event(
                *("activate", KIND, f"version {pending.version}", UUID(int=pending.version)),
                *(Risk.HIGH, {"state": "pending"}, {"state": "active"}),
            )
            await self._log.append_platform(transaction, ITSELF, [told])
        AFTER_PROMOTION.hit()
        await self._holding.refresh()
        log.info("version %d of the key-encryption key wraps from now on", pending.version)

    async def _rewrap(self, of: Rewrapped) -> bool:
        """One batch of a table; whether there was any."""
        active = self._vault.ring.active
        async with self._database.system() as transaction:
            rows = await transaction.all(of.batch, version=active, size=BATCH)
            if not rows:
                return False
            fresh = await asyncio.to_thread(_rewrapped, self._vault, of, rows)
            await transaction.run(of.put, **fresh)
            IN_BATCH.hit()
        return True

    async def _replace(self, row: Any) -> None:
        """Wrap by a tenant's current data key all that a retired one wraps."""
        for each in store.WRAPPED_BY_DATA_KEY:
            while await self._replace_batch(each, row.tenant_id, row.data_key_id):
                AFTER_BATCH.hit()
        if row.has_had_its_time:
            shredded = {"the_tenant_id": row.tenant_id, "the_data_key_id": row.data_key_id}
            async with self._database.tenant(row.tenant_id) as transaction:
                await transaction.run(store.SHRED_DATA_KEY, **shredded)

    async def _replace_batch(self, of: OfDataKey, tenant_id: UUID, old_id: UUID) -> bool:
        place = {"tenant_id": tenant_id, "data_key_id": old_id}
        async with self._database.tenant(tenant_id) as transaction:
            rows = await transaction.all(of.batch, **place, size=BATCH)
            if not rows:
                return False
            old, new = await _both_keys(transaction, self._vault, tenant_id, old_id)
            keys = await asyncio.to_thread(_moved, of, rows, old, new)
            await transaction.run(
                of.put,
                **place,
                new_data_key_id=new.data_key_id,
                ids=[row.id for row in rows],
                keys=keys,
            )
            IN_BATCH.hit()
        return True

    async def _left(self, tenant_id: UUID | None) -> tuple[int, int, tuple[str, ...]]:
        if tenant_id is not None:
            return await self._left_of(tenant_id)
        async with self._database.system() as transaction:
            rows = await transaction.all(store.VERSIONS)
            newest = next(row for row in rows if row.state in {"pending", "active"})
            counts = [
                Bound(each.left, {"version": newest.version}) for each in store.WRAPPED_BY_VERSION
            ]
            left = sum(found[0].left for found in await transaction.pipeline(counts))
            waiting = newest.state == "pending"
            lacking = await _lacking(transaction, newest.version) if waiting else ()
        # While it waits to be promoted there is something left to do, if nothing else.
        return newest.version, left + waiting, lacking

    async def _left_of(self, tenant_id: UUID) -> tuple[int, int, tuple[str, ...]]:
        async with self._database.system() as transaction:
            retired = await transaction.all(store.RETIRED, shredded_after=self._retired_for)
        mine = [row.data_key_id for row in retired if row.tenant_id == tenant_id]
        counts = [
            Bound(each.left, {"tenant_id": tenant_id, "data_key_id": data_key_id})
            for data_key_id in mine
            for each in store.WRAPPED_BY_DATA_KEY
        ]
        async with self._database.tenant(tenant_id) as transaction:
            left = sum(found[0].left for found in await transaction.pipeline(counts))
        return self._vault.ring.active, left, ()


async def _lacking(transaction: Transaction, version: int) -> tuple[str, ...]:
    holders = await transaction.all(store.HOLDERS, gone=store.GONE)
    return tuple(row.host for row in holders if version not in row.versions)


async def _both_keys(
    transaction: Transaction, vault: Vault, tenant_id: UUID, old_id: UUID
) -> tuple[TenantKey, TenantKey]:
    (old,), (new,) = await transaction.pipeline(
        [
            Bound(store.DATA_KEY_OF, {"tenant_id": tenant_id, "data_key_id": old_id}),
            Bound(store.DATA_KEY, {"tenant_id": tenant_id}),
        ]
    )
    return opened(vault, old), opened(vault, new)


def opened(vault: Vault, row: Any) -> TenantKey:
    """The data key in a row."""
    stored = Wrapped(row.key_version, bytes(row.wrapped))
    return vault.open_tenant_key(row.tenant_id, row.data_key_id, stored)


def _moved(of: OfDataKey, rows: Sequence[Any], old: TenantKey, new: TenantKey) -> list[bytes]:
    """Wrapped keys of rows, from one data key to another; what they open stays as it is."""
    found = []
    for row in rows:
        place = key_place(old.tenant_id, row.id, getattr(row, "version", 1))
        key = envelope.unwrap(old.key, place, bytes(row.wrapped_key))
        found.append(envelope.wrap(new.key, place, key))
    return found


def _rewrapped(vault: Vault, of: Rewrapped, rows: Sequence[Any]) -> dict[str, list[Any]]:
    """The columns of rows as they are put back."""
    again = _AGAIN[of.table.name]
    fresh = [again(vault, row) for row in rows]
    key = [column.name for column in of.table.primary_key]
    return {
        **{name: [getattr(row, name) for row in rows] for name in key},
        "old_version": [row.key_version for row in rows],
        "new_version": [each.key_version for each in fresh],
        "fresh": [each.wrapped for each in fresh],
    }


def _data_key_again(vault: Vault, row: Any) -> Wrapped:
    stored = Wrapped(row.key_version, bytes(row.wrapped))
    return vault.rewrap_tenant_key(row.tenant_id, row.data_key_id, stored)


def _sealing_key_again(vault: Vault, row: Any) -> Wrapped:
    stored = Wrapped(row.key_version, bytes(row.wrapped))
    return vault.wrap_sealing_key(row.version, vault.unwrap_sealing_key(row.version, stored))


def _answer_again(vault: Vault, row: Any) -> Wrapped:
    tenant_id = getattr(row, "tenant_id", None)
    kept = Wrapped(row.key_version, bytes(row.answer))
    answer = vault.open_answer(tenant_id, row.method, row.request_id, kept)
    return vault.seal_answer(tenant_id, row.method, row.request_id, answer)


_AGAIN: Final[Mapping[str, Callable[[Vault, Any], Wrapped]]] = {
    "data_keys": _data_key_again,
    "sealing_keys": _sealing_key_again,
    "request_answers": _answer_again,
    "platform_answers": _answer_again,
}
