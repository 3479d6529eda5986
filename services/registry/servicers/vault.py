"""VaultService."""

from collections.abc import AsyncIterator

from tenon.registry.v1 import vault_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.registry.keys.replacing import Replacing
from services.registry.keys.rewrapping import Rewrapping
from services.registry.keys.versions import DESTROY, DISABLE, ENABLE, KeyVersions, Step
from services.registry.messages import vault as messages
from services.registry.messages.access import by

Stepping = pb2.DisableKeyVersionRequest | pb2.EnableKeyVersionRequest | pb2.DestroyKeyVersionRequest


class VaultServicer:
    """Shows the keys that wrap, and changes them."""

    def __init__(self, versions: KeyVersions, rewrapping: Rewrapping, replacing: Replacing) -> None:
        self._versions = versions
        self._rewrapping = rewrapping
        self._replacing = replacing

    async def ListKeyVersions(
        self, request: pb2.ListKeyVersionsRequest, call: Call
    ) -> pb2.ListKeyVersionsResponse:
        """How they stand."""
        return messages.listed_message(await self._versions.listed())

    async def CreateKeyVersion(
        self, request: pb2.CreateKeyVersionRequest, call: Call
    ) -> pb2.KeyVersion:
        """Begin a rotation."""
        answer = await self._versions.create(
            by(request, call),
            lambda row, wraps: messages.version_message(row, wraps).SerializeToString(),
        )
        return pb2.KeyVersion.FromString(answer)

    async def Rewrap(
        self, request: pb2.RewrapRequest, call: Call
    ) -> AsyncIterator[pb2.RewrapProgress]:
        """How far it is, until nothing is left."""
        tenant_id = call.inside() if call.tenant else None
        async for progress in self._rewrapping.progress(tenant_id):
            yield messages.progress_message(progress)

    async def DisableKeyVersion(
        self, request: pb2.DisableKeyVersionRequest, call: Call
    ) -> pb2.KeyVersion:
        """It opens nothing any more."""
        return await self._take(request, call, DISABLE)

    async def EnableKeyVersion(
        self, request: pb2.EnableKeyVersionRequest, call: Call
    ) -> pb2.KeyVersion:
        """It opens again."""
        return await self._take(request, call, ENABLE)

    async def DestroyKeyVersion(
        self, request: pb2.DestroyKeyVersionRequest, call: Call
    ) -> pb2.KeyVersion:
        """It is gone for good."""
        return await self._take(request, call, DESTROY)

    async def ReplaceTenantKey(
        self, request: pb2.ReplaceTenantKeyRequest, call: Call
    ) -> pb2.TenantKey:
        """Another data key for a tenant."""
        answer = await self._replacing.replace(
            by(request, call),
            call.inside(),
            lambda row: messages.tenant_key_message(row).SerializeToString(),
        )
        return pb2.TenantKey.FromString(answer)

    async def _take(self, request: Stepping, call: Call, step: Step) -> pb2.KeyVersion:
        answer = await self._versions.take(
            by(request, call),
            step,
            request.version,
            lambda row, wraps: messages.version_message(row, wraps).SerializeToString(),
        )
        return pb2.KeyVersion.FromString(answer)
