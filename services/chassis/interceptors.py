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
from typing import Any, Final, Protocol
from urllib.parse import unquote
from uuid import UUID

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from services.chassis import errors, telemetry
from services.chassis.ids import parse_tenant, uuid7
from services.chassis.rules import Rule, field_at
from services.chassis.status import to_status
from services.chassis.tenancy import PLATFORM, Principal

log = logging.getLogger(__name__)

# A unary call whose caller set no deadline gets this one; no call gets a longer one.
LONGEST_CALL_S = 70.0
# A caller's own request id goes into logs and audit events, so not any text will do.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

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

    async def find(self, slug_or_id: str) -> tuple[str, UUID] | None:
        """Its slug and id."""


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
        call.principal = await self._authenticator.authenticate(credential)

    async def authorise(self, call: Call) -> None:
        """Let a principal pass that has the rule's permission in the message's tenant."""
        rule, principal = call.rule, call.principal
        if rule.principal_kinds and principal.kind not in rule.principal_kinds:
            raise denied(rule.permission, PLATFORM)
        if rule.any_caller:
            return
        if rule.tenant_field:
            named = tenant_named(field_at(call.message, rule.tenant_field))
            if not named:
                raise errors.invalid(rule.tenant_field, "must name a tenant")
            await self._enter(call, named)
        elif not principal.may(rule.permission, PLATFORM):
            raise denied(rule.permission, PLATFORM)

    async def _enter(self, call: Call, named: str) -> None:
        access = call.principal.accesses.get(named)
        if access is not None:
            call.tenant, call.tenant_id = named, access.tenant_id
        elif PLATFORM in call.principal.accesses:
            # Whoever acts for the platform may learn that a tenant is absent.
            found = await self._tenants.find(named)
            call.tenant, call.tenant_id = found or (named, None)
        if not call.principal.may(call.rule.permission, call.tenant or named):
            raise denied(call.rule.permission, named)


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


def is_encrypted(auth_context: Mapping[str, Sequence[bytes]]) -> bool:
    """Whether gRPC says that the channel is TLS; a clear one has an auth context, too."""
    return b"ssl" in auth_context.get("transport_security_type", ())


def _bound(context: Any) -> float:
    remaining = context.time_remaining()
    return LONGEST_CALL_S if remaining is None else max(0.001, min(remaining, LONGEST_CALL_S))
