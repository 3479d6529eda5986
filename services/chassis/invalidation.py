"""That something which was remembered of callers, or of secrets, no longer holds."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args
from uuid import UUID

from services.chassis.tenancy import Principal

What = Literal["principal", "key", "tenant", "identity", "credential", "everything"]
WHATS: Final = frozenset(get_args(What))
IDS: Final = frozenset({"principal", "tenant"})
"""Those that are named by a uuid."""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What no longer holds: all that is known `of` it, by its id."""

    what: What
    of: str = ""

    @property
    def tenant_id(self) -> UUID | None:
        """The tenant, where it is one."""
        return UUID(self.of) if self.what == "tenant" else None

    def concerns(self) -> Callable[[Principal], bool]:
        """Says of a remembered principal whether it may be another one now."""
        match self.what:
            case "principal":
                principal_id = UUID(self.of)
                return lambda principal: principal.principal_id == principal_id
            case "tenant":
                return _entering(UUID(self.of))
            case "key":
                session = f"key {self.of}"
                return lambda principal: principal.session == session
            case "identity":
                return lambda principal: principal.identity == self.of
            case "credential":
                return lambda _: False
            case "everything":
                return lambda _: True

    def secrets(self) -> "Callable[[UUID, str], bool]":
        """Says of a tenant's remembered credential, by its name, whether it may be another one now.

        A credential is told as `tenant's id/name`; with its tenant all of them go.
        """
        if self.what == "everything":
            return lambda _tenant, _name: True
        if self.what == "credential":
            return lambda tenant_id, name: f"{tenant_id}/{name}" == self.of
        tenant = self.tenant_id
        return lambda tenant_id, _name: tenant_id == tenant


EVERYTHING: Final = Invalidation("everything")

Forget = Callable[[Invalidation], None]
"""Drops what an invalidation concerns."""


def invalidation(what: str, of: str) -> Invalidation:
    """The one that somebody told of; what cannot be understood concerns everything."""
    if what not in WHATS:
        return EVERYTHING
    try:
        if what in IDS:
            UUID(of)
    except ValueError:
        return EVERYTHING
    return Invalidation(cast("What", what), of)


def identity_of(kind: str, issuer: str, subject: str) -> str:
    """A short name of an identity that tells nothing of it and that no other identity has."""
    told = hashlib.sha256()
    for part in (kind, issuer, subject):
        text = part.encode()
        told.update(len(text).to_bytes(4, "big") + text)
    return told.hexdigest()[:32]


def _entering(tenant_id: UUID) -> Callable[[Principal], bool]:
    def concerned(principal: Principal) -> bool:
        return any(each.tenant_id == tenant_id for each in principal.accesses.values())

    return concerned
