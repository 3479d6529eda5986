"""The real registry in this process, on the test's database; it can be stopped and started."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from uuid import UUID, uuid4

import grpc
from google.protobuf.json_format import ParseDict
from tenon.registry.v1 import (
    config_service_pb2,
    config_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
    wanted_pb2,
)

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.chassis.interceptors import Call, Gates
from services.chassis.secret import Secret
from services.chassis.server import Listen, serving
from services.chassis.status import from_rpc_error
from services.registry import opening
from services.registry.access.control import AccessControl, add_principal
from services.registry.feed import Feed
from services.registry.store import tombstones
from services.registry.store.tenants import Tenants
from services.registry.tenants.purge import Purge
from tests.wiring import settings, wired

Document = dict[str, object]
KINDS = {
    "Tenant": "tenant",
    "Integration": "integration",
    "Credential": "credential",
    "Connection": "connection",
    "Connector": "connector",
    "WebhookEndpoint": "webhook_endpoint",
    "Subscription": "subscription",
    "EventType": "event_type",
}


class RunningRegistry:
    """The registry service with its keys, the calls it got, and a fault to answer with."""

    def __init__(self, database: Database, **said: str) -> None:
        self.calls: Counter[str] = Counter()
        self.fault: TenonError | None = None
        self.port = 0
        self.owner_key = Secret("")
        self.service_key = Secret("")
        self._database = database
        self._settings = settings(**said)
        self._pepper = _random_key()
        self._access = AccessControl(database, self._pepper)
        self._open: AsyncExitStack | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def prepare(self) -> None:
        self.owner_key = await self.key("user", "SUPER_ADMIN")
        self.service_key = await self.key("service", "EXECUTOR")

    async def key(self, kind: str, role: str | None, expires_at: datetime | None = None) -> Secret:
        """A key of a new principal."""
        async with self._database.system() as tx:
            principal = await add_principal(tx, kind, f"the {kind}", role)
            return await self._access.issue(tx, "test", principal, kind, ["*"], expires_at)

    async def start(self) -> None:
        self._access = AccessControl(self._database, self._pepper)
        tenants, feed = Tenants(self._database), Feed(self._database)
        gates = [*Gates(self._access, tenants).in_order(), self._observe]
        async with AsyncExitStack() as stack:
            listening = asyncio.create_task(feed.listen())
            stack.callback(listening.cancel)
            hearing = asyncio.create_task(self._access.invalidations.listen())
            stack.callback(hearing.cancel)
            listen = Listen(f"127.0.0.1:{self.port}")
            wiring = wired(self._database, self._access, tenants, feed, self._settings)
            self._base, found = await stack.enter_async_context(wiring)
            self.port = await stack.enter_async_context(
                serving(found.services, gates, listen, grace_s=0.1)
            )
            self._open = stack.pop_all()

    async def stop(self) -> None:
        if self._open is not None:
            # Followers would otherwise hold up the drain for the whole of its grace.
            self._access.invalidations.close()
            await self._open.aclose()
            self._open = None

    async def apply(self, tenant: str, *documents: Document) -> int:
        """Apply wanted objects as the reconciler does; answers with the revision."""
        async with open_channel(self.target) as channel:
            stub: config_service_pb2_grpc.ConfigServiceAsyncStub = (
                config_service_pb2_grpc.ConfigServiceStub(channel)
            )
            call = stub.ApplyConfig(
                iter(_parts(tenant, documents)), timeout=20, metadata=self._authorization()
            )
            try:
                return (await call).revision
            except grpc.RpcError as error:
                told = from_rpc_error(error)
                raise AssertionError(told.message, told.violations) from None

    async def tenant(self, slug: str) -> tenant_service_pb2.Tenant:
        """A tenant as the registry sees it."""
        async with open_channel(self.target) as channel:
            stub: tenant_service_pb2_grpc.TenantServiceAsyncStub = (
                tenant_service_pb2_grpc.TenantServiceStub(channel)
            )
            request = tenant_service_pb2.GetTenantRequest(name=f"tenants/{slug}")
            return await stub.GetTenant(request, timeout=20, metadata=self._authorization())

    async def tenant_id(self, slug: str) -> UUID:
        return UUID((await self.tenant(slug)).uid)

    async def purge(self, slug: str) -> None:
        """Delete what the registry has of a tenant that drains, as if the executor had reported."""
        tenant_id = await self.tenant_id(slug)
        await tombstones.report(self._database, tenant_id, {})
        await Purge(self._database, opening.open_log(self._base.vault)).purge(tenant_id)

    def _authorization(self) -> tuple[tuple[str, str], ...]:
        key = self.owner_key.reveal_text()
        return (("authorization", f"Bearer {key}"), ("x-tenon-reason", "a%20test"))

    async def _observe(self, call: Call) -> None:
        self.calls[call.rule.method.rpartition("/")[2]] += 1
        if self.fault is not None:
            raise self.fault


def document(kind: str, name: str, **spec: object) -> Document:
    """One wanted object."""
    return {"metadata": {"name": name}, KINDS[kind]: spec}


def _parts(
    tenant: str, documents: Sequence[Document]
) -> list[config_service_pb2.ApplyConfigRequest]:
    header = config_service_pb2.ConfigHeader(tenant=tenant, request_id=str(uuid4()))
    resources = [ParseDict(each, wanted_pb2.Resource()) for each in documents]
    for resource in resources:
        resource.metadata.tenant = tenant
    chunk = config_service_pb2.ConfigChunk(resources=resources)
    return [
        config_service_pb2.ApplyConfigRequest(header=header),
        config_service_pb2.ApplyConfigRequest(chunk=chunk),
    ]


def _random_key() -> Secret:
    return Secret(secrets.token_bytes(32))
