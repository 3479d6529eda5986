"""The registry's client: the one way to principals, secrets, keys and wanted state.

With the registry down, principals we know serve for 5 minutes, secrets and keys for 15; after that
every answer is Unavailable, never Unauthenticated.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network
from typing import Final, TypeVar, cast
from uuid import UUID

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import access_service_pb2_grpc as access_grpc
from tenon.registry.v1 import audit_service_pb2 as audit
from tenon.registry.v1 import audit_service_pb2_grpc as audit_grpc
from tenon.registry.v1 import config_service_pb2 as config
from tenon.registry.v1 import config_service_pb2_grpc as config_grpc
from tenon.registry.v1 import credential_service_pb2 as credential
from tenon.registry.v1 import credential_service_pb2_grpc as credential_grpc
from tenon.registry.v1 import tenant_service_pb2 as tenant
from tenon.registry.v1 import tenant_service_pb2_grpc as tenant_grpc

from services.chassis import errors, tenancy
from services.chassis.cache import Cache, Clock, Keeping
from services.chassis.guesses import TOO_MANY
from services.chassis.invalidation import Invalidation, invalidation
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.chassis.status import from_rpc_error
from services.chassis.strict_json import whole
from services.chassis.usage import Counted
from services.executor.steering import Limits
from services.executor.store.audit_outbox import Told
from services.executor.store.projected import ProjectedObject

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CALL_S: Final = 5.0
SNAPSHOT_S: Final = 60.0
# The feed gives a sign of life every 10 s; a connection without one for this long is dead.
SILENCE_S: Final = 30.0

PRINCIPALS: Final = Keeping(fresh_s=30, stale_s=300)
SECRETS: Final = Keeping(fresh_s=300, stale_s=900)

KINDS: Final[Mapping[str, str]] = {
    "integration": "Integration",
    "credential": "Credential",
    "connector": "Connector",
    "webhook_endpoint": "WebhookEndpoint",
    "subscription": "Subscription",
}
"""The snapshot's word for each kind that is projected, and the YAML's."""

REVISION: Final = "revision"
LEAVING: Final = "tenant"
"""What the feed says of a tenant that is being deleted."""

CALLER_UNKNOWN: Final = "CALLER_UNKNOWN"
"""The registry's reason where it is the caller, not we, whom it does not know."""
CALLER_GUESSES: Final = "CALLER_GUESSES"
"""The same, after too many wrong ones of the caller's address."""

NO_ANSWER: Final = (
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Internal,
    # Of our own key: nobody who calls us did anything wrong.
    errors.Unauthenticated,
    errors.PermissionDenied,
)
"""What says nothing of the thing asked for, so that what we know of it goes on to count."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A credential's values, for memory only."""

    type: str
    version: int
    values: Mapping[str, Secret] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LeasedKey:
    """A tenant's key for the executor's own sealing, for memory only."""

    data_key_id: UUID
    key: Secret


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one tenant wants at one revision."""

    tenant_id: UUID
    slug: str
    revision: int
    enabled: bool
    limits: Limits
    objects: tuple[ProjectedObject, ...]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """A tenant has come to a revision, or is `leaving`."""

    tenant_id: UUID
    revision: int
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class FeedMessage:
    """Where to go on, and what changed; a sign of life has no change."""

    position: str
    changed: Changed | None


class Registry:
    """Asks the registry over one channel, which must carry the executor's service key."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._access: access_grpc.AccessServiceAsyncStub = access_grpc.AccessServiceStub(channel)
        self._audit: audit_grpc.AuditServiceAsyncStub = audit_grpc.AuditServiceStub(channel)
        self._config: config_grpc.ConfigServiceAsyncStub = config_grpc.ConfigServiceStub(channel)
        self._credentials: credential_grpc.CredentialServiceAsyncStub = (
            credential_grpc.CredentialServiceStub(channel)
        )
        self._tenants: tenant_grpc.TenantServiceAsyncStub = tenant_grpc.TenantServiceStub(channel)
        self._now = now
        self._principals: Cache[bytes, tenancy.Principal] = Cache(PRINCIPALS, clock)
        self._resolved: Cache[tuple[UUID, str, int], Resolved] = Cache(SECRETS, clock)
        self._keys: Cache[UUID, LeasedKey] = Cache(SECRETS, clock)

    async def authenticate(self, credential: str, address: str = "") -> tenancy.Principal:
        """Who a key or token belongs to, that came from an address.

        Raises Unauthenticated, ResourceExhausted, or Unavailable when unknown yet.
        """
        mark = hashlib.sha256(f"credential {credential}".encode()).digest()
        found = self._principals.known(mark)
        if found is None:
            request = access.AuthenticateRequest(credential=credential, address=address)
            found = await self._principals.get(mark, partial(self._authenticate, request))
        return self._in_time(found)

    async def recognise(self, certificate: str, address: str = "") -> tenancy.Principal:
        """Who the subject of a client certificate is; raises the same."""
        mark = hashlib.sha256(f"certificate {certificate}".encode()).digest()
        request = access.AuthenticateRequest(certificate=certificate, address=address)
        found = await self._principals.get(mark, partial(self._authenticate, request))
        return self._in_time(found)

    def forget(self, told: Invalidation) -> None:
        """Drop the principals it concerns, and a tenant's secrets and key."""
        concerned, tenant_id = told.concerns(), told.tenant_id
        self._principals.drop(lambda _, principal: concerned(principal))
        if tenant_id is not None:
            self._resolved.drop(lambda key, _: key[0] == tenant_id)
            self._keys.drop(lambda key, _: key == tenant_id)

    async def watch_invalidations(self) -> AsyncGenerator[Invalidation | None, None]:
        """What no longer holds: everything first, then as it happens; None is a sign of life."""
        call = self._access.WatchInvalidations(access.WatchInvalidationsRequest())
        try:
            async for told in _heard(call):
                yield invalidation(told.what, told.of) if told.what else None
        finally:
            call.cancel()

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The values of a credential; `version` is the projected one: a new one is asked anew."""
        return await self._resolved.get(
            (tenant_id, name, version), lambda: self._resolve(tenant_id, name)
        )

    async def lease_key(self, tenant_id: UUID) -> LeasedKey:
        """The tenant's key for sealing what stays here."""
        return await self._keys.get(tenant_id, lambda: self._lease_key(tenant_id))

    async def snapshot(self, tenant_id: UUID) -> Snapshot:
        """A tenant's wanted state at one moment."""
        head = config.SnapshotHead()
        objects: list[ProjectedObject] = []
        request = config.GetSnapshotRequest(name=f"tenants/{tenant_id}")
        with _our_errors():
            async for part in self._config.GetSnapshot(request, timeout=SNAPSHOT_S):
                if part.HasField("head"):
                    head = part.head
                objects += [projected(each) for each in part.chunk.objects if _is_projected(each)]
        if head.tenant_uid != str(tenant_id):
            raise errors.Unavailable("the registry sent a snapshot without its head")
        return Snapshot(
            tenant_id,
            head.tenant,
            head.revision,
            head.enabled,
            _limits(head),
            tuple(objects),
            head.draining,
        )

    async def watch_feed(self, position: str) -> AsyncGenerator[FeedMessage, None]:
        """What changes from a position on, endlessly. Raises OutOfRange where it is not kept."""
        call = self._config.WatchFeed(config.WatchFeedRequest(position=position))
        try:
            async for answer in _heard(call):
                yield FeedMessage(answer.position, _changed(answer))
        finally:
            call.cancel()

    async def report_projection(self, tenant_id: UUID, revision: int) -> None:
        """Say by which revision of a tenant we work now."""
        request = config.ReportProjectionRequest(name=f"tenants/{tenant_id}", revision=revision)
        await _asked(self._config.ReportProjection(request, timeout=CALL_S))

    async def has_deleted(self, tenant_id: UUID) -> bool:
        """Whether the registry deleted a tenant; one that it never knew it did not."""
        request = tenant.GetTombstoneRequest(name=f"tombstones/{tenant_id}")
        try:
            await _asked(self._tenants.GetTombstone(request, timeout=CALL_S))
        except errors.NotFound:
            return False
        return True

    async def report_purge(self, tenant_id: UUID, rows: Mapping[str, int]) -> None:
        """Say that we have nothing of a tenant any more; how many rows it had, by table."""
        request = tenant.ReportPurgeRequest(name=f"tenants/{tenant_id}", rows=rows)
        await _asked(self._tenants.ReportPurge(request, timeout=CALL_S))

    async def record(self, tenant_id: UUID | None, told: Sequence[Told]) -> None:
        """Take what was done here into a tenant's audit log, or into the platform's."""
        try:
            events = [ParseDict(one.event, audit.RecordedEvent()) for one in told]
        except ParseError as error:
            raise errors.InvalidArgument(f"an event that is none: {error}") from None
        parent = f"tenants/{tenant_id}" if tenant_id else ""
        request = audit.RecordAuditEventsRequest(parent=parent, events=events)
        await _asked(self._audit.RecordAuditEvents(request, timeout=CALL_S))

    async def report_usage(self, counted: Counted) -> None:
        """Hand on what was counted of calls by API key."""
        request = access.ReportUsageRequest()
        for use in counted.uses:
            row = request.uses.add(
                key_id=use.key_id,
                method=use.method,
                address=use.address,
                user_agent=use.user_agent,
                count=use.count,
            )
            row.bucket_time.FromSeconds(use.bucket)
            row.last_use_time.FromNanoseconds(int(use.last * 1e9))
        for stay in counted.stays:
            switch = request.switches.add(
                principal_uid=str(stay.principal_id), tenant_uid=str(stay.tenant_id)
            )
            switch.switch_time.FromNanoseconds(int(stay.since * 1e9))
        await _asked(self._access.ReportUsage(request, timeout=CALL_S))

    def _in_time(self, found: tenancy.Principal) -> tenancy.Principal:
        if found.expires_at is not None and found.expires_at <= self._now():
            raise errors.Unauthenticated("the credential is not valid")
        return found

    async def _authenticate(
        self, request: access.AuthenticateRequest
    ) -> tuple[tenancy.Principal, float]:
        answer = await _asked(self._access.Authenticate(request, timeout=CALL_S), of_caller=True)
        return principal(answer), PRINCIPALS.stale_s

    async def _resolve(self, tenant_id: UUID, name: str) -> tuple[Resolved, float]:
        path = f"tenants/{tenant_id}/credentials/{name}"
        request = credential.ResolveCredentialRequest(name=path)
        answer = await _asked(self._credentials.ResolveCredential(request, timeout=CALL_S))
        values = {part: remember(Secret(value)) for part, value in answer.values.items()}
        found = Resolved(answer.type, answer.version, values)
        return found, answer.ttl.ToTimedelta().total_seconds()

    async def _lease_key(self, tenant_id: UUID) -> tuple[LeasedKey, float]:
        request = credential.LeaseKeyRequest(name=f"tenants/{tenant_id}")
        answer = await _asked(self._credentials.LeaseKey(request, timeout=CALL_S))
        leased = LeasedKey(UUID(answer.data_key_uid), remember(Secret(answer.key)))
        return leased, answer.ttl.ToTimedelta().total_seconds()


def principal(answer: access.AuthenticateResponse) -> tenancy.Principal:
    """The registry's answer as the gates take it."""
    return tenancy.Principal(
        principal_id=UUID(answer.principal.uid),
        kind=answer.principal.kind,
        display_name=answer.principal.display_name,
        accesses={
            each.tenant: tenancy.Access(
                tenant=each.tenant,
                tenant_id=UUID(each.tenant_uid) if each.tenant_uid else None,
                grants=tuple(_grant(grant) for grant in each.grants),
                state=cast("tenancy.State", each.state),
            )
            for each in answer.accesses
        },
        expires_at=answer.expire_time.ToDatetime(UTC) if answer.HasField("expire_time") else None,
        session=answer.session,
        ranges=tuple(map(ip_network, answer.address_ranges)),
        identity=answer.identity,
    )


def _grant(held: access.HeldGrant) -> tenancy.Grant:
    return tenancy.Grant(
        held.role,
        frozenset(held.permissions),
        frozenset(held.kinds),
        frozenset(held.sources),
        held.needs_reason,
    )


def projected(each: config.SnapshotObject) -> ProjectedObject:
    """One object of a snapshot; of a Credential, nothing of its values."""
    resource = each.resource
    word = resource.WhichOneof("spec") or ""
    spec = MessageToDict(
        getattr(resource, word),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    if word == "credential":
        spec.pop("values")
    return ProjectedObject(
        KINDS[word], UUID(each.uid), resource.metadata.name, each.version, whole(spec)
    )


def _limits(head: config.SnapshotHead) -> Limits:
    """What a tenant may; a tenant that is not enabled runs nothing."""
    told = head.limits
    return Limits(
        paused=not head.enabled,
        weight=told.weight,
        max_running=told.max_running or None,
        provider_caps=dict(told.max_running_per_provider),
        work_per_hour=told.work_per_hour or None,
    )


def _is_projected(each: config.SnapshotObject) -> bool:
    return each.resource.WhichOneof("spec") in KINDS


def _changed(answer: config.WatchFeedResponse) -> Changed | None:
    if not answer.HasField("entry"):
        return None
    entry = answer.entry
    if entry.kind not in {REVISION, LEAVING}:
        return None
    return Changed(UUID(entry.tenant_uid), entry.revision, leaving=entry.kind == LEAVING)


async def _heard(answers: AsyncIterable[Answer]) -> AsyncIterator[Answer]:
    """The answers of a stream that gives signs of life, in our errors."""
    waiting = aiter(answers)
    while True:
        with _our_errors():
            async with asyncio.timeout(SILENCE_S):
                answer = await anext(waiting, None)
        if answer is None:
            return
        yield answer


async def _asked(call: Awaitable[Answer], *, of_caller: bool = False) -> Answer:
    """The answer of one call; `of_caller`: Unauthenticated speaks of a credential we ask about."""
    with _our_errors(of_caller=of_caller):
        return await call


@contextmanager
def _our_errors(*, of_caller: bool = False) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        ours = from_rpc_error(error)
        if of_caller and ours.code == CALLER_UNKNOWN:
            raise errors.Unauthenticated(ours.message) from None
        if of_caller and ours.code == CALLER_GUESSES:
            # It was looked up and is wrong: what we remember of it must not go on to count.
            raise errors.Unauthenticated(
                ours.message, reason=TOO_MANY, retry_after_s=ours.retry_after_s
            ) from None
        if isinstance(ours, NO_ANSWER):
            log.warning("the registry did not answer: %s: %s", ours.code, ours.message)
            raise errors.Unavailable("the registry does not answer") from None
        raise ours from None
    except TimeoutError:
        raise errors.Unavailable("the registry fell silent") from None
