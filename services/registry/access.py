"""Who a credential belongs to and what they may do: role ∩ key scopes, gathered once and cached."""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, cast
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import Unauthenticated
from services.chassis.ids import uuid7
from services.chassis.secret import Secret
from services.chassis.tenancy import PLATFORM, Access, Grant, Principal, State
from services.registry import keys
from services.registry.store import access as store

CACHE_S: Final = 30.0
CACHE_SIZE: Final = 10_000
CALLER_UNKNOWN: Final = "CALLER_UNKNOWN"
EVERYTHING: Final = "*"
# What a key without scopes may do.
LEAST: Final = frozenset({"tenants.read"})


class AccessControl:
    """Authenticates API keys against the registry's own tables."""

    def __init__(
        self, database: Database, pepper: Secret, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._seen: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    async def authenticate(self, credential: str) -> Principal:
        """The principal of a key; every refusal is the same to the caller."""
        mark = hashlib.sha256(credential.encode()).digest()
        principal, until = self._seen.get(mark, (None, 0.0))
        if principal is None or until <= self._clock():
            principal = await self._look_up(credential)
            self._remember(mark, principal)
        if principal.expires_at is not None and principal.expires_at <= datetime.now(UTC):
            raise refused()
        return principal

    async def vouch(self, credential: str) -> Principal:
        """The principal of a caller of another service.

        Refusals have a reason of their own, so that the service can tell a bad caller from a bad
        key of its own.
        """
        try:
            return await self.authenticate(credential)
        except Unauthenticated:
            raise refused(CALLER_UNKNOWN) from None

    async def issue(
        self,
        transaction: Transaction,
        environment: str,
        principal_id: UUID,
        name: str,
        scopes: Sequence[str],
        expires_at: datetime | None = None,
        address_ranges: Sequence[str] = (),
        created_by: str = "",
    ) -> Secret:
        """Make a key for a principal (in the system login's transaction); its text is told once."""
        made = keys.new_key(environment, self._pepper)
        await transaction.run(
            store.ADD_KEY,
            key_id=made.key_id,
            principal_id=principal_id,
            name=name,
            digest=made.digest,
            scopes=list(scopes),
            address_ranges=list(address_ranges),
            last4=made.last4,
            metadata={},
            created_by=created_by,
            expires_at=expires_at,
        )
        return made.text

    async def _look_up(self, credential: str) -> Principal:
        # The hash is made whether or not a row is found: unknown and wrong take one path.
        digest = keys.digest(credential, self._pepper)
        key_id = keys.key_id_of(credential)
        async with self._database.system() as transaction:
            row = await transaction.one(store.FIND_KEY, key_id=key_id or "")
            known = hmac.compare_digest(digest, bytes(row.digest) if row else bytes(len(digest)))
            if (
                row is None
                or not known
                or row.revoked_at is not None
                or row.disabled_at is not None
            ):
                raise refused()
            return await _principal(transaction, row)

    def _remember(self, mark: bytes, principal: Principal) -> None:
        self._seen[mark] = (principal, self._clock() + CACHE_S)
        while len(self._seen) > CACHE_SIZE:
            self._seen.popitem(last=False)


async def add_principal(
    transaction: Transaction, kind: str, display_name: str, platform_role: str | None = None
) -> UUID:
    """Make a principal known only by its id, with a role in the platform if one is named."""
    principal_id = uuid7()
    await transaction.run(
        store.ADD_PRINCIPAL,
        principal_id=principal_id,
        kind=kind,
        issuer="",
        subject=str(principal_id),
        display_name=display_name,
    )
    if platform_role is not None:
        await transaction.run(
            store.ADD_PLATFORM_GRANT, principal_id=principal_id, role=platform_role
        )
    return principal_id


def refused(reason: str | None = None) -> Unauthenticated:
    """The one answer to every credential that does not hold."""
    return Unauthenticated("the credential is not valid", reason=reason)


async def _principal(transaction: Transaction, row: Any) -> Principal:
    asked = {"principal_id": row.principal_id}
    tenants, platform = await transaction.pipeline(
        [Bound(store.TENANT_GRANTS, asked), Bound(store.PLATFORM_GRANTS, asked)]
    )
    accesses = {
        slug: _access(list(of), row.scopes) for slug, of in groupby(tenants, attrgetter("slug"))
    }
    if platform:
        accesses[PLATFORM] = Access(PLATFORM, None, _grants(platform, row.scopes))
    return Principal(
        row.principal_id,
        row.kind,
        row.display_name,
        accesses,
        row.expires_at,
        session=f"key {row.key_id}",
        ranges=tuple(map(ip_network, row.address_ranges)),
    )


def _access(rows: Sequence[Any], scopes: Sequence[str]) -> Access:
    first = rows[0]
    return Access(first.slug, first.tenant_id, _grants(rows, scopes), cast("State", first.state))


def _grants(rows: Sequence[Any], scopes: Sequence[str]) -> tuple[Grant, ...]:
    return tuple(
        Grant(
            row.role,
            _scoped(frozenset(row.permissions), scopes),
            frozenset(row.kinds),
            frozenset(row.sources),
            row.needs_reason,
        )
        for row in rows
    )


def _scoped(permissions: frozenset[str], scopes: Sequence[str]) -> frozenset[str]:
    if EVERYTHING in scopes:
        return permissions
    return permissions & (frozenset(scopes) or LEAST)
