"""Who a credential belongs to and what they may do: role ∩ key scopes, gathered once and cached."""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, cast
from uuid import UUID

from services.chassis.cache import Cache, Keeping
from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import ResourceExhausted, Unauthenticated
from services.chassis.guesses import TOO_MANY, Guesses
from services.chassis.ids import uuid7
from services.chassis.invalidation import Invalidation, identity_of
from services.chassis.secret import Secret
from services.chassis.tenancy import PLATFORM, Access, Grant, Principal, State
from services.chassis.usage import KEY
from services.registry.access import key_text as keys
from services.registry.access.invalidations import Invalidations
from services.registry.access.tokens import Identity, Tokens
from services.registry.store import access as store

KEEPING: Final = Keeping(fresh_s=30, stale_s=30, refused_s=0)
CALLER_UNKNOWN: Final = "CALLER_UNKNOWN"
CALLER_GUESSES: Final = "CALLER_GUESSES"
"""Their credential is wrong, after too many others of their address."""
EVERYTHING: Final = "*"
# What a key without scopes may do.
LEAST: Final = frozenset({"tenants.read"})
MTLS: Final = "mtls"
"""The issuer of identities that a client certificate proves."""


class AccessControl:
    """Authenticates keys, tokens and certificates against the registry's own tables.

    `invalidations` tells it, and whoever follows, what no longer holds of what it remembers.
    """

    def __init__(
        self,
        database: Database,
        pepper: Secret,
        clock: Callable[[], float] = time.monotonic,
        *,
        tokens: Tokens | None = None,
        guesses: Guesses | None = None,
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._tokens = tokens or Tokens()
        self._guesses = guesses or Guesses()
        self._seen: Cache[bytes, Principal] = Cache(KEEPING, clock)
        self.invalidations = Invalidations(database)
        self.invalidations.reach(self._forget)

    async def authenticate(self, credential: str, address: str = "") -> Principal:
        """The principal of a key or token; every refusal is the same to the caller.

        Raises ResourceExhausted where too many wrong ones came from the address.
        """
        return await self._known("credential", credential, address, self._look_up)

    async def recognise(self, certificate: str, address: str = "") -> Principal:
        """The principal of a client certificate that the channel proved, by its subject."""
        return await self._known("certificate", certificate, address, self._certified)

    async def vouch(self, credential: str, certificate: str, address: str) -> Principal:
        """The principal of a caller of another service, by their credential or certificate.

        It is never a remembered one: the service remembers by itself, and after an invalidation
        must not be told by us what we have not yet forgotten. Refusals have a reason of their own,
        so that the service can tell a bad caller from a bad key of its own.
        """
        mark, look_up = (
            (_mark("credential", credential), partial(self._look_up, credential))
            if credential or not certificate
            else (_mark("certificate", certificate), partial(self._certified, certificate))
        )
        try:
            return _in_time(await self._guesses.look_up(address, mark, look_up))
        except Unauthenticated:
            raise refused(CALLER_UNKNOWN) from None
        except ResourceExhausted as error:
            if error.code != TOO_MANY:
                raise
            raise ResourceExhausted(
                error.message, reason=CALLER_GUESSES, retry_after_s=error.retry_after_s
            ) from None

    async def current(self, principal_id: UUID, session: str = "") -> Principal | None:
        """A principal by its id with all its grants of this moment; None: unknown or disabled.

        With the `session` of a key, by which it acted before, it has what that key still gives it:
        None where the key was revoked, or has expired.
        """
        async with self._database.system() as transaction:
            if not session.startswith(KEY):
                row = await transaction.one(store.FIND_ENABLED, principal_id=principal_id)
                return await _principal(transaction, row, "", None) if row is not None else None
            key_id = session.removeprefix(KEY)
            row = await transaction.one(store.FIND_BY_KEY, principal_id=principal_id, key_id=key_id)
            if row is None:
                return None
            return await _principal(transaction, row, session, None, row.scopes)

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
        metadata: Mapping[str, str] | None = None,
        created_by_id: UUID | None = None,
    ) -> Secret:
        """Make a key for a principal (in the system login's transaction); its text is told once.

        `created_by_id` is whoever answers for it; without one it is the principal's own.
        """
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
            environment=environment,
            metadata=dict(metadata or {}),
            created_by=created_by,
            created_by_id=created_by_id or principal_id,
            expires_at=expires_at,
        )
        return made.text

    async def _known(
        self, kind: str, shown: str, address: str, look_up: Callable[[str], Awaitable[Principal]]
    ) -> Principal:
        mark = _mark(kind, shown)
        principal = self._seen.known(mark)
        if principal is None:
            principal = await self._seen.get(
                mark, partial(self._load, mark, shown, address, look_up)
            )
        return _in_time(principal)

    async def _load(
        self, mark: bytes, shown: str, address: str, look_up: Callable[[str], Awaitable[Principal]]
    ) -> tuple[Principal, float]:
        found = await self._guesses.look_up(address, mark, partial(look_up, shown))
        return found, KEEPING.stale_s

    async def _look_up(self, credential: str) -> Principal:
        if credential.count(".") != 2:
            return await self._of_key(credential)
        identity = await self._tokens.identify(credential)
        if identity is None:
            raise refused()
        return await self._of_identity(identity)

    async def _of_key(self, credential: str) -> Principal:
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
            return await _principal(
                transaction,
                row,
                f"{KEY}{row.key_id}",
                row.expires_at,
                row.scopes,
                row.address_ranges,
                row.created_by_id if row.created_by_id != row.principal_id else None,
            )

    async def _certified(self, certificate: str) -> Principal:
        return await self._of_identity(
            Identity("service", MTLS, certificate, f"certificate {certificate}", certificate)
        )

    async def _of_identity(self, identity: Identity) -> Principal:
        """The principal of an identity; one that a role binding names is made at first sight."""
        named = {
            "kind": identity.kind,
            "issuer": identity.issuer,
            "subject": identity.subject,
        }
        async with self._database.system() as transaction:
            row = await transaction.one(store.FIND_IDENTITY, **named)
            if row is None:
                added = {"display_name": identity.display_name, "email": identity.email}
                await transaction.run(
                    store.ADD_BOUND_PRINCIPAL, principal_id=uuid7(), **named, **added
                )
                row = await transaction.one(store.FIND_IDENTITY, **named)
            if row is None or row.disabled_at is not None:
                raise refused()
            return await _principal(transaction, row, identity.session, identity.expires_at)

    def _forget(self, told: Invalidation) -> None:
        concerned = told.concerns()
        self._seen.drop(lambda _, principal: concerned(principal))


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


def _mark(kind: str, shown: str) -> bytes:
    """What is remembered of a credential: not itself."""
    return hashlib.sha256(f"{kind} {shown}".encode()).digest()


def _in_time(principal: Principal) -> Principal:
    """The same one, unless what it called with has expired."""
    if principal.expires_at is not None and principal.expires_at <= datetime.now(UTC):
        raise refused()
    return principal


async def _principal(
    transaction: Transaction,
    row: Any,
    session: str,
    expires_at: datetime | None,
    scopes: Sequence[str] = (EVERYTHING,),
    ranges: Sequence[str] = (),
    lent_by: UUID | None = None,
) -> Principal:
    asked = {"principal_id": row.principal_id}
    tenants, platform = await transaction.pipeline(
        [Bound(store.TENANT_GRANTS, asked), Bound(store.PLATFORM_GRANTS, asked)]
    )
    accesses = {
        slug: _access(list(of), scopes) for slug, of in groupby(tenants, attrgetter("slug"))
    }
    if platform:
        accesses[PLATFORM] = Access(PLATFORM, None, _grants(platform, scopes))
    return Principal(
        row.principal_id,
        row.kind,
        row.display_name,
        accesses,
        expires_at,
        session,
        tuple(map(ip_network, ranges)),
        identity_of(row.kind, row.issuer, row.subject),
        lent_by,
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
