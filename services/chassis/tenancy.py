"""Who calls, and into which tenant: plain values that every service shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

PLATFORM = ""


@dataclass(frozen=True, slots=True)
class Access:
    """What a principal may do in one tenant (or, for PLATFORM, in every one)."""

    tenant: str
    tenant_id: UUID | None
    role: str
    permissions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever calls, with everything authorisation needs; no secret in it."""

    principal_id: UUID
    kind: str
    display_name: str
    accesses: Mapping[str, Access] = field(default_factory=dict)
    expires_at: datetime | None = None

    def access(self, tenant: str) -> Access | None:
        """The effective access in a tenant by slug; the platform's where it has none of its own."""
        return self.accesses.get(tenant) or self.accesses.get(PLATFORM)

    def may(self, permission: str, tenant: str) -> bool:
        """Whether it has a permission in a tenant, by the tenant's grants or the platform's."""
        return any(
            access is not None and permission in access.permissions
            for access in (self.accesses.get(tenant), self.accesses.get(PLATFORM))
        )
