"""KeyService."""

from tenon.registry.v1 import key_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.access.api_keys import ApiKeys
from services.registry.access.usage import Usage
from services.registry.messages import access as messages


class KeyServicer:
    """Makes, shows, rotates and takes back API keys."""

    def __init__(self, keys: ApiKeys, usage: Usage) -> None:
        self._keys = keys
        self._usage = usage

    async def CreateKey(self, request: pb2.CreateKeyRequest, call: Call) -> pb2.CreateKeyResponse:
        """Make one."""
        answer = await self._keys.create(
            messages.by(request, call),
            messages.principal_in(call, "principal", request.principal),
            messages.key_wish(request),
            lambda made: messages.created_key_message(call, made).SerializeToString(),
        )
        return pb2.CreateKeyResponse.FromString(answer)

    async def GetKey(self, request: pb2.GetKeyRequest, call: Call) -> pb2.Key:
        """One, masked."""
        key_id = messages.uid_in(call, "name", request.name, messages.KEYS)
        return messages.key_message(call, await self._keys.get(messages.place_of(call), key_id))

    async def ListKeys(self, request: pb2.ListKeysRequest, call: Call) -> pb2.ListKeysResponse:
        """A page of them, masked, by display name."""
        query = (call.tenant, request.principal)
        size, after = page_size(request.page_size), after_of(request.page_token, *query)
        # A name may hold a slash, an id none.
        name, _, key_id = after.rpartition("/")
        whose = (
            messages.principal_in(call, "principal", request.principal)
            if request.principal
            else None
        )
        rows = await self._keys.page(messages.place_of(call), (name, key_id), size + 1, whose)
        last = rows[size - 1] if len(rows) > size else None
        return pb2.ListKeysResponse(
            keys=[messages.key_message(call, row) for row in rows[:size]],
            next_page_token=next_token(f"{last.name}/{last.key_id}", *query) if last else "",
        )

    async def RotateKey(self, request: pb2.RotateKeyRequest, call: Call) -> pb2.RotateKeyResponse:
        """Make its successor."""
        overlap, ends = messages.rotation(request)
        answer = await self._keys.rotate(
            messages.by(request, call),
            messages.uid_in(call, "name", request.name, messages.KEYS),
            lambda made: messages.rotated_key_message(call, made).SerializeToString(),
            overlap,
            ends,
        )
        return pb2.RotateKeyResponse.FromString(answer)

    async def RevokeKey(self, request: pb2.RevokeKeyRequest, call: Call) -> pb2.Key:
        """Take it back."""
        answer = await self._keys.revoke(
            messages.by(request, call),
            messages.uid_in(call, "name", request.name, messages.KEYS),
            request.reason,
            lambda row: messages.key_message(call, row).SerializeToString(),
        )
        return pb2.Key.FromString(answer)

    async def GetKeyUsage(
        self, request: pb2.GetKeyUsageRequest, call: Call
    ) -> pb2.GetKeyUsageResponse:
        """How it was used of late."""
        key_id = messages.uid_in(call, "name", request.name, messages.KEYS)
        row = await self._keys.get(messages.place_of(call), key_id)
        return messages.usage_message(await self._usage.windows(row.key_id))
