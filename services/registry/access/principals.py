"""Principals: made, found, and told whether they may still call; never removed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Violation,
)
from services.chassis.ids import uuid7
from services.chassis.rules import Risk
from services.registry.access import changes
from services.registry.access.changes import By, Changes, Done
from services.registry.store import principals as store
from services.registry.store.invalidations import telling
from services.registry.store.staff import keep_an_owner

KIND: Final = "Principal"
KINDS: Final = frozenset({"user", "service", "source"})
LONGEST: Final = 200

Answer = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class Introduction:
    """Who is to be known. Without an issuer it has no identity but its own id."""

    kind: str
    issuer: str
    subject: str
    display_name: str
    email: str = ""

    def check(self, *, of_tenant: bool) -> None:
        """Raises InvalidArgument that names every fault at once.

        A tenant that could give an identity could make a key for somebody else's user.
        """
        faults = {
            "kind": self.kind not in KINDS and "must be user, service or source",
            "display_name": not 0 < len(self.display_name.strip()) <= LONGEST
            and f"must have 1 to {LONGEST} characters",
            "subject": bool(self.issuer) != bool(self.subject)
            and "must be given with the issuer, and only with it",
            "email": bool(self.email) and self.kind != "user" and "is for users",
        }
        if of_tenant:
            faults["kind"] = faults["kind"] or (self.kind == "user" and "a tenant owns no users")
            faults["issuer"] = bool(self.issuer) and "a tenant's principals have none"
        for field in ("issuer", "subject", "email"):
            if len(getattr(self, field)) > LONGEST:
                faults[field] = f"has more than {LONGEST} characters"
        found = [Violation(field, fault) for field, fault in faults.items() if fault]
        if found:
            words = "; ".join(f"{one.field}: {one.description}" for one in found)
            raise InvalidArgument(words, violations=found)


class Principals:
    """Manages those of one tenant, or of the platform."""

    def __init__(self, database: Database, made: Changes) -> None:
        self._database = database
        self._changes = made

    async def create(self, by: By, new: Introduction, answer: Answer) -> bytes:
        """Make one. Raises AlreadyExists where its identity is known.

        A person for whom no issuer speaks is whoever holds the key: only owners make one, or
        PermissionDenied is raised.
        """
        new.check(of_tenant=by.tenant_id is not None)
        if new.kind == "user" and not new.issuer and not by.is_owner:
            raise PermissionDenied(
                "only an owner of the platform makes a user without an issuer",
                reason="MORE_THAN_YOURS",
            )

        async def act(transaction: Transaction) -> Done:
            row = await introduce(transaction, new, by.tenant_id)
            told = changes.event(
                "create", KIND, new.display_name, row.principal_id, Risk.MEDIUM, {}, _fields(row)
            )
            return Done(answer(row), told)

        return await self._changes.make(by, act)

    async def get(self, tenant_id: UUID | None, principal_id: UUID) -> Any:
        """Its row; NotFound."""
        async with self._database.system() as transaction:
            return _found(
                await transaction.one(store.FIND, tenant_id=tenant_id, principal_id=principal_id)
            )

    async def page(
        self, tenant_id: UUID | None, after: UUID, size: int, kind: str | None
    ) -> list[Any]:
        """Rows in the order they were made."""
        async with self._database.system() as transaction:
            return await transaction.all(
                store.PAGE, tenant_id=tenant_id, after=after, size=size, kind=kind
            )

    async def set_disabled(
        self, by: By, principal_id: UUID, answer: Answer, *, disabled: bool
    ) -> bytes:
        """Say whether it may call; everybody who remembers it hears so."""

        async def act(transaction: Transaction) -> Done:
            if by.tenant_id is None and disabled:
                await keep_an_owner(transaction, principal_id)
            row = _found(
                await transaction.one(store.LOCK, tenant_id=by.tenant_id, principal_id=principal_id)
            )
            if (row.disabled_at is not None) == disabled:
                return Done(answer(row), None)
            await changes.check_reach(transaction, by, principal_id)
            after = await transaction.one(
                store.SET_DISABLED, the_principal_id=principal_id, disabled=disabled
            )
            action = "disable" if disabled else "enable"
            told = changes.event(
                action,
                KIND,
                row.display_name,
                principal_id,
                Risk.HIGH,
                _fields(row),
                _fields(after),
            )
            return Done(answer(after), told, [telling(principal=principal_id)])

        return await self._changes.make(by, act)


async def introduce(
    transaction: Transaction, new: Introduction, tenant_id: UUID | None = None
) -> Any:
    """Make a principal, a tenant's or the platform's; its row."""
    principal_id = uuid7()
    row = await transaction.one(
        store.ADD,
        principal_id=principal_id,
        kind=new.kind,
        issuer=new.issuer,
        subject=new.subject or str(principal_id),
        display_name=new.display_name.strip(),
        email=new.email,
    )
    if tenant_id is not None:
        await transaction.run(store.OWN, tenant_id=tenant_id, principal_id=principal_id)
    return row


async def held(transaction: Transaction, tenant_id: UUID | None, principal_id: UUID) -> Any:
    """The row of one that may call, held until the transaction ends.

    Raises NotFound, and FailedPrecondition where it is disabled.
    """
    row = _found(await transaction.one(store.LOCK, tenant_id=tenant_id, principal_id=principal_id))
    if row.disabled_at is not None:
        raise FailedPrecondition("the principal is disabled", reason="PRINCIPAL_DISABLED")
    return row


def _found(row: Any) -> Any:
    if row is None:
        raise changes.absent("principal")
    return row


def _fields(row: Any) -> dict[str, Any]:
    fields = {
        name: getattr(row, name) for name in ("kind", "issuer", "subject", "display_name", "email")
    }
    return fields | {"disabled": row.disabled_at is not None}
