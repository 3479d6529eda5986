"""The platform's staff: only owners change it, and one owner always stays."""

from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import FailedPrecondition, NotFound, invalid
from services.chassis.rules import Risk
from services.registry.access import changes
from services.registry.access.changes import STAFF_MANAGE, By, Changes, Done
from services.registry.access.principals import held
from services.registry.store import api_keys
from services.registry.store import staff as store
from services.registry.store.invalidations import telling

KIND: Final = "Staff"
ROLES: Final = ("developer", "admin", store.OWNER)
STAFF: Final = "STAFF_"
"""What the names of the staff's roles begin with."""

Answer = Callable[[Any], bytes]


class Staff:
    """Says who runs the platform."""

    def __init__(self, database: Database, made: Changes) -> None:
        self._database = database
        self._changes = made

    async def page(self, after: UUID, size: int) -> list[Any]:
        """Rows in the order the principals were made."""
        async with self._database.system() as transaction:
            return await transaction.all(store.PAGE, after=after, size=size)

    async def set(
        self, by: By, principal_id: UUID, role: str, permissions: Sequence[str], answer: Answer
    ) -> bytes:
        """Make a user staff, or change what they may. `permissions` come beside the role's."""
        if role not in ROLES:
            raise invalid("role", "must be developer, admin or owner")

        async def act(transaction: Transaction) -> Done:
            # The owners first, as whoever disables one does: two orders would be a deadlock.
            if role != store.OWNER:
                await store.keep_an_owner(transaction, principal_id)
            if (await held(transaction, None, principal_id)).kind != "user":
                raise FailedPrecondition("staff are users", reason="NOT_A_USER")
            before = await transaction.one(store.FIND, principal_id=principal_id)
            await _check(transaction, permissions)
            await appoint(transaction, principal_id, role, permissions, by.actor.display_name)
            after = await transaction.one(store.FIND, principal_id=principal_id)
            action = "update" if before else "create"
            return Done(
                answer(after),
                _told(action, after.display_name, principal_id, before, after),
                [telling(principal=principal_id)],
            )

        return await self._changes.make(by, act)

    async def remove(self, by: By, principal_id: UUID, answer: bytes) -> bytes:
        """Make a user none of the staff. Raises FailedPrecondition for the last owner."""

        async def act(transaction: Transaction) -> Done:
            await store.keep_an_owner(transaction, principal_id)
            row = await transaction.one(store.FIND, principal_id=principal_id)
            if row is None:
                raise NotFound("nobody of the staff is that")
            await transaction.run(store.REMOVE, principal_id=principal_id)
            told = _told("delete", row.display_name, principal_id, row, None)
            return Done(answer, told, [telling(principal=principal_id)])

        return await self._changes.make(by, act)


async def appoint(
    transaction: Transaction, principal_id: UUID, role: str, permissions: Sequence[str], who: str
) -> None:
    """Write down that a principal is staff."""
    await transaction.run(
        store.SET,
        principal_id=principal_id,
        role=role,
        permissions=dict.fromkeys(permissions, True),
        created_by=who,
    )


async def _check(transaction: Transaction, permissions: Sequence[str]) -> None:
    known = {row.permission for row in await transaction.all(api_keys.PERMISSIONS)}
    for at, permission in enumerate(permissions):
        if permission == STAFF_MANAGE:
            raise invalid(f"permissions[{at}]", "is for owners alone")
        if permission not in known:
            raise invalid(f"permissions[{at}]", "is no permission; ListRoles shows them")


def _told(action: str, name: str, principal_id: UUID, before: Any, after: Any) -> Any:
    return changes.event(
        action, KIND, name, principal_id, Risk.CRITICAL, _fields(before), _fields(after)
    )


def _fields(row: Any) -> dict[str, Any]:
    return {"role": row.role, "permissions": sorted(row.permissions)} if row is not None else {}
