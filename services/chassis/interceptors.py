"""What stands between the wire and a servicer, in declared order.

A gate looks at one call and lets it pass or raises; the frame around the gates binds ids, bounds
time and maps errors. They are composed once, when the server is built, not at every call.
"""

import asyncio
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from typing import Any, Final, Protocol
from urllib.parse import unquote
from uuid import UUID

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from services.chassis import errors, telemetry
from services.chassis.addresses import Network, ip_of
from services.chassis.channel import REASON
from services.chassis.ids import parse_tenant, uuid7
from services.chassis.plain_text import spaced
from services.chassis.proxies import FORWARDED, origin
from services.chassis.rules import Rule, field_at
from services.chassis.status import to_status
from services.chassis.tenancy import PLATFORM, Principal, Tenant

log = logging.getLogger(__name__)

# A unary call whose caller set no deadline gets this one; no call gets a longer one.
LONGEST_CALL_S = 70.0
# A caller's own request id goes into logs and audit events, so not any text will do.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
LONGEST_REASON: Final = 500

PROCESS: Final = str(uuid7())
"""What the request ids of this process begin with: a call is numbered, which costs it nothing."""
_numbers = count(1)

NOBODY = Principal(UUID(int=0), "nobody", "nobody")


NO_MESSAGE: Final[Message] = Empty()
First = Callable[[], Awaitable[Message]]
Ending = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Call:
    """One RPC on its way: what the wire said, then what the gates found."""

    rule: Rule
    message: Message
    metadata: Mapping[str, str]
    peer: str
    request_id: str
    secure: bool = False
    certificate: str = ""
    """The subject of the client certificate that the channel proved."""
    origin: str = ""
    """Where it began, where a trusted proxy says so."""
    again: bool = False
    """A stream's call is looked at again: it is no new one."""
    first: "First | None" = None
    """Waits for a stream's first message, until that is here."""
    principal: Principal = NOBODY
    tenant: str = PLATFORM
    tenant_id: UUID | None = field(default=None)

    @property
    def address(self) -> str:
        """The caller's address without the port; `unix` for a socket."""
        return self.origin or address_of(self.peer)

    @property
    def user_agent(self) -> str:
        """What the caller says it calls with."""
        return self.metadata.get("user-agent", "")

    @property
    def reason(self) -> str:
        """Why the caller does it, in one line of theirs; metadata holds it percent-encoded."""
        said = self.metadata.get(REASON)
        return spaced(unquote(said)[:LONGEST_REASON]) if said else ""

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

    def check(self, permission: str) -> None:
        """Raise PermissionDenied where the caller has not, now, what the rule does not ask for."""
        if not self.principal.may(permission, self.tenant):
            raise denied(permission, self.tenant)


Gate = Callable[[Call], Awaitable[None]]


class Authenticator(Protocol):
    """Finds who a credential belongs to: the registry in its tables, the executor by asking it."""

    async def authenticate(self, credential: str, address: str = "") -> Principal:
        """The principal of a key or token that came from an address.

        Raises Unauthenticated where there is none, for whatever reason.
        """

    async def recognise(self, certificate: str, address: str = "") -> Principal:
        """The principal of a client certificate, by its subject; raises the same."""


class TenantFinder(Protocol):
    """Finds a tenant: the registry among the wanted ones, the executor among the projected ones."""

    async def find(self, slug_or_id: str) -> Tenant | None:
        """It, by either name."""


class Gates:
    """The gates of one server.

    A forwarded address counts only from `proxies`. `observe` sees every call whose caller is known,
    also one that is then refused, but no stream's a second time.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        tenants: TenantFinder,
        *,
        proxies: Sequence[Network] = (),
        observe: Callable[[Call], None] | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._tenants = tenants
        self._proxies = tuple(proxies)
        self._observe = observe

    def in_order(self) -> Sequence[Gate]:
        """The declared order."""
        return (
            self.channel,  # first: a credential on a clear channel must not even be looked at
            self.authenticate,  # before authorisation, which asks who it is
            self.arrive,  # only now: nobody unknown may keep us waiting
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
        """Find the principal of the call's credential, or else of its channel's certificate."""
        if self._proxies and FORWARDED in call.metadata:
            call.origin = origin(address_of(call.peer), call.metadata[FORWARDED], self._proxies)
        principal = await self._principal(call)
        if not principal.may_call_from(ip_of(call.address)):
            log.warning("%s was used from %s, which it may not be", principal.session, call.address)
            raise errors.Unauthenticated("the credential is not valid")
        call.principal = principal
        if self._observe is not None and not call.again:
            self._observe(call)

    async def _principal(self, call: Call) -> Principal:
        said = call.metadata.get("authorization", "")
        if call.certificate and not said:
            return await self._authenticator.recognise(call.certificate, call.address)
        kind, _, credential = said.partition(" ")
        if kind.lower() != "bearer" or not credential:
            raise errors.Unauthenticated("no credential: send `authorization: Bearer <key>`")
        return await self._authenticator.authenticate(credential, call.address)

    async def arrive(self, call: Call) -> None:
        """Wait for a stream's first message."""
        if call.first is not None:
            call.message, call.first = await call.first(), None

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
        found = await self._found(rule, principal, named)
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
        if not call.reason:
            call.principal = _without_reason(call)

    async def _found(self, rule: Rule, principal: Principal, named: str) -> Tenant | None:
        access = principal.access(named)
        if access is not None and access.tenant_id is not None:
            return Tenant(access.tenant, access.tenant_id, access.state)
        if not principal.platform:
            return None
        # Whoever acts for the platform may learn that a tenant is absent.
        found = await self._tenants.find(named)
        return None if found and found.state == "purged" and not rule.when_purged else found


def _tenant_of(call: Call) -> str:
    """The tenant that a call names, or its caller's only one; empty for the platform.

    Raises InvalidArgument where it must be named.
    """
    rule = call.rule
    if not rule.tenant_field:
        return PLATFORM
    text = field_at(call.message, rule.tenant_field)
    if rule.tenant_optional and "/" in text and not text.startswith("tenants/"):
        # The name of a thing of the platform begins with its own collection.
        return PLATFORM
    named = tenant_named(text)
    if named or rule.tenant_optional:
        return named
    accesses = list(call.principal.accesses.values())
    if len(accesses) == 1 and accesses[0].tenant:
        return accesses[0].tenant
    raise errors.invalid(rule.tenant_field, "must name a tenant")


def _without_reason(call: Call) -> Principal:
    """The caller without what they may do here only for a reason, for all that the call asks.

    Raises InvalidArgument where the call itself needs that.
    """
    permission, left = call.rule.permission, call.principal.without_reason()
    if left.may(permission, call.tenant):
        return left
    held = next(
        grant for grant in call.principal.grants(call.tenant) if permission in grant.permissions
    )
    raise errors.InvalidArgument(
        f"acting in tenants/{call.tenant} by {held.role} needs a reason: "
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

    def around(
        self,
        message: Message | First,
        context: Any,
        *,
        bounded: bool,
        ending: Ending | None = None,
    ) -> "Passage":
        """Let the call through the gates, or end it with the status its error means.

        `message` is the request, or what waits for the first one of a stream: a gate does.
        `ending` comes before the status of an error.
        """
        call = self._call(context)
        if isinstance(message, Message):
            call.message = message
        else:
            call.first = message
        bound_s = _bound(context) if bounded else None
        return Passage(call, self._gates, context, bound_s, ending)

    async def look_again(self, call: Call) -> None:
        """Put a stream's call to the gates once more; raises where it may not go on.

        Then it goes on as whoever the caller is now.
        """
        again = replace(call, again=True)
        for gate in self._gates:
            await gate(again)
        call.principal, call.tenant, call.tenant_id = again.principal, again.tenant, again.tenant_id

    def _call(self, context: Any) -> Call:
        metadata = dict(context.invocation_metadata() or ())
        peer = context.peer() or ""
        local, asked = is_local(peer), metadata.get("x-request-id", "")
        channel = {} if local and "authorization" in metadata else context.auth_context()
        return Call(
            rule=self._rule,
            message=NO_MESSAGE,
            metadata=metadata,
            peer=peer,
            request_id=asked if REQUEST_ID.fullmatch(asked) else f"{PROCESS}-{next(_numbers):x}",
            secure=local or is_encrypted(channel),
            certificate=certified(channel),
        )


class Passage:
    """A call within the frame.

    A class and no generator, since it is entered at every call.
    """

    __slots__ = ("_bound", "_call", "_context", "_ending", "_gates", "_ids")

    def __init__(
        self,
        call: Call,
        gates: Sequence[Gate],
        context: Any,
        bound_s: float | None,
        ending: Ending | None = None,
    ) -> None:
        self._call, self._gates, self._context = call, gates, context
        self._ending = ending
        trace = telemetry.parse_traceparent(call.metadata.get("traceparent", ""))
        self._ids = telemetry.bind(trace, request_id=call.request_id, method=call.rule.method)
        self._bound = asyncio.timeout(bound_s)

    async def __aenter__(self) -> Call:
        """The call, past the gates."""
        self._ids.__enter__()
        await self._bound.__aenter__()
        try:
            for gate in self._gates:
                await gate(self._call)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self._call

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: Any
    ) -> None:
        """Answer what was raised with its status."""
        try:
            await self._bound.__aexit__(kind, error, at)
        except TimeoutError:
            error = errors.DeadlineExceeded("the call took too long")
        try:
            # Nothing unnamed may leave.
            if isinstance(error, Exception):
                await self._end(error)
        finally:
            self._ids.__exit__()

    async def _end(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            error = errors.DeadlineExceeded("the call took too long")
        if not isinstance(error, errors.TenonError) or isinstance(error, errors.Internal):
            log.error("internal error: %s", type(error).__name__, exc_info=error)
        if not isinstance(error, errors.TenonError):
            error = errors.Internal(type(error).__name__)
        if self._ending is not None:
            await self._ending()
        await self._context.abort_with_status(to_status(error, self._call.request_id))


@lru_cache(maxsize=4096)
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


def certified(auth_context: Mapping[str, Sequence[bytes]]) -> str:
    """The subject of the client certificate gRPC verified: its first URI, DNS name, or else CN."""
    for part in ("peer_uri", "peer_dns", "x509_common_name"):
        for value in auth_context.get(part, ()):
            return value.decode(errors="replace")
    return ""


def _bound(context: Any) -> float:
    remaining = context.time_remaining()
    return LONGEST_CALL_S if remaining is None else max(0.001, min(remaining, LONGEST_CALL_S))
