"""CredentialService."""

from tenon.registry.v1 import credential_service_pb2 as pb2

from services.chassis.ids import parse_name
from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.credentials import LEASE_TTL_S, RESOLVE_TTL_S, Credentials
from services.registry.messages import config as messages


class CredentialServicer:
    """Lists credentials masked, and opens them for the executor."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def ListCredentials(
        self, request: pb2.ListCredentialsRequest, call: Call
    ) -> pb2.ListCredentialsResponse:
        """A page of them, masked, by name."""
        size, after = page_size(request.page_size), after_of(request.page_token, call.tenant)
        rows = await self._credentials.page(call.inside(), after, size + 1)
        more = next_token(rows[size - 1].name, call.tenant) if len(rows) > size else ""
        found = [messages.credential_message(call.tenant, row) for row in rows[:size]]
        return pb2.ListCredentialsResponse(credentials=found, next_page_token=more)

    async def ResolveCredential(
        self, request: pb2.ResolveCredentialRequest, call: Call
    ) -> pb2.ResolveCredentialResponse:
        """The current values, for the executor's memory."""
        _, name = parse_name(request.name, "credentials")
        resolved = await self._credentials.resolve(call.inside(), name)
        return messages.resolved_message(resolved, RESOLVE_TTL_S)

    async def LeaseKey(self, request: pb2.LeaseKeyRequest, call: Call) -> pb2.LeaseKeyResponse:
        """A derived key, for the executor's memory."""
        data_key_id, key = await self._credentials.lease_key(call.inside())
        answer = pb2.LeaseKeyResponse(data_key_uid=str(data_key_id), key=key.reveal())
        answer.ttl.seconds = LEASE_TTL_S
        return answer
