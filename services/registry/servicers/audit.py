"""AuditService."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from tenon.registry.v1 import audit_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.audit.reading import Audit
from services.registry.audit.recording import Recording
from services.registry.audit.reviews import EventReviews
from services.registry.audit.verification import Verification
from services.registry.messages import audit as messages
from services.registry.messages.config import caller_of, uuid_at


class AuditServicer:
    """Message in, use case, message out."""

    def __init__(
        self, audit: Audit, reviews: EventReviews, verification: Verification, recording: Recording
    ) -> None:
        self._audit = audit
        self._reviews = reviews
        self._verification = verification
        self._recording = recording

    async def ListAuditEvents(
        self, request: pb2.ListAuditEventsRequest, call: Call
    ) -> pb2.ListAuditEventsResponse:
        """A page of them, the newest first."""
        query = (call.tenant, messages.marks(request.filter))
        size, after = page_size(request.page_size), after_of(request.page_token, *query)
        asked = messages.filter_of(request.filter, after)
        rows = await self._audit.page(messages.log_of(call), asked, size + 1)
        more = next_token(str(rows[size - 1].id), *query) if len(rows) > size else ""
        found = [messages.event_message(call.tenant, row) for row in rows[:size]]
        return pb2.ListAuditEventsResponse(audit_events=found, next_page_token=more)

    async def GetAuditEvent(self, request: pb2.GetAuditEventRequest, call: Call) -> pb2.AuditEvent:
        """One event."""
        row = await self._audit.get(messages.log_of(call), uuid_at("uid", request.uid))
        return messages.event_message(call.tenant, row)

    async def SummarizeAuditEvents(
        self, request: pb2.SummarizeAuditEventsRequest, call: Call
    ) -> pb2.SummarizeAuditEventsResponse:
        """Counts a day."""
        times = (messages.time_of(request, name) for name in ("from_time", "to_time"))
        return messages.counts_message(await self._audit.summary(messages.log_of(call), *times))

    async def ReviewAuditEvent(
        self, request: pb2.ReviewAuditEventRequest, call: Call
    ) -> pb2.AuditEvent:
        """Sign one."""
        event_id, actor = uuid_at("uid", request.uid), caller_of(call).actor
        row = await self._reviews.review(messages.log_of(call), event_id, actor, request.note)
        return messages.event_message(call.tenant, row)

    async def ExportAuditEvents(
        self, request: pb2.ExportAuditEventsRequest, call: Call
    ) -> AsyncIterator[pb2.ExportAuditEventsResponse]:
        """All of them, as lines of JSON."""
        async for rows in self._audit.export(
            messages.log_of(call), messages.filter_of(request.filter)
        ):
            yield messages.lines_message(call.tenant, rows)

    async def VerifyChain(
        self, _: pb2.VerifyChainRequest, call: Call
    ) -> AsyncIterator[pb2.VerifyChainResponse]:
        """What is wrong with the log, if anything."""
        async with aclosing(self._verification.verify(messages.log_of(call))) as walk:
            async for progress in walk:
                yield messages.progress_message(call.tenant, progress)

    async def RecordAuditEvents(
        self, request: pb2.RecordAuditEventsRequest, call: Call
    ) -> pb2.RecordAuditEventsResponse:
        """Take what another service did."""
        taken = await self._recording.take(messages.log_of(call), messages.told_of(request, call))
        return pb2.RecordAuditEventsResponse(taken=taken)
