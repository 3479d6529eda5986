"""TenantService."""

from tenon.registry.v1 import tenant_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.chassis.tenancy import PLATFORM
from services.registry.messages import tenants as messages
from services.registry.messages.config import caller_of
from services.registry.store.tenants import Tenants
from services.registry.tenants.deletion import Deletion


class TenantServicer:
    """Reads tenants, and lets them go."""

    def __init__(self, tenants: Tenants, deletion: Deletion) -> None:
        self._tenants = tenants
        self._deletion = deletion

    async def GetTenant(self, request: pb2.GetTenantRequest, call: Call) -> pb2.Tenant:
        """One tenant."""
        return messages.tenant_message(await self._tenants.get(call.inside()))

    async def ListTenants(
        self, request: pb2.ListTenantsRequest, call: Call
    ) -> pb2.ListTenantsResponse:
        """The tenants in which the caller has `tenants.read`."""
        size, after = page_size(request.page_size), after_of(request.page_token)
        readable = [
            slug for slug in call.principal.accesses if call.principal.may("tenants.read", slug)
        ]
        everywhere = PLATFORM in readable
        rows = await self._tenants.after(after, size + 1, None if everywhere else readable)
        more = next_token(rows[size - 1].slug) if len(rows) > size else ""
        found = [messages.tenant_message(row) for row in rows[:size]]
        return pb2.ListTenantsResponse(tenants=found, next_page_token=more)

    async def DeleteTenant(self, request: pb2.DeleteTenantRequest, call: Call) -> pb2.Tenant:
        """Let one go."""
        row = await self._deletion.delete(
            call.inside(),
            caller_of(call).actor,
            messages.deletion_asked(request, call),
            force=request.force,
            revision=messages.revision_of(request.etag),
        )
        return messages.tenant_message(row)

    async def ReportPurge(
        self, request: pb2.ReportPurgeRequest, call: Call
    ) -> pb2.ReportPurgeResponse:
        """Note what the executor says."""
        await self._deletion.report(call.inside(), dict(request.rows))
        return pb2.ReportPurgeResponse()

    async def GetTombstone(self, request: pb2.GetTombstoneRequest, call: Call) -> pb2.Tombstone:
        """What is left of one."""
        slug = messages.tombstone_named(request.name)
        return messages.tombstone_message(await self._deletion.tombstone(slug))
