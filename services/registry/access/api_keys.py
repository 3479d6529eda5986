"""API keys: made, rotated, taken back. Their text leaves in the answer that made them, and once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import AlreadyExists, FailedPrecondition, invalid
from services.chassis.rules import Risk
from services.chassis.secret import Secret
from services.registry.access import changes
from services.registry.access.changes import By, Changes, Done
from services.registry.access.control import AccessControl
from services.registry.access.key_text import key_id_of
from services.registry.access.key_wishes import Wish
from services.registry.access.principals import held
from services.registry.store import api_keys as store
from services.registry.store import staff
from services.registry.store.invalidations import telling
from services.registry.store.principals import LOCK

KIND: Final = "Key"
MOST_LIVE: Final = 2
OVERLAP: Final = timedelta(days=1)
LONGEST_OVERLAP: Final = timedelta(days=30)
LONGEST_REASON: Final = 500
SHOWN: Final = ("scopes", "address_ranges", "metadata", "expires_at", "revoked_at", "revoke_reason")


@dataclass(frozen=True, slots=True)
class Made:
    """A key with its text, which is told once; `previous` is the one it takes over from."""

    row: Any
    text: Secret
    previous: Any = None


Answer = Callable[[Any], bytes]
MadeAnswer = Callable[[Made], bytes]


class ApiKeys:
    """Manages the keys of the principals of one tenant, or of the platform."""

    def __init__(
        self, database: Database, made: Changes, access: AccessControl, environment: str
    ) -> None:
        self._database = database
        self._changes = made
        self._access = access
        self._environment = environment

    async def create(self, by: By, principal_id: UUID, wish: Wish, answer: MadeAnswer) -> bytes:
        """Make a key. Raises AlreadyExists where the principal has a live one of that name."""

        async def act(transaction: Transaction) -> Done:
            # All that count a principal's keys hold the principal meanwhile.
            await held(transaction, by.tenant_id, principal_id)
            await self._check(transaction, wish)
            scopes = await changes.reach(transaction, by, principal_id, wish.scopes)
            live = await _live(transaction, principal_id, wish.display_name)
            if live:
                raise AlreadyExists("there is a live key of this name; rotate it")
            made = await self._made(transaction, by, principal_id, replace(wish, scopes=scopes))
            return Done(answer(made), _told("create", made.row, {}))

        return await self._changes.make(by, act)

    async def rotate(
        self,
        by: By,
        key_id: str,
        answer: MadeAnswer,
        overlap: timedelta = OVERLAP,
        ends: datetime | None = None,
    ) -> bytes:
        """Make a second key like this one, which ends after the overlap.

        Where nothing says when the new one ends, it lives as long as the old one was made to.
        Raises FailedPrecondition where the key is not live, or not the only one.
        """
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            raise invalid("overlap", f"must be 0 to {LONGEST_OVERLAP.days} days")

        async def act(transaction: Transaction) -> Done:
            row = await _held(transaction, by.tenant_id, key_id)
            wish = _like(row, ends, (await transaction.one(store.NOW)).now)
            await self._check(transaction, wish)
            scopes = await changes.reach(transaction, by, row.principal_id, wish.scopes)
            if len(await _live(transaction, row.principal_id, row.name)) >= MOST_LIVE:
                raise FailedPrecondition(
                    "two keys of this name are live; revoke one, or wait until the older one ends",
                    reason="TWO_LIVE_KEYS",
                )
            if not await transaction.run(store.END, the_key_id=key_id, overlap=overlap):
                raise _not_live("revoked")
            wish = replace(wish, scopes=scopes)
            made = await self._made(transaction, by, row.principal_id, wish)
            previous = await _find(transaction, by.tenant_id, key_id)
            told = _told("rotate", made.row, {})
            return Done(answer(Made(made.row, made.text, previous)), told, [telling(key=key_id)])

        return await self._changes.make(by, act)

    async def revoke(self, by: By, key_id: str, reason: str, answer: Answer) -> bytes:
        """Take a key back; doing so again changes nothing.

        Raises PermissionDenied for another's key that may more than the caller, and
        FailedPrecondition for the last one by which an owner of the platform comes in.
        """
        if len(reason) > LONGEST_REASON:
            raise invalid("reason", f"has more than {LONGEST_REASON} characters")

        async def act(transaction: Transaction) -> Done:
            # The owners first, as whoever disables one does: two orders would be a deadlock.
            owners = await staff.owners(transaction) if by.tenant_id is None else set()
            before = await _settled(transaction, by.tenant_id, key_id)
            if before.state == "revoked":
                return Done(answer(before), None)
            if before.principal_id != by.caller.principal_id:
                await changes.check_reach(transaction, by, before.principal_id, before.scopes)
            if before.principal_id in owners:
                await staff.keep_a_way_in(transaction, key_id)
            await transaction.run(
                store.REVOKE,
                the_key_id=key_id,
                revoked_by=by.actor.display_name,
                revoke_reason=reason,
            )
            after = await _find(transaction, by.tenant_id, key_id)
            return Done(
                answer(after), _told("revoke", after, _fields(before)), [telling(key=key_id)]
            )

        return await self._changes.make(by, act)

    async def get(self, tenant_id: UUID | None, key_id: str) -> Any:
        """Its row, without what would open it; NotFound."""
        async with self._database.system() as transaction:
            return await _find(transaction, tenant_id, key_id)

    async def page(
        self, tenant_id: UUID | None, after: tuple[str, str], size: int, principal_id: UUID | None
    ) -> list[Any]:
        """Rows by name and id."""
        async with self._database.system() as transaction:
            return await transaction.all(
                store.PAGE,
                tenant_id=tenant_id,
                after_name=after[0],
                after_id=after[1],
                size=size,
                principal_id=principal_id,
            )

    async def _check(self, transaction: Transaction, wish: Wish) -> None:
        known, (moment,) = await transaction.pipeline([Bound(store.PERMISSIONS), Bound(store.NOW)])
        wish.check({row.permission for row in known}, moment.now)

    async def _made(self, transaction: Transaction, by: By, principal_id: UUID, wish: Wish) -> Made:
        text = await self._access.issue(
            transaction,
            self._environment,
            principal_id,
            wish.display_name,
            wish.scopes,
            wish.expires_at,
            wish.address_ranges,
            created_by=by.actor.display_name,
            metadata=wish.metadata or {},
            created_by_id=by.answerable(principal_id),
        )
        key_id = key_id_of(text.reveal_text()) or ""
        return Made(await _find(transaction, by.tenant_id, key_id), text)


async def _find(transaction: Transaction, tenant_id: UUID | None, key_id: str) -> Any:
    row = await transaction.one(store.FIND, tenant_id=tenant_id, key_id=key_id)
    if row is None:
        raise changes.absent("key")
    return row


async def _held(transaction: Transaction, tenant_id: UUID | None, key_id: str) -> Any:
    """The row of a live key of a principal that may call, which is held."""
    row = await _find(transaction, tenant_id, key_id)
    await held(transaction, tenant_id, row.principal_id)
    row = await _find(transaction, tenant_id, key_id)
    if row.state != "live":
        raise _not_live(row.state)
    return row


async def _settled(transaction: Transaction, tenant_id: UUID | None, key_id: str) -> Any:
    """The row of a key, whoever's, with its principal held against whoever changes its keys."""
    row = await _find(transaction, tenant_id, key_id)
    await transaction.one(LOCK, tenant_id=tenant_id, principal_id=row.principal_id)
    return await _find(transaction, tenant_id, key_id)


def _not_live(state: str) -> FailedPrecondition:
    return FailedPrecondition(f"the key is {state}; make a new one", reason="KEY_NOT_LIVE")


async def _live(transaction: Transaction, principal_id: UUID, name: str) -> list[Any]:
    return await transaction.all(store.LIVE, principal_id=principal_id, name=name)


def _like(row: Any, ends: datetime | None, now: datetime) -> Wish:
    """What a key's successor is."""
    if ends is None and row.expires_at is not None:
        ends = now + (row.expires_at - row.created_at)
    return Wish(row.name, row.scopes, row.address_ranges, row.metadata, ends)


def _told(action: str, row: Any, before: dict[str, Any]) -> Any:
    name = f"{row.name} ({row.key_id})"
    return changes.event(action, KIND, name, row.principal_id, Risk.HIGH, before, _fields(row))


def _fields(row: Any) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in SHOWN}
    fields = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
    return {
        name: value.isoformat() if name.endswith("_at") else value for name, value in fields.items()
    }
