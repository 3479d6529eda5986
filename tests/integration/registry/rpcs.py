"""Every RPC of the registry's contract, callable by its descriptor."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tenon.registry.v1 import (
    access_service_pb2,
    audit_service_pb2,
    config_service_pb2,
    connection_service_pb2,
    credential_service_pb2,
    integration_service_pb2,
    key_service_pb2,
    principal_service_pb2,
    staff_service_pb2,
    tenant_service_pb2,
    vault_service_pb2,
)

from services.chassis.rules import Rule, rule_of

CONTRACTS = (
    access_service_pb2,
    audit_service_pb2,
    config_service_pb2,
    connection_service_pb2,
    credential_service_pb2,
    integration_service_pb2,
    key_service_pb2,
    principal_service_pb2,
    staff_service_pb2,
    tenant_service_pb2,
    vault_service_pb2,
)
# What stands behind the tenant in the name of the thing asked for.
OBJECTS = {
    "DeleteObject": "/subscriptions/opened",
    "GetIntegration": "/integrations/github",
    "ResolveCredential": "/credentials/token",
    "GetCredential": "/credentials/token",
    "PutCredential": "/credentials/token",
    "RotateCredential": "/credentials/token",
    "RevokeCredential": "/credentials/token",
    "ShredCredentialVersion": "/credentials/token",
    "RevealCredential": "/credentials/token",
    "RefreshCredential": "/credentials/token",
    "GetConnection": "/connections/shop",
    "Disconnect": "/connections/shop",
    "BeginOAuth": "/integrations/github",
    "CreateConnectLink": "/integrations/github",
}
REQUEST_ID = "the-same-for-all"


@dataclass(frozen=True)
class Answer:
    """What a caller sees: the code, the message, the packed details."""

    code: grpc.StatusCode
    message: str = ""
    details: bytes = b""


@dataclass(frozen=True)
class Rpc:
    """One RPC with its rule."""

    method: MethodDescriptor
    rule: Rule

    @property
    def name(self) -> str:
        return self.method.name

    def request(self, tenant: str) -> Message:
        """A good request that names a tenant where there is a place for it."""
        request = GetMessageClass(self.method.input_type)()
        if self.rule.tenant_field:
            *path, last = self.rule.tenant_field.split(".")
            place: Any = request
            for part in path:
                place = getattr(place, part)
            bare = bool(path)
            setattr(
                place, last, tenant if bare else f"tenants/{tenant}{OBJECTS.get(self.name, '')}"
            )
        return request

    async def call(self, channel: grpc.aio.Channel, tenant: str, **metadata: str) -> Answer:
        """Call it; a stream is cut off after its first message."""
        try:
            await self._first(channel, self.request(tenant), tuple(_with_id(metadata).items()))
        except grpc.aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
            return Answer(error.code(), error.details() or "", bytes(details))
        return Answer(grpc.StatusCode.OK)

    async def _first(
        self, channel: grpc.aio.Channel, request: Message, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        coding: Any = {
            "request_serializer": type(request).SerializeToString,
            "response_deserializer": GetMessageClass(self.method.output_type).FromString,
        }
        path = self.rule.method
        options: Any = {"timeout": 5, "metadata": metadata}
        opened: Any
        if self.method.server_streaming:
            opened = channel.unary_stream(path, **coding)(request, **options)
            await opened.read()
            opened.cancel()
        elif self.method.client_streaming:
            await channel.stream_unary(path, **coding)(iter([request]), **options)
        else:
            await channel.unary_unary(path, **coding)(request, **options)


def _with_id(metadata: dict[str, str]) -> dict[str, str]:
    return {"x-request-id": REQUEST_ID, **metadata}


def _all() -> Iterator[Rpc]:
    for contract in CONTRACTS:
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield Rpc(method, rule_of(method))


RPCS = tuple(_all())
