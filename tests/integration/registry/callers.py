"""A running registry and whoever calls it."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import grpc
import pytest
from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import access_service_pb2_grpc as access_grpc
from tenon.registry.v1 import audit_service_pb2_grpc as audit_grpc
from tenon.registry.v1 import config_service_pb2 as config
from tenon.registry.v1 import config_service_pb2_grpc as config_grpc
from tenon.registry.v1 import connection_service_pb2_grpc as connection_grpc
from tenon.registry.v1 import credential_service_pb2_grpc as credential_grpc
from tenon.registry.v1 import integration_service_pb2_grpc as integration_grpc
from tenon.registry.v1 import key_service_pb2_grpc as key_grpc
from tenon.registry.v1 import principal_service_pb2_grpc as principal_grpc
from tenon.registry.v1 import staff_service_pb2_grpc as staff_grpc
from tenon.registry.v1 import tenant_service_pb2_grpc as tenant_grpc
from tenon.registry.v1 import vault_service_pb2_grpc as vault_grpc
from tenon.registry.v1 import wanted_pb2 as wanted

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.chassis.secret import Secret
from services.chassis.status import from_rpc_error
from services.registry.access.control import AccessControl, add_principal
from services.registry.access.staff import appoint
from services.registry.feed import Feed
from services.registry.keys.holding import Holding
from services.registry.keys.vault import Vault
from services.registry.main import Wired
from services.registry.store.tenants import Tenants
from tests.grants import grant


@dataclass
class Registry:
    """A running registry and what a test may do to it."""

    target: str
    database: Database
    access: AccessControl
    tenants: Tenants
    feed: Feed
    superuser: Secret
    vault: Vault
    holding: Holding
    wired: Wired

    async def key(
        self,
        role: str,
        tenant: str = "",
        *,
        kind: str = "user",
        scopes: tuple[str, ...] = ("*",),
        expires_at: datetime | None = None,
    ) -> Secret:
        """A new principal's key with a role in a tenant, or in the platform."""
        async with self.database.system() as transaction:
            name = f"{role} of {tenant or 'all'}"
            principal = await add_principal(transaction, kind, name, None if tenant else role)
            key = await self.access.issue(
                transaction, "test", principal, "test", scopes, expires_at
            )
        if tenant:
            await grant(self.database, await self.tenant_id(tenant), kind, principal, role)
        return key

    async def staff_key(self, role: str, *flags: str) -> str:
        """The key of a new member of the platform's staff."""
        async with self.database.system() as transaction:
            principal = await add_principal(transaction, "user", f"staff {role}")
            await appoint(transaction, principal, role, flags, "a test")
            key = await self.access.issue(transaction, "test", principal, "test", ["*"])
        return key.reveal_text()

    @asynccontextmanager
    async def caller(self, key: str) -> "AsyncIterator[Caller]":
        """Whoever has a key."""
        async with open_channel(self.target, key=Secret(key), reason="a test") as channel:
            yield Caller(channel)

    async def tenant_id(self, slug: str) -> UUID:
        found = await self.tenants.find(slug)
        assert found is not None
        return found.tenant_id


class Caller:
    """A channel with a key, and the contract's stubs on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.access: access_grpc.AccessServiceAsyncStub = access_grpc.AccessServiceStub(channel)
        self.audit: audit_grpc.AuditServiceAsyncStub = audit_grpc.AuditServiceStub(channel)
        self.config: config_grpc.ConfigServiceAsyncStub = config_grpc.ConfigServiceStub(channel)
        self.connections: connection_grpc.ConnectionServiceAsyncStub = (
            connection_grpc.ConnectionServiceStub(channel)
        )
        self.vault: vault_grpc.VaultServiceAsyncStub = vault_grpc.VaultServiceStub(channel)
        self.credentials: credential_grpc.CredentialServiceAsyncStub = (
            credential_grpc.CredentialServiceStub(channel)
        )
        self.integrations: integration_grpc.IntegrationServiceAsyncStub = (
            integration_grpc.IntegrationServiceStub(channel)
        )
        self.keys: key_grpc.KeyServiceAsyncStub = key_grpc.KeyServiceStub(channel)
        self.principals: principal_grpc.PrincipalServiceAsyncStub = (
            principal_grpc.PrincipalServiceStub(channel)
        )
        self.staff: staff_grpc.StaffServiceAsyncStub = staff_grpc.StaffServiceStub(channel)
        self.tenants: tenant_grpc.TenantServiceAsyncStub = tenant_grpc.TenantServiceStub(channel)

    async def is_known(self) -> bool:
        """Whether the credential holds."""
        try:
            await self.access.WhoAmI(access_pb2.WhoAmIRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
        return True

    async def plan(
        self, tenant: str, resources: Iterable[wanted.Resource], **header: Any
    ) -> config.Plan:
        return await self.config.PlanConfig(
            iter(
                [
                    config.PlanConfigRequest(header=config.ConfigHeader(tenant=tenant, **header)),
                    config.PlanConfigRequest(chunk=config.ConfigChunk(resources=resources)),
                ]
            ),
            timeout=20,
        )

    async def apply(
        self, tenant: str, resources: Iterable[wanted.Resource], **header: Any
    ) -> config.ApplyConfigResponse:
        return await self.config.ApplyConfig(
            iter(
                [
                    config.ApplyConfigRequest(header=config.ConfigHeader(tenant=tenant, **header)),
                    config.ApplyConfigRequest(chunk=config.ConfigChunk(resources=resources)),
                ]
            ),
            timeout=20,
        )

    async def snapshot(self, tenant: str) -> dict[tuple[str, str], config.SnapshotObject]:
        """Every object of a tenant by kind and name."""
        found: dict[tuple[str, str], config.SnapshotObject] = {}
        request = config.GetSnapshotRequest(name=f"tenants/{tenant}")
        async for part in self.config.GetSnapshot(request, timeout=20):
            for one in part.chunk.objects:
                kind = one.resource.WhichOneof("spec") or ""
                found[kind, one.resource.metadata.name] = one
        return found


@contextmanager
def refused(kind: type[TenonError], reason: str = "") -> Iterator[list[TenonError]]:
    """Expects a call to be refused so; the list holds the error afterwards."""
    held: list[TenonError] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield held
    held.append(from_rpc_error(caught.value))
    assert type(held[0]) is kind, held[0].message
    assert reason in {"", held[0].code}
