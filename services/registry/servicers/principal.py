"""PrincipalService."""

from typing import Any
from uuid import UUID

from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import principal_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.access.principals import Principals
from services.registry.messages import access as messages
from services.registry.messages.config import uuid_at

FIRST = str(UUID(int=0))


class PrincipalServicer:
    """Makes principals, finds them, and says whether they may call."""

    def __init__(self, principals: Principals) -> None:
        self._principals = principals

    async def CreatePrincipal(
        self, request: pb2.CreatePrincipalRequest, call: Call
    ) -> access_pb2.Principal:
        """Make one."""
        answer = await self._principals.create(
            messages.by(request, call), messages.introduction(request), _answer(call)
        )
        return access_pb2.Principal.FromString(answer)

    async def GetPrincipal(
        self, request: pb2.GetPrincipalRequest, call: Call
    ) -> access_pb2.Principal:
        """One of them."""
        principal_id = messages.principal_in(call, "name", request.name)
        row = await self._principals.get(messages.place_of(call), principal_id)
        return messages.principal_row_message(call, row)

    async def ListPrincipals(
        self, request: pb2.ListPrincipalsRequest, call: Call
    ) -> pb2.ListPrincipalsResponse:
        """A page of them, in the order they were made."""
        query = (call.tenant, request.kind)
        size, after = page_size(request.page_size), after_of(request.page_token, *query)
        rows = await self._principals.page(
            messages.place_of(call),
            uuid_at("page_token", after or FIRST),
            size + 1,
            request.kind or None,
        )
        more = next_token(str(rows[size - 1].principal_id), *query) if len(rows) > size else ""
        found = [messages.principal_row_message(call, row) for row in rows[:size]]
        return pb2.ListPrincipalsResponse(principals=found, next_page_token=more)

    async def DisablePrincipal(
        self, request: pb2.DisablePrincipalRequest, call: Call
    ) -> access_pb2.Principal:
        """It may not call."""
        return await self._set_disabled(request, call, disabled=True)

    async def EnablePrincipal(
        self, request: pb2.EnablePrincipalRequest, call: Call
    ) -> access_pb2.Principal:
        """It may call again."""
        return await self._set_disabled(request, call, disabled=False)

    async def _set_disabled(
        self,
        request: pb2.DisablePrincipalRequest | pb2.EnablePrincipalRequest,
        call: Call,
        *,
        disabled: bool,
    ) -> access_pb2.Principal:
        principal_id = messages.principal_in(call, "name", request.name)
        answer = await self._principals.set_disabled(
            messages.by(request, call), principal_id, _answer(call), disabled=disabled
        )
        return access_pb2.Principal.FromString(answer)


def _answer(call: Call) -> Any:
    return lambda row: messages.principal_row_message(call, row).SerializeToString()
