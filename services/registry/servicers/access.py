"""AccessService."""

from tenon.registry.v1 import access_service_pb2 as pb2

from services.chassis.interceptors import Call, tenant_named
from services.registry import messages
from services.registry.access import AccessControl


class AccessServicer:
    """Says who calls and what they may do."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    async def WhoAmI(self, request: pb2.WhoAmIRequest, call: Call) -> pb2.WhoAmIResponse:
        """The caller."""
        grants = [messages.grant_message(access) for access in call.principal.accesses.values()]
        return pb2.WhoAmIResponse(
            principal=messages.principal_message(call.principal), grants=grants
        )

    async def CheckPermission(
        self, request: pb2.CheckPermissionRequest, call: Call
    ) -> pb2.CheckPermissionResponse:
        """Whether the caller has a permission somewhere."""
        allowed = call.principal.may(request.permission, tenant_named(request.tenant))
        return pb2.CheckPermissionResponse(allowed=allowed)

    async def Authenticate(
        self, request: pb2.AuthenticateRequest, call: Call
    ) -> pb2.AuthenticateResponse:
        """Who a credential belongs to."""
        principal = await self._access.vouch(request.credential)
        return messages.authenticated_message(principal)
