"""The platform's grants: roles that a principal has in every tenant; and what roles there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import AlreadyExists, NotFound, PermissionDenied, invalid
from services.chassis.rules import Risk
from services.chassis.tenancy import ANY_SOURCE
from services.registry.access import changes
from services.registry.access.changes import By, Changes, Done
from services.registry.access.principals import held
from services.registry.access.staff import STAFF
from services.registry.store import grants as store
from services.registry.store.invalidations import telling

KIND: Final = "PlatformGrant"

Answer = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class Wish:
    """A role for a principal; no kinds mean every kind, no sources any."""

    principal_id: UUID
    role: str
    kinds: Sequence[str] = ()
    sources: Sequence[str] = ()


class Grants:
    """Gives and takes them."""

    def __init__(self, database: Database, made: Changes) -> None:
        self._database = database
        self._changes = made

    async def roles(self, tenant_id: UUID | None) -> list[Any]:
        """Rows of the built-in roles by rank, then of a tenant's own by name."""
        async with self._database.system() as transaction:
            built_in = await transaction.all(store.ROLES)
            own = await transaction.all(store.OWN_ROLES, tenant_id=tenant_id) if tenant_id else []
        return [*built_in, *own]

    async def page(
        self, after: tuple[UUID, str], size: int, principal_id: UUID | None
    ) -> list[Any]:
        """Rows by principal and role."""
        async with self._database.system() as transaction:
            return await transaction.all(
                store.PAGE,
                after_principal=after[0],
                after_role=after[1],
                size=size,
                principal_id=principal_id,
            )

    async def add(self, by: By, wish: Wish, answer: Answer) -> bytes:
        """Give a role. Raises AlreadyExists, and PermissionDenied for all but owners."""

        async def act(transaction: Transaction) -> Done:
            # Of the platform's alone: who has a tenant's principal in hand is its admin.
            name = (await held(transaction, None, wish.principal_id)).display_name
            _check_owner(by, await _role(transaction, wish.role))
            key = {"principal_id": wish.principal_id, "role": wish.role}
            if await transaction.one(store.FIND, **key) is not None:
                raise AlreadyExists("it has this role; remove it to give it with other limits")
            await transaction.run(
                store.ADD,
                **key,
                kinds=list(wish.kinds),
                sources=list(wish.sources) or [ANY_SOURCE],
                created_by=by.actor.display_name,
            )
            row = await transaction.one(store.FIND, **key)
            told = _told("create", name, wish.principal_id, {}, _fields(row))
            return Done(answer(row), told, [telling(principal=wish.principal_id)])

        return await self._changes.make(by, act)

    async def remove(self, by: By, principal_id: UUID, role: str, answer: bytes) -> bytes:
        """Take a role back."""

        async def act(transaction: Transaction) -> Done:
            key = {"principal_id": principal_id, "role": role}
            row = await transaction.one(store.FIND, **key)
            if row is None:
                raise NotFound("it has no such role")
            _check_owner(by, await _role(transaction, role))
            await transaction.run(store.REMOVE, **key)
            told = _told("delete", row.display_name, principal_id, _fields(row), {})
            return Done(answer, told, [telling(principal=principal_id)])

        return await self._changes.make(by, act)


async def _role(transaction: Transaction, role: str) -> Any:
    found = {row.role: row for row in await transaction.all(store.ROLES)}.get(role)
    if found is None:
        raise invalid("role", "is no built-in role; ListRoles shows them")
    if role.startswith(STAFF):
        raise invalid("role", "is the staff's; SetStaff gives it")
    return found


def _check_owner(by: By, role: Any) -> None:
    """Whoever could give what reaches into every tenant would give themselves a grant without
    their own one's reason and limits: only owners do.
    """
    if not by.is_owner:
        raise PermissionDenied(
            f"only an owner of the platform gives or takes {role.role}", reason="MORE_THAN_YOURS"
        )


def _told(
    action: str, name: str, principal_id: UUID, before: dict[str, Any], after: dict[str, Any]
) -> Any:
    return changes.event(action, KIND, name, principal_id, Risk.CRITICAL, before, after)


def _fields(row: Any) -> dict[str, Any]:
    return {"role": row.role, "kinds": row.kinds, "sources": row.sources}
