"""One change outside the write path: what it does, whom it tells, its answer and its event.

Changes of access are the system login's, those of a tenant's credentials and keys the tenant's.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import NotFound, PermissionDenied
from services.chassis.rules import Risk
from services.chassis.tenancy import PLATFORM, Grant, Principal
from services.registry.access.authority import lacking
from services.registry.access.key_wishes import EVERYTHING
from services.registry.answers import Asked, Once
from services.registry.audit.log import Actor, Event, Log
from services.registry.store import access as store
from services.registry.store import tenants
from services.registry.wanted.plan import NOTHING, FieldChange

STAFF_MANAGE = "staff.manage"


@dataclass(frozen=True, slots=True)
class By:
    """Who changes access, in which tenant (None: in the platform), and by which request."""

    actor: Actor
    caller: Principal
    tenant_id: UUID | None
    asked: Asked | None

    @property
    def is_owner(self) -> bool:
        """Whether the caller may give whatever there is: an owner of the platform."""
        return self.caller.may(STAFF_MANAGE, PLATFORM)

    def answerable(self, principal_id: UUID) -> UUID:
        """Who answers for a key that the caller makes for a principal.

        Whoever signed in, however many lent keys lie between. Raises PermissionDenied where a lent
        key would make one of its lender's own.
        """
        if self.caller.lent_by == principal_id:
            raise PermissionDenied("make your own keys with your own sign-in", reason="LENT_KEY")
        return self.caller.lent_by or self.caller.principal_id


@dataclass(frozen=True, slots=True)
class Done:
    """What a change came to; without an event it changed nothing."""

    answer: bytes
    event: Event | None
    telling: Sequence[Bound] = ()


Act = Callable[[Transaction], Awaitable[Done]]


class Changes:
    """Makes changes, each in one transaction."""

    def __init__(self, database: Database, once: Once, log: Log) -> None:
        self._database = database
        self._once = once
        self._log = log

    async def make(self, by: By, act: Act) -> bytes:
        """The answer of `act`, or the one it gave this request before; as the system login."""
        async with self._database.system() as transaction:
            return await self._made(transaction, by, act)

    async def make_inside(self, by: By, act: Act) -> bytes:
        """The same, inside the tenant. Raises NotFound where the change is of none."""
        if by.tenant_id is None:
            raise absent("tenant")
        async with self._database.tenant(by.tenant_id) as transaction:
            await tenants.lock(transaction, by.tenant_id)
            return await self._made(transaction, by, act)

    async def _made(self, transaction: Transaction, by: By, act: Act) -> bytes:
        kept = await self._once.kept(transaction, by.asked)
        if kept is not None:
            return kept
        done = await act(transaction)
        rest = [*done.telling, *self._once.keeping(by.asked, done.answer)]
        if rest:
            await transaction.pipeline(rest)
        if done.event is not None:
            await self._append(transaction, by, done.event)
        return done.answer

    async def _append(self, transaction: Transaction, by: By, event: Event) -> None:
        if by.tenant_id is None:
            await self._log.append_platform(transaction, by.actor, [event])
        else:
            await self._log.append(transaction, by.tenant_id, by.actor, [event])


def event(
    action: str,
    kind: str,
    name: str,
    object_id: UUID,
    risk: Risk,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> Event:
    """What tells a change: every field that differs."""
    fields = [
        FieldChange(field, before.get(field, NOTHING), after.get(field, NOTHING))
        for field in sorted({*before, *after})
        if before.get(field, NOTHING) != after.get(field, NOTHING)
    ]
    return Event(action, kind, name, object_id, risk, fields)


async def check_reach(
    transaction: Transaction, by: By, principal_id: UUID, scopes: Sequence[str] = (EVERYTHING,)
) -> None:
    """Nobody hands out what they have not, save owners: raises PermissionDenied.

    Asked is everything the principal may do, as far as `scopes` reach; of a tenant's own, what it
    may do there: who let it in elsewhere trusts that tenant.
    """
    if by.is_owner:
        return
    tenants, platform = await _grants(transaction, principal_id)
    here = [row for row in tenants if by.tenant_id in {None, row.tenant_id}]
    held = [(row.slug, row) for row in here] + [(PLATFORM, row) for row in platform]
    for place, row in held:
        reached = frozenset(row.permissions)
        reached = reached if EVERYTHING in scopes else reached & {*scopes}
        grant = Grant(row.role, reached, frozenset(row.kinds), frozenset(row.sources))
        if lacking(by.caller, place, grant):
            raise PermissionDenied(
                "the principal may do more than you may; an owner of the platform can do this",
                reason="MORE_THAN_YOURS",
            )


async def reach(
    transaction: Transaction, by: By, principal_id: UUID, scopes: Sequence[str]
) -> list[str]:
    """The scopes that a key made by somebody may have; raises PermissionDenied.

    What the principal is given later must not fall to who made a key for it before: `*` in
    another's hands is what it and they may now.
    """
    await check_reach(transaction, by, principal_id, scopes)
    if by.is_owner or by.answerable(principal_id) == principal_id:
        return [*scopes]
    tenants, platform = await _grants(transaction, principal_id)
    known = {each for row in (*tenants, *platform) for each in row.permissions}
    for access in by.caller.accesses.values():
        if access.tenant_id in {None, by.tenant_id}:
            known |= access.permissions
    beyond = {*scopes} - known - {EVERYTHING}
    if beyond:
        raise PermissionDenied(
            f"you may not do this yourself: {', '.join(sorted(beyond))}", reason="MORE_THAN_YOURS"
        )
    return sorted(known) if EVERYTHING in scopes else [*scopes]


async def _grants(transaction: Transaction, principal_id: UUID) -> list[Any]:
    """What a principal was given in tenants, and in the platform."""
    asked = {"principal_id": principal_id}
    return await transaction.pipeline(
        [Bound(store.TENANT_GRANTS, asked), Bound(store.PLATFORM_GRANTS, asked)]
    )


def absent(what: str) -> NotFound:
    """The one answer for what is not there and what is another's."""
    return NotFound(f"there is no such {what} here")
