"""Brings everything to the newest keys: a leader's job, in small batches, safe to repeat.

What is left to do stands in the rows themselves: which version wraps them, which data key. So
whoever leads next goes on where the last one was killed, and a second leader does no harm.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from services.chassis import envelope, failpoints
from services.chassis.database import Bound, Database, Transaction
from services.chassis.envelope import Unsealable
from services.chassis.errors import TenonError
from services.chassis.rules import Risk
from services.registry.access.changes import event
from services.registry.audit.log import Actor, Log
from services.registry.credentials.places import key_place
from services.registry.credentials.tampering import Tampering
from services.registry.keys.holding import Holding
from services.registry.keys.replacing import KIND as DATA_KEY
from services.registry.keys.vault import TenantKey, Vault, Wrapped
from services.registry.keys.versions import KIND
from services.registry.store import keys as store
from services.registry.store.keys import OfDataKey, Rewrapped

log = logging.getLogger(__name__)

LEADER: Final = "registry.keys"
EVERY_S: Final = 1.0
GLANCE_S: Final = 0.25
BATCH: Final = 500
SETTLED: Final = timedelta(minutes=1)
"""So long after a data key was replaced no transaction runs any more that has seen it before."""

AFTER_PROMOTION: Final = failpoints.declare(
    "rewrap.after_promotion", "the new version wraps; the next leader rewraps everything"
)
IN_BATCH: Final = failpoints.declare("rewrap.in_batch", "the batch is as it was, and is done again")
AFTER_BATCH: Final = failpoints.declare("rewrap.after_batch", "the next leader goes on behind it")

ITSELF: Final = Actor(
    UUID(int=0), "service", "registry", "", address="", user_agent="", request_id=""
)


Place = Mapping[str, Any]
"""A data key by its tenant's id and its own, as statements name them."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: `waiting_for` has the hosts that lack the pending version."""

    version: int
    done: int
    total: int
    waiting_for: tuple[str, ...] = ()


class Rewrapping:
    """The loop, and how far it is. `retired_for`: how long a replaced data key stays openable.

    What does not open is told, and passed over: it must not hold up what does.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        holding: Holding,
        events: Log,
        tampering: Tampering,
        retired_for: timedelta,
    ) -> None:
        self._database = database
        self._vault = vault
        self._holding = holding
        self._log = events
        self._tampering = tampering
        self._retired_for = retired_for
        # Retired data keys that wrap nothing, and will not again.
        self._emptied: set[UUID] = set()
        self._broken = Counter[str]()

    async def follow(self) -> None:
        """Promote, rewrap, shred; look again every second. Never returns."""
        while True:
            await self.round()
            await asyncio.sleep(EVERY_S)

    async def round(self) -> None:
        """All there is to do now."""
        await self._promote()
        for each in store.WRAPPED_BY_VERSION:
            self._note(each, await _to_the_end(partial(self._rewrap, each)))
        retired = await self._retired()
        self._emptied &= {row.data_key_id for row in retired}
        for row in retired:
            try:
                await self._replace(row)
            except TenonError as error:
                log.warning("data key of tenant %s: %s", row.tenant_id, error.message)

    async def progress(self, tenant_id: UUID | None) -> AsyncIterator[Progress]:
        """How far a tenant, or the deployment, is; ends once nothing is left.

        What is done never grows less; the total grows where more is wrapped by what is old.
        """
        version, left, waiting_for = await self._left(tenant_id)
        done = 0
        while True:
            yield Progress(version, done, done + left, waiting_for)
            if not left and not waiting_for:
                return
            await asyncio.sleep(GLANCE_S)
            before = left
            version, left, waiting_for = await self._left(tenant_id)
            done += max(0, before - left)

    async def _promote(self) -> None:
        """Let the pending version wrap once every registry that runs has it."""
        async with self._database.system() as transaction:
            await transaction.run(store.FORGET_HOLDERS, gone=store.GONE)
            # Held, they keep out whoever wraps; so they are not while nothing waits.
            if _pending(await transaction.all(store.VERSIONS)) is None:
                return
            rows = await transaction.all(store.LOCK_VERSIONS)
            pending = _pending(rows)
            if pending is None or pending.version not in self._vault.ring.keys:
                return
            if await _lacking(transaction, pending.version):
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

    async def _rewrap(self, of: Rewrapped, skip: int) -> int | None:
        """One batch of a table: how many of it do not open; None where there was none."""
        active = self._vault.ring.active
        async with self._database.system() as transaction:
            rows = await transaction.all(of.batch, version=active, size=BATCH, skip=skip)
            if not rows:
                return None
            fresh, broken = await asyncio.to_thread(_rewrapped, self._vault, of, rows)
            await transaction.run(of.put, **fresh)
            IN_BATCH.hit()
        await self._tell(of, broken)
        return len(broken)

    async def _tell(self, of: Rewrapped, broken: Sequence[Any]) -> None:
        """In the audit log of their tenants, where they are data keys."""
        for row in broken if of is store.DATA_KEYS else ():
            name = str(row.data_key_id)
            await self._tampering.tell(row.tenant_id, DATA_KEY, name, row.data_key_id)

    def _note(self, of: Rewrapped, broken: int) -> None:
        """In our log, each time that another number of a table does not open."""
        name = of.table.name
        if broken != self._broken[name]:
            log.warning("%d rows of %s do not open: they were moved or changed", broken, name)
        self._broken[name] = broken

    async def _retired(self) -> Sequence[Any]:
        ages = {"shredded_after": self._retired_for, "settled_after": SETTLED}
        async with self._database.system() as transaction:
            return await transaction.all(store.RETIRED, **ages)

    async def _replace(self, row: Any) -> None:
        """Wrap by a tenant's current data key all that a retired one wraps; shred that in time."""
        if row.data_key_id in self._emptied and not row.has_had_its_time:
            return
        place = {"tenant_id": row.tenant_id, "data_key_id": row.data_key_id}
        for each in store.WRAPPED_BY_DATA_KEY:
            await _to_the_end(partial(self._replace_batch, each, place))
        async with self._database.tenant(row.tenant_id) as transaction:
            # What somebody holds, or does not open, is still there.
            if await _count_left(transaction, place):
                return
            # Before that somebody may be about to wrap by it, who has seen it as the current one.
            if row.has_had_its_time and row.is_settled:
                shredded = {f"the_{name}": value for name, value in place.items()}
                await transaction.run(store.SHRED_DATA_KEY, **shredded)
        if row.is_settled:
            self._emptied.add(row.data_key_id)

    async def _replace_batch(self, of: OfDataKey, place: Place, skip: int) -> int | None:
        """One batch of a table of a tenant's, as `_rewrap` does it."""
        tenant_id = place["tenant_id"]
        async with self._database.tenant(tenant_id) as transaction:
            rows = await transaction.all(of.batch, **place, size=BATCH, skip=skip)
            if not rows:
                return None
            old, new = await self._both_keys(transaction, place)
            keys, broken = await asyncio.to_thread(_moved, rows, old, new)
            moved = {"ids": list(keys), "keys": list(keys.values())}
            await transaction.run(of.put, **place, new_data_key_id=new.data_key_id, **moved)
            IN_BATCH.hit()
        for row in broken:
            await self._tampering.tell(tenant_id, of.kind, row.name, row.object_id)
        return len(broken)

    async def _both_keys(
        self, transaction: Transaction, place: Place
    ) -> tuple[TenantKey, TenantKey]:
        """The data key to rewrap from, and the one to rewrap by."""
        current = {"tenant_id": place["tenant_id"]}
        (old,), (new,) = await transaction.pipeline(
            [Bound(store.DATA_KEY_OF, place), Bound(store.DATA_KEY, current)]
        )
        return await self._opened(old), await self._opened(new)

    async def _opened(self, row: Any) -> TenantKey:
        stored = Wrapped(row.key_version, bytes(row.wrapped))
        name = str(row.data_key_id)
        async with self._tampering.telling(row.tenant_id, DATA_KEY, name, row.data_key_id):
            return self._vault.open_tenant_key(row.tenant_id, row.data_key_id, stored)

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
        places = [
            {"tenant_id": tenant_id, "data_key_id": row.data_key_id}
            for row in await self._retired()
            if row.tenant_id == tenant_id
        ]
        async with self._database.tenant(tenant_id) as transaction:
            left = [await _count_left(transaction, place) for place in places]
        return self._vault.ring.active, sum(left), ()


def _pending(rows: Sequence[Any]) -> Any:
    """The version that waits until every registry has it; None: none does."""
    return next((row for row in rows if row.state == "pending"), None)


async def _to_the_end(batch: Callable[[int], Awaitable[int | None]]) -> int:
    """Batch after batch until there is none, each past those that do not open; their number."""
    broken = 0
    while (more := await batch(broken)) is not None:
        broken += more
        AFTER_BATCH.hit()
    return broken


async def _count_left(transaction: Transaction, place: Place) -> int:
    """How much a data key still wraps."""
    counts = [Bound(each.left, place) for each in store.WRAPPED_BY_DATA_KEY]
    return sum(found[0].left for found in await transaction.pipeline(counts))


async def _lacking(transaction: Transaction, version: int) -> tuple[str, ...]:
    holders = await transaction.all(store.HOLDERS, gone=store.GONE)
    return tuple(row.host for row in holders if version not in row.versions)


def _moved(
    rows: Sequence[Any], old: TenantKey, new: TenantKey
) -> tuple[dict[UUID, bytes], list[Any]]:
    """Keys by row, wrapped by another data key; what they open stays as it is. What opens not."""
    found: dict[UUID, bytes] = {}
    broken = []
    for row in rows:
        place = key_place(old.tenant_id, row.id, getattr(row, "version", 1))
        try:
            key = envelope.unwrap(old.key, place, bytes(row.wrapped_key))
        except Unsealable:
            broken.append(row)
        else:
            found[row.id] = envelope.wrap(new.key, place, key)
    return found, broken


def _rewrapped(
    vault: Vault, of: Rewrapped, rows: Sequence[Any]
) -> tuple[dict[str, list[Any]], list[Any]]:
    """The columns of rows as they are put back, and the rows that do not open."""
    again = _AGAIN[of.table.name]
    fresh: list[tuple[Any, Wrapped]] = []
    broken = []
    for row in rows:
        try:
            fresh.append((row, again(vault, row)))
        except Unsealable:
            broken.append(row)
    key = [column.name for column in of.table.primary_key]
    columns = {
        **{name: [getattr(row, name) for row, _ in fresh] for name in key},
        "old_version": [row.key_version for row, _ in fresh],
        "new_version": [each.key_version for _, each in fresh],
        "fresh": [each.wrapped for _, each in fresh],
    }
    return columns, broken


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
