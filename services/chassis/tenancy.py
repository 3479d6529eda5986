"""Who calls, and into which tenant: plain values that every service shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal
from uuid import UUID

from services.chassis.ids import TENANT_ID

PLATFORM: Final = ""
ANY_SOURCE: Final = "*"

State = Literal["active", "disabled", "draining", "purged"]
"""A `disabled` tenant is left alone but by its admins; a `draining` one is being deleted.

Of a `purged` one only the proof is left, for the platform to read.
"""

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant that a name was found to mean."""

    slug: str
    tenant_id: UUID
    state: State = "active"


@dataclass(frozen=True, slots=True)
class Grant:
    """One role a principal was given in one place.

    `kinds` are the kinds of document it may change by it (empty: every kind), `sources` the names
    it may apply as. Who acts by a grant that `needs_reason` must say why.
    """

    role: str
    permissions: frozenset[str]
    kinds: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset({ANY_SOURCE})
    needs_reason: bool = False

    def may_change(self, permission: str, kind: str, source: str) -> bool:
        """Whether it lets a document of a kind be changed in a source's name."""
        return (
            permission in self.permissions
            and (not self.kinds or kind in self.kinds)
            and not self.sources.isdisjoint({source, ANY_SOURCE})
        )


@dataclass(frozen=True, slots=True)
class Access:
    """What a principal may do in one tenant (or, for PLATFORM, in every one)."""

    tenant: str
    tenant_id: UUID | None
    grants: tuple[Grant, ...]
    state: State = "active"
    permissions: frozenset[str] = field(init=False)
    needs_reason: bool = field(init=False)
    """Whether any of the grants does."""

    def __post_init__(self) -> None:
        """Gather what is asked at every call: what the grants allow together, and how."""
        held = frozenset[str]().union(*(grant.permissions for grant in self.grants))
        object.__setattr__(self, "permissions", held)
        object.__setattr__(self, "needs_reason", any(one.needs_reason for one in self.grants))

    @property
    def role(self) -> str:
        """The roles' names, for people."""
        return "+".join(grant.role for grant in self.grants)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever calls, with everything authorisation needs; no secret in it.

    `session` is what it called with (a key's id, a token's id), `ranges` the only addresses it may
    call from (empty: any), and `identity` names its kind, issuer and subject
    (`chassis.invalidation.identity_of`). `lent_by` is who stands behind a key that somebody else
    made for it; who signs in by themselves has none.
    """

    principal_id: UUID
    kind: str
    display_name: str
    accesses: Mapping[str, Access] = field(default_factory=dict)
    expires_at: datetime | None = None
    session: str = ""
    ranges: tuple[Network, ...] = ()
    identity: str = ""
    lent_by: UUID | None = None

    def access(self, named: str) -> Access | None:
        """Its own access in a tenant, by slug or id."""
        if not TENANT_ID.fullmatch(named):
            return self.accesses.get(named)
        return next((one for one in self.accesses.values() if str(one.tenant_id) == named), None)

    @property
    def platform(self) -> Access | None:
        """What it may do in every tenant."""
        return self.accesses.get(PLATFORM)

    def grants(self, named: str) -> tuple[Grant, ...]:
        """Every grant that counts in a tenant: its own there, and the platform's."""
        places = {named, PLATFORM}
        return tuple(
            grant
            for access in map(self.access, places)
            if access is not None
            for grant in access.grants
        )

    def may(self, permission: str, named: str) -> bool:
        """Whether it has a permission in a tenant, by the tenant's grants or the platform's."""
        own, platform = self.access(named), self.accesses.get(PLATFORM)
        return (own is not None and permission in own.permissions) or (
            platform is not None and permission in platform.permissions
        )

    def may_change(self, permission: str, named: str, kind: str, source: str) -> bool:
        """Whether it may change a document of a kind in a tenant in a source's name."""
        return any(grant.may_change(permission, kind, source) for grant in self.grants(named))

    def without_reason(self) -> "Principal":
        """The same one with only what it may do without saying why."""
        if not any(access.needs_reason for access in self.accesses.values()):
            return self
        return replace(
            self,
            accesses={
                place: Access(
                    access.tenant,
                    access.tenant_id,
                    tuple(grant for grant in access.grants if not grant.needs_reason),
                    access.state,
                )
                for place, access in self.accesses.items()
            },
        )

    def may_call_from(self, address: IPv4Address | IPv6Address | None) -> bool:
        """Whether it may call from an address; None is one that is none, such as a socket's."""
        if not self.ranges:
            return True
        return address is not None and any(address in network for network in self.ranges)
