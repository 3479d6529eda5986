"""What owners do with credentials and keys in the running registry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.duration_pb2 import Duration
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2_grpc as pb2_grpc
from tenon.registry.v1 import vault_service_pb2, vault_service_pb2_grpc
from tenon.registry.v1.wanted_pb2 import SecretValue

from services.chassis.channel import open_channel
from services.chassis.secret import Secret
from tests.integration.executor.running_registry import RunningRegistry

CALL_S = 20


async def rotated(
    service: RunningRegistry, tenant: str, name: str, *, overlap_s: int = 3600, **values: Secret
) -> None:
    """Give a credential other values; the old ones go on for a while."""
    given = {part: SecretValue(plain=value.reveal()) for part, value in values.items()}
    request = pb2.RotateCredentialRequest(
        name=_path(tenant, name), values=given, overlap=Duration(seconds=overlap_s)
    )
    async with _credentials(service) as stub:
        await stub.RotateCredential(request, timeout=CALL_S)


async def revoked(service: RunningRegistry, tenant: str, name: str) -> None:
    """Take a credential back for good."""
    async with _credentials(service) as stub:
        request = pb2.RevokeCredentialRequest(name=_path(tenant, name), reason="a test")
        await stub.RevokeCredential(request, timeout=CALL_S)


async def shown(service: RunningRegistry, tenant: str, name: str) -> pb2.Credential:
    """A credential as people see it."""
    async with _credentials(service) as stub:
        request = pb2.GetCredentialRequest(name=_path(tenant, name))
        return await stub.GetCredential(request, timeout=CALL_S)


async def tenant_key_replaced(service: RunningRegistry, tenant: str) -> None:
    """Give a tenant another data key; the old one still opens what it sealed."""
    async with open_channel(service.target, key=service.owner_key, reason="a test") as channel:
        stub: vault_service_pb2_grpc.VaultServiceAsyncStub = (
            vault_service_pb2_grpc.VaultServiceStub(channel)
        )
        request = vault_service_pb2.ReplaceTenantKeyRequest(name=f"tenants/{tenant}")
        await stub.ReplaceTenantKey(request, timeout=CALL_S)


@asynccontextmanager
async def _credentials(
    service: RunningRegistry,
) -> AsyncIterator["pb2_grpc.CredentialServiceAsyncStub"]:
    async with open_channel(service.target, key=service.owner_key, reason="a test") as channel:
        stub: pb2_grpc.CredentialServiceAsyncStub = pb2_grpc.CredentialServiceStub(channel)
        yield stub


def _path(tenant: str, name: str) -> str:
    return f"tenants/{tenant}/credentials/{name}"
