"""AccessService."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import UUID

from tenon.registry.v1 import access_service_pb2 as pb2

from services.chassis.interceptors import Call, tenant_named
from services.chassis.pages import after_of, next_token, page_size
from services.registry.access.control import AccessControl
from services.registry.access.grants import Grants
from services.registry.access.usage import Usage
from services.registry.messages import access as access_messages
from services.registry.messages import config as messages

FIRST = str(UUID(int=0))


class AccessServicer:
    """Says who calls and what they may do."""

    def __init__(self, access: AccessControl, grants: Grants, usage: Usage) -> None:
        self._access = access
        self._grants = grants
        self._usage = usage

    async def WhoAmI(self, request: pb2.WhoAmIRequest, call: Call) -> pb2.WhoAmIResponse:
        """The caller."""
        switches = await self._usage.switches(call.principal.principal_id)
        return access_messages.whoami_message(call.principal, switches)

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
        principal = await self._access.vouch(
            request.credential, request.certificate, request.address
        )
        return messages.authenticated_message(principal)

    async def WatchInvalidations(
        self, request: pb2.WatchInvalidationsRequest, call: Call
    ) -> AsyncIterator[pb2.WatchInvalidationsResponse]:
        """What no longer holds, as it happens."""
        async with aclosing(self._access.invalidations.follow()) as told:
            async for each in told:
                yield pb2.WatchInvalidationsResponse(
                    what=each.what if each else "", of=each.of if each else ""
                )

    async def ListRoles(self, request: pb2.ListRolesRequest, call: Call) -> pb2.ListRolesResponse:
        """What roles there are."""
        rows = await self._grants.roles(access_messages.place_of(call))
        return pb2.ListRolesResponse(roles=map(access_messages.role_message, rows))

    async def ListGrants(
        self, request: pb2.ListGrantsRequest, call: Call
    ) -> pb2.ListGrantsResponse:
        """Who has which role in every tenant."""
        size, after = page_size(request.page_size), after_of(request.page_token, request.principal)
        principal, _, role = after.partition("/")
        rows = await self._grants.page(
            (messages.uuid_at("page_token", principal or FIRST), role),
            size + 1,
            access_messages.principal_in(call, "principal", request.principal)
            if request.principal
            else None,
        )
        last = rows[size - 1] if len(rows) > size else None
        return pb2.ListGrantsResponse(
            grants=map(access_messages.platform_grant_message, rows[:size]),
            next_page_token=next_token(f"{last.principal_id}/{last.role}", request.principal)
            if last
            else "",
        )

    async def AddGrant(self, request: pb2.AddGrantRequest, call: Call) -> pb2.PlatformGrant:
        """Give a role in every tenant."""
        answer = await self._grants.add(
            access_messages.by(request, call),
            access_messages.grant_wish(call, request),
            lambda row: access_messages.platform_grant_message(row).SerializeToString(),
        )
        return pb2.PlatformGrant.FromString(answer)

    async def RemoveGrant(
        self, request: pb2.RemoveGrantRequest, call: Call
    ) -> pb2.RemoveGrantResponse:
        """Take it back."""
        principal_id = access_messages.principal_in(call, "principal", request.principal)
        await self._grants.remove(
            access_messages.by(request, call), principal_id, request.role, b""
        )
        return pb2.RemoveGrantResponse()

    async def ReportUsage(
        self, request: pb2.ReportUsageRequest, call: Call
    ) -> pb2.ReportUsageResponse:
        """Keep what another process counted."""
        await self._usage.keep(access_messages.counted(request))
        return pb2.ReportUsageResponse()
