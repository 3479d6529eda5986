"""What stands between the wire and a servicer, in declared order.

A gate looks at one call and lets it pass or raises; the frame around the gates binds ids, bounds
time and maps errors. They are composed once, when the server is built, not at every call.
"""

import asyncio
import ipaddress
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, Protocol
from urllib.parse import unquote
from uuid import UUID

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from services.chassis import errors, telemetry
from services.chassis.channel import REASON
from services.chassis.ids import parse_tenant, uuid7
from services.chassis.rules import Rule, field_at
from services.chassis.status import to_status
from services.chassis.tenancy import PLATFORM, Principal, Tenant

log = logging.getLogger(__name__)

# A unary call whose caller set no deadline gets this one; no call gets a longer one.
LONGEST_CALL_S = 70.0
# A caller's own request id goes into logs and audit events, so not any text will do.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
LONGEST_REASON: Final = 500

NOBODY = Principal(UUID(int=0), "nobody", "nobody")


NO_MESSAGE: Final[Message] = Empty()


@dataclass(slots=True)
class Call:
    """One RPC on its way: what the wire said, then what the gates found."""

    rule: Rule
    message: Message
    metadata: Mapping[str, str]
    peer: str
    request_id: str
    secure: bool = False
    principal: Principal = NOBODY
    tenant: str = PLATFORM
    tenant_id: UUID | None = field(default=None)

    @property
    def address(self) -> str:
        """The caller's address without the port; `unix` for a socket."""
        return address_of(self.peer)

    @property
    def user_agent(self) -> str:
        """What the caller says it calls with."""
        return self.metadata.get("user-agent", "")

    @property
    def reason(self) -> str:
        """Why the caller does it, in their words; metadata holds it percent-encoded."""
        return unquote(self.metadata.get(REASON, ""))[:LONGEST_REASON].strip()

    @property
    def role(self) -> str:
        """The roles the caller acts by."""
        access = self.principal.access(self.tenant) or self.principal.platform
        return access.role if access else ""

    def inside(self) -> UUID:
        """The id of the tenant the call is in; NotFound where the tenant is not there (yet)."""
        if self.tenant_id is None:
            raise errors.NotFound(f"tenants/{self.tenant} does not exist")
        return self.tenant_id


Gate = Callable[[Call], Awaitable[None]]


class Authenticator(Protocol):
    """Finds who a credential belongs to: the registry in its tables, the executor by asking it."""

    async def authenticate(self, credential: str) -> Principal:
        """The principal; Unauthenticated where there is none, for whatever reason."""


class TenantFinder(Protocol):
    """Finds a tenant: the registry among the wanted ones, the executor among the projected ones."""

    async def find(self, slug_or_id: str) -> Tenant | None:
        """It, by either name."""


class Gates:
    """The gates of one server."""

    def __init__(self, authenticator: Authenticator, tenants: TenantFinder) -> None:
        self._authenticator = authenticator
        self._tenants = tenants

    def in_order(self) -> Sequence[Gate]:
        """The declared order."""
        return (
            self.channel,  # first: a credential on a clear channel must not even be looked at
            self.authenticate,  # before authorisation, which asks who it is
            self.authorise,  # before any use case sees the message (AIP-211)
        )

    async def channel(self, call: Call) -> None:
        """Refuse credentials on a channel that is neither TLS, loopback nor a Unix socket."""
        if not call.secure:
            raise errors.FailedPrecondition(
                "this channel is neither TLS, loopback nor a Unix socket; set a certificate",
                reason="INSECURE_CHANNEL",
            )

    async def authenticate(self, call: Call) -> None:
        """Find the principal of the call's credential."""
        kind, _, credential = call.metadata.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not credential:
            raise errors.Unauthenticated("no credential: send `authorization: Bearer <key>`")
        principal = await self._authenticator.authenticate(credential)
        if not principal.may_call_from(ip_of(call.address)):
            log.warning("%s was used from %s, which it may not be", principal.session, call.address)
            raise errors.Unauthenticated("the credential is not valid")
        call.principal = principal

    async def authorise(self, call: Call) -> None:
        """Let a principal pass that has the rule's permission in the message's tenant."""
        rule, principal = call.rule, call.principal
        if rule.principal_kinds and principal.kind not in rule.principal_kinds:
            raise denied(rule.permission, PLATFORM)
        if rule.any_caller:
            return
        named = _tenant_of(call)
        if named:
            await self._enter(call, named)
        elif not principal.may(rule.permission, PLATFORM):
            raise denied(rule.permission, PLATFORM)

    async def _enter(self, call: Call, named: str) -> None:
        rule, principal = call.rule, call.principal
        found = await self._found(principal, named)
        call.tenant = found.slug if found else named
        if not principal.may(rule.permission, call.tenant):
            raise denied(rule.permission, named)
        if found is None:
            return
        call.tenant_id = found.tenant_id
        if found.state != "active" and not rule.when_disabled:
            raise errors.FailedPrecondition(
                f"tenants/{found.slug} is {found.state}; its admins may enable it",
                reason="TENANT_DISABLED",
            )
        _check_reason(call)

    async def _found(self, principal: Principal, named: str) -> Tenant | None:
        access = principal.access(named)
        if access is not None and access.tenant_id is not None:
            return Tenant(access.tenant, access.tenant_id, access.state)
        # Whoever acts for the platform may learn that a tenant is absent.
        return await self._tenants.find(named) if principal.platform else None


def _tenant_of(call: Call) -> str:
    """The tenant that a call names, or its caller's only one; empty for the platform.

    Raises InvalidArgument where it must be named.
    """
    rule = call.rule
    if not rule.tenant_field:
        return PLATFORM
    named = tenant_named(field_at(call.message, rule.tenant_field))
    if named or rule.tenant_optional:
        return named
    accesses = list(call.principal.accesses.values())
    if len(accesses) == 1 and accesses[0].tenant:
        return accesses[0].tenant
    raise errors.invalid(rule.tenant_field, "must name a tenant")


def _check_reason(call: Call) -> None:
    """Whoever enters a tenant only by a grant that needs a reason must give one."""
    permission = call.rule.permission
    held = [
        grant for grant in call.principal.grants(call.tenant) if permission in grant.permissions
    ]
    if all(grant.needs_reason for grant in held) and not call.reason:
        raise errors.InvalidArgument(
            f"acting in tenants/{call.tenant} by {held[0].role} needs a reason: "
            f"send it as metadata {REASON}, percent-encoded",
            reason="REASON_REQUIRED",
        )


def denied(permission: str, tenant: str) -> errors.PermissionDenied:
    """The one answer for what is forbidden and for what a stranger must not know to be absent."""
    where = f"tenants/{tenant}" if tenant else "the platform"
    return errors.PermissionDenied(
        f"permission {permission} denied on {where} (or it does not exist)",
        metadata={"permission": permission},
    )


def tenant_named(text: str) -> str:
    """The slug or id in `tenants/{slug}/...` or in a bare slug. Raises BadName."""
    collection, slash, rest = text.partition("/")
    if not slash:
        return parse_tenant(f"tenants/{text}") if text else PLATFORM
    return parse_tenant(f"{collection}/{rest.partition('/')[0]}")


class Frame:
    """Around one RPC: ids, time, gates, errors."""

    def __init__(self, rule: Rule, gates: Sequence[Gate]) -> None:
        self._rule = rule
        self._gates = gates

    @asynccontextmanager
    async def around(
        self, message: Message | Awaitable[Message], context: Any, *, bounded: bool
    ) -> AsyncIterator[Call]:
        """Let the call through the gates, or end it with the status its error means.

        `message` is the request, or waits for the first one of a stream.
        """
        call = self._call(context)
        trace = telemetry.parse_traceparent(call.metadata.get("traceparent", ""))
        with telemetry.bind(trace, request_id=call.request_id, method=self._rule.method):
            try:
                async with asyncio.timeout(_bound(context) if bounded else None):
                    call.message = message if isinstance(message, Message) else await message
                    for gate in self._gates:
                        await gate(call)
                    yield call
            except Exception as error:  # noqa: BLE001 - nothing unnamed may leave
                await self._end(context, call, error)

    def _call(self, context: Any) -> Call:
        metadata = dict(context.invocation_metadata() or ())
        peer = context.peer() or ""
        asked = metadata.get("x-request-id", "")
        return Call(
            rule=self._rule,
            message=NO_MESSAGE,
            metadata=metadata,
            peer=peer,
            request_id=asked if REQUEST_ID.fullmatch(asked) else str(uuid7()),
            secure=is_local(peer) or is_encrypted(context.auth_context()),
        )

    async def _end(self, context: Any, call: Call, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            error = errors.DeadlineExceeded("the call took too long")
        if not isinstance(error, errors.TenonError) or isinstance(error, errors.Internal):
            log.error("internal error: %s", type(error).__name__, exc_info=error)
        if not isinstance(error, errors.TenonError):
            error = errors.Internal(type(error).__name__)
        await context.abort_with_status(to_status(error, call.request_id))


def address_of(peer: str) -> str:
    """The address in gRPC's peer text: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5` or `unix:...`."""
    kind, _, rest = peer.partition(":")
    if kind in {"ipv4", "ipv6"}:
        return unquote(rest).rpartition(":")[0].strip("[]")
    return kind


@lru_cache(maxsize=4096)
def is_local(peer: str) -> bool:
    """Whether the peer is on this machine: a Unix socket or a loopback address."""
    address = address_of(peer)
    if address == "unix":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def ip_of(address: str) -> IPv4Address | IPv6Address | None:
    """The address in a text, an IPv4 one that IPv6 carries as itself; None for what is none."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def is_encrypted(auth_context: Mapping[str, Sequence[bytes]]) -> bool:
    """Whether gRPC says that the channel is TLS; a clear one has an auth context, too."""
    return b"ssl" in auth_context.get("transport_security_type", ())


def _bound(context: Any) -> float:
    remaining = context.time_remaining()
    return LONGEST_CALL_S if remaining is None else max(0.001, min(remaining, LONGEST_CALL_S))
