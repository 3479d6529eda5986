"""StaffService."""

from uuid import UUID

from tenon.registry.v1 import staff_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.access.staff import Staff
from services.registry.messages import access as messages
from services.registry.messages.config import uuid_at

FIRST = str(UUID(int=0))


class StaffServicer:
    """Says who runs the platform."""

    def __init__(self, staff: Staff) -> None:
        self._staff = staff

    async def ListStaff(self, request: pb2.ListStaffRequest, call: Call) -> pb2.ListStaffResponse:
        """A page of them."""
        size, after = page_size(request.page_size), after_of(request.page_token)
        rows = await self._staff.page(uuid_at("page_token", after or FIRST), size + 1)
        more = next_token(str(rows[size - 1].principal_id)) if len(rows) > size else ""
        found = [messages.staff_message(row) for row in rows[:size]]
        return pb2.ListStaffResponse(staff=found, next_page_token=more)

    async def SetStaff(self, request: pb2.SetStaffRequest, call: Call) -> pb2.StaffMember:
        """Make a user one of them, or change what they may."""
        answer = await self._staff.set(
            messages.by(request, call),
            messages.principal_in(call, "principal", request.principal),
            request.role,
            list(request.permissions),
            lambda row: messages.staff_message(row).SerializeToString(),
        )
        return pb2.StaffMember.FromString(answer)

    async def RemoveStaff(
        self, request: pb2.RemoveStaffRequest, call: Call
    ) -> pb2.RemoveStaffResponse:
        """Make a user none of them."""
        principal_id = messages.principal_in(call, "principal", request.principal)
        await self._staff.remove(messages.by(request, call), principal_id, b"")
        return pb2.RemoveStaffResponse()
