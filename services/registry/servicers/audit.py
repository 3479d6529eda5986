"""AuditService."""

from tenon.registry.v1 import audit_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry import messages
from services.registry.audit import Audit


class AuditServicer:
    """Reads the audit log."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def ListAuditEvents(
        self, request: pb2.ListAuditEventsRequest, call: Call
    ) -> pb2.ListAuditEventsResponse:
        """A page of them, the newest first."""
        query = (call.tenant, request.kind, request.object, request.min_risk)
        size, after = page_size(request.page_size), after_of(request.page_token, *query)
        rows = await self._audit.page(
            call.inside(),
            messages.uuid_at("page_token", after) if after else None,
            size + 1,
            request.kind or None,
            request.object or None,
            request.min_risk,
        )
        more = next_token(str(rows[size - 1].id), *query) if len(rows) > size else ""
        found = [messages.audit_message(call.tenant, row) for row in rows[:size]]
        return pb2.ListAuditEventsResponse(audit_events=found, next_page_token=more)
