"""The registry's client: the one way to principals, secrets, keys and wanted state.

With the registry down, principals we know serve for 5 minutes, secrets and keys for 15; after that
every answer is Unavailable, never Unauthenticated.
"""

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

import grpc
from google.protobuf.json_format import ParseDict, ParseError
from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import access_service_pb2_grpc as access_grpc
from tenon.registry.v1 import audit_service_pb2 as audit
from tenon.registry.v1 import audit_service_pb2_grpc as audit_grpc
from tenon.registry.v1 import config_service_pb2 as config
from tenon.registry.v1 import config_service_pb2_grpc as config_grpc
from tenon.registry.v1 import tenant_service_pb2 as tenant
from tenon.registry.v1 import tenant_service_pb2_grpc as tenant_grpc

from services.chassis import errors, tenancy
from services.chassis.cache import Cache, Clock, Keeping
from services.chassis.invalidation import Invalidation, invalidation
from services.chassis.usage import Counted
from services.executor.registry.calls import CALL_S, asked, heard, our_errors
from services.executor.registry.credentials import LeasedKey, Resolved
from services.executor.registry.messages import (
    FeedMessage,
    Snapshot,
    feed_message,
    principal,
    snapshot,
    usage_report,
)
from services.executor.registry.secrets import RegistrySecrets
from services.executor.registry.uses import Used, Uses
from services.executor.store.audit_outbox import Told

SNAPSHOT_S: Final = 60.0
PRINCIPALS: Final = Keeping(fresh_s=30, stale_s=300)


class Registry:
    """Asks the registry over one channel, which must carry the executor's service key.

    `kept` is how long at most stays here what is sealed with a tenant's key.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        uses: Uses | None = None,
        *,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        kept: timedelta = timedelta(0),
    ) -> None:
        self._access: access_grpc.AccessServiceAsyncStub = access_grpc.AccessServiceStub(channel)
        self._audit: audit_grpc.AuditServiceAsyncStub = audit_grpc.AuditServiceStub(channel)
        self._config: config_grpc.ConfigServiceAsyncStub = config_grpc.ConfigServiceStub(channel)
        self._tenants: tenant_grpc.TenantServiceAsyncStub = tenant_grpc.TenantServiceStub(channel)
        self._now = now
        self._principals: Cache[bytes, tenancy.Principal] = Cache(PRINCIPALS, clock)
        self._secrets = RegistrySecrets(channel, uses or Uses(), clock, kept)

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
        """Drop the principals, the credentials and the keys that it concerns."""
        concerned = told.concerns()
        self._principals.drop(lambda _, principal: concerned(principal))
        self._secrets.forget(told)

    async def watch_invalidations(self) -> AsyncGenerator[Invalidation | None, None]:
        """What no longer holds: everything first, then as it happens; None is a sign of life."""
        call = self._access.WatchInvalidations(access.WatchInvalidationsRequest())
        try:
            async for told in heard(call):
                yield invalidation(told.what, told.of) if told.what else None
        finally:
            call.cancel()

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The values of a credential; `version` is the projected one: a new one is asked anew."""
        return await self._secrets.resolve(tenant_id, name, version)

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        """See that a credential has newer tokens than those of a version.

        Raises FailedPrecondition where there can be none, Unavailable where there are none for now.
        """
        await self._secrets.refresh(tenant_id, name, version)

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
        """The tenant's key for sealing what stays here, or the one that something was sealed with.

        Raises Unsealable where that one is gone for good.
        """
        return await self._secrets.lease_key(tenant_id, data_key_id)

    async def report_credential_use(self, used: Used) -> None:
        """Hand on how a tenant's credentials and keys were used."""
        await self._secrets.report(used)

    async def snapshot(self, tenant_id: UUID) -> Snapshot:
        """A tenant's wanted state at one moment."""
        head = config.SnapshotHead()
        objects: list[config.SnapshotObject] = []
        request = config.GetSnapshotRequest(name=f"tenants/{tenant_id}")
        with our_errors():
            async for part in self._config.GetSnapshot(request, timeout=SNAPSHOT_S):
                if part.HasField("head"):
                    head = part.head
                objects += part.chunk.objects
        if head.tenant_uid != str(tenant_id):
            raise errors.Unavailable("the registry sent a snapshot without its head")
        return snapshot(tenant_id, head, objects)

    async def watch_feed(self, position: str) -> AsyncGenerator[FeedMessage, None]:
        """What changes from a position on, endlessly. Raises OutOfRange where it is not kept."""
        call = self._config.WatchFeed(config.WatchFeedRequest(position=position))
        try:
            async for answer in heard(call):
                yield feed_message(answer)
        finally:
            call.cancel()

    async def report_projection(self, tenant_id: UUID, revision: int) -> None:
        """Say by which revision of a tenant we work now."""
        request = config.ReportProjectionRequest(name=f"tenants/{tenant_id}", revision=revision)
        await asked(self._config.ReportProjection(request, timeout=CALL_S))

    async def has_deleted(self, tenant_id: UUID) -> bool:
        """Whether the registry deleted a tenant; one that it never knew it did not."""
        request = tenant.GetTombstoneRequest(name=f"tombstones/{tenant_id}")
        try:
            await asked(self._tenants.GetTombstone(request, timeout=CALL_S))
        except errors.NotFound:
            return False
        return True

    async def report_purge(self, tenant_id: UUID, rows: Mapping[str, int]) -> None:
        """Say that we have nothing of a tenant any more; how many rows it had, by table."""
        request = tenant.ReportPurgeRequest(name=f"tenants/{tenant_id}", rows=rows)
        await asked(self._tenants.ReportPurge(request, timeout=CALL_S))

    async def record(self, tenant_id: UUID | None, told: Sequence[Told]) -> None:
        """Take what was done here into a tenant's audit log, or into the platform's."""
        try:
            events = [ParseDict(one.event, audit.RecordedEvent()) for one in told]
        except ParseError as error:
            raise errors.InvalidArgument(f"an event that is none: {error}") from None
        parent = f"tenants/{tenant_id}" if tenant_id else ""
        request = audit.RecordAuditEventsRequest(parent=parent, events=events)
        await asked(self._audit.RecordAuditEvents(request, timeout=CALL_S))

    async def report_usage(self, counted: Counted) -> None:
        """Hand on what was counted of calls by API key."""
        await asked(self._access.ReportUsage(usage_report(counted), timeout=CALL_S))

    def _in_time(self, found: tenancy.Principal) -> tenancy.Principal:
        if found.expires_at is not None and found.expires_at <= self._now():
            raise errors.Unauthenticated("the credential is not valid")
        return found

    async def _authenticate(
        self, request: access.AuthenticateRequest
    ) -> tuple[tenancy.Principal, float]:
        answer = await asked(self._access.Authenticate(request, timeout=CALL_S), of_caller=True)
        return principal(answer), PRINCIPALS.stale_s
