"""Who is there before anybody may ask: the first owner, made once, and the platform's services."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import FailedPrecondition
from services.chassis.ids import uuid7
from services.chassis.rules import Risk
from services.chassis.secret import Secret
from services.chassis.tenancy import ANY_SOURCE
from services.registry.access import changes
from services.registry.access.control import AccessControl
from services.registry.access.principals import Introduction, introduce
from services.registry.access.staff import KIND as STAFF
from services.registry.access.staff import appoint
from services.registry.audit.log import Actor, Log
from services.registry.store import access as known
from services.registry.store import grants
from services.registry.store import staff as store
from services.registry.store.invalidations import telling

OWNER: Final = "owner"
# Roles of services that are ours, by the service's name.
ROLES: Final = {"executor": "EXECUTOR"}
NOBODY: Final = UUID(int=0)
BY: Final = "tenon bootstrap"

Keep = Callable[[Secret], None]
"""Keeps the text of a key where its owner finds it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is with an issuer; without one, only a key says who they are."""

    issuer: str = ""
    subject: str = ""


class Bootstrap:
    """Introduces them, each in one transaction with its event in the platform's log."""

    def __init__(
        self, database: Database, access: AccessControl, log: Log, environment: str
    ) -> None:
        self._database = database
        self._access = access
        self._log = log
        self._environment = environment

    async def owner(self, identity: Identity, keep: Keep) -> None:
        """Make the first owner; one who has no other identity gets a key.

        Raises FailedPrecondition where there is an owner, or was one who was not removed.
        """
        async with self._database.system() as transaction:
            await transaction.run(store.BE_THE_FIRST)
            if await transaction.all(store.LOCK_OWNERS):
                raise FailedPrecondition(
                    "there is an owner; whoever is one can make others: `tenon staff set`",
                    reason="HAS_AN_OWNER",
                )
            principal_id = await self._introduced(transaction, "user", OWNER, identity)
            await appoint(transaction, principal_id, store.OWNER, (), BY)
            await self._give_key(transaction, principal_id, OWNER, identity, keep)
            await self._tell(transaction, STAFF, OWNER, principal_id, {"role": store.OWNER})

    async def service(self, name: str, identity: Identity, keep: Keep) -> None:
        """Make a service known, with its role where it is one of ours; a key without identity.

        One whose identity is known only gets the role it lacks.
        """
        async with self._database.system() as transaction:
            await transaction.run(store.BE_THE_FIRST)
            principal_id = await self._introduced(transaction, "service", name, identity)
            given = await _given(transaction, principal_id, ROLES.get(name, ""))
            await self._give_key(transaction, principal_id, name, identity, keep)
            if given or not identity.issuer:
                await self._tell(transaction, "Principal", name, principal_id, {"role": given})

    async def _introduced(
        self, transaction: Transaction, kind: str, name: str, identity: Identity
    ) -> UUID:
        """The principal of an identity, made where it is not known."""
        asked = {"kind": kind, "issuer": identity.issuer, "subject": identity.subject}
        row = await transaction.one(known.FIND_IDENTITY, **asked) if identity.issuer else None
        if row is None:
            new = Introduction(kind, identity.issuer, identity.subject, name)
            new.check(of_tenant=False)
            row = await introduce(transaction, new)
        found: UUID = row.principal_id
        return found

    async def _give_key(
        self,
        transaction: Transaction,
        principal_id: UUID,
        name: str,
        identity: Identity,
        keep: Keep,
    ) -> None:
        if identity.issuer:
            return
        issued = (transaction, self._environment, principal_id, name, ["*"])
        # Kept before the commit: better a key that opens nothing than an owner without one.
        keep(await self._access.issue(*issued, created_by=BY))

    async def _tell(
        self, transaction: Transaction, kind: str, name: str, of: UUID, fields: dict[str, Any]
    ) -> None:
        await transaction.pipeline([telling(principal=of)])
        told = [changes.event("create", kind, name, of, Risk.CRITICAL, {}, fields)]
        await self._log.append_platform(transaction, _actor(), told)


async def _given(transaction: Transaction, principal_id: UUID, role: str) -> str:
    """The role, if the principal had it not and has it now."""
    key = {"principal_id": principal_id, "role": role}
    if not role or await transaction.one(grants.FIND, **key) is not None:
        return ""
    await transaction.run(grants.ADD, **key, kinds=[], sources=[ANY_SOURCE], created_by=BY)
    return role


def _actor() -> Actor:
    """Whoever has the deployment's keys in hand: the log can say no more."""
    return Actor(NOBODY, "operator", BY, "", "local", "", str(uuid7()), method="bootstrap")
