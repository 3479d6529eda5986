"""ConfigService."""

from collections.abc import AsyncIterator

from tenon.registry.v1 import config_service_pb2 as pb2

from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.feed import Feed
from services.registry.messages import approvals as messages_approvals
from services.registry.messages import config as messages
from services.registry.messages.objects import removal
from services.registry.reviews.approvals import Approvals
from services.registry.store.tenants import Tenants
from services.registry.wanted.apply import Config
from services.registry.wanted.snapshots import Snapshots

NEWEST = 2**63 - 1


class ConfigServicer:
    """Changes, reads and follows wanted state."""

    def __init__(
        self,
        config: Config,
        approvals: Approvals,
        snapshots: Snapshots,
        feed: Feed,
        tenants: Tenants,
    ) -> None:
        self._config = config
        self._approvals = approvals
        self._snapshots = snapshots
        self._feed = feed
        self._tenants = tenants

    async def PlanConfig(
        self, requests: AsyncIterator[pb2.PlanConfigRequest], call: Call
    ) -> pb2.Plan:
        """What an apply would do."""
        submission = await messages.submission(requests, call.tenant)
        planned = await self._config.plan(submission, call.tenant_id, messages.caller_of(call))
        return messages_approvals.planned_message(planned)

    async def ApplyConfig(
        self, requests: AsyncIterator[pb2.ApplyConfigRequest], call: Call
    ) -> pb2.ApplyConfigResponse:
        """Do it, all or nothing."""
        submission = await messages.submission(requests, call.tenant)
        answer = await self._config.apply(
            submission,
            call.tenant_id,
            messages.caller_of(call),
            lambda applied: messages_approvals.applied_message(applied).SerializeToString(),
        )
        return pb2.ApplyConfigResponse.FromString(answer)

    async def DeleteObject(
        self, request: pb2.DeleteObjectRequest, call: Call
    ) -> pb2.ApplyConfigResponse:
        """Delete one object, or say what that would do."""
        submission, caller = removal(request, call.tenant), messages.caller_of(call)
        if request.validate_only:
            planned = await self._config.plan(submission, call.inside(), caller)
            plan = messages_approvals.planned_message(planned)
            return pb2.ApplyConfigResponse(revision=plan.base_revision, plan=plan)
        answer = await self._config.apply(
            submission,
            call.inside(),
            caller,
            lambda applied: messages_approvals.applied_message(applied).SerializeToString(),
        )
        return pb2.ApplyConfigResponse.FromString(answer)

    async def GetSnapshot(
        self, request: pb2.GetSnapshotRequest, call: Call
    ) -> AsyncIterator[pb2.GetSnapshotResponse]:
        """All of one moment, in parts."""
        for part in messages.snapshot_messages(await self._snapshots.take(call.inside())):
            yield part

    async def ListRevisions(
        self, request: pb2.ListRevisionsRequest, call: Call
    ) -> pb2.ListRevisionsResponse:
        """A page of them, the newest first."""
        size, after = page_size(request.page_size), after_of(request.page_token, call.tenant)
        before = messages.number_at("page_token", after) if after else NEWEST
        rows = await self._snapshots.revisions(call.inside(), before, size + 1)
        found = [messages.revision_message(call.tenant, row) for row in rows[:size]]
        more = next_token(str(found[-1].number), call.tenant) if len(rows) > size else ""
        return pb2.ListRevisionsResponse(revisions=found, next_page_token=more)

    async def ListPendingRevisions(
        self, request: pb2.ListPendingRevisionsRequest, call: Call
    ) -> pb2.ListPendingRevisionsResponse:
        """A page of them, the newest first."""
        size, query = page_size(request.page_size), (call.tenant, int(request.state))
        before = messages_approvals.before_of(after_of(request.page_token, *query))
        state = messages_approvals.state_of(request)
        rows = await self._approvals.page(call.inside(), before, size + 1, state)
        found = [messages_approvals.listed_message(call.tenant, row) for row in rows[:size]]
        more = next_token(str(rows[size - 1].pending_id), *query) if len(rows) > size else ""
        return pb2.ListPendingRevisionsResponse(pending_revisions=found, next_page_token=more)

    async def GetPendingRevision(
        self, request: pb2.GetPendingRevisionRequest, call: Call
    ) -> pb2.PendingRevision:
        """One with its plan."""
        pending_id = messages_approvals.pending_id_of(request.name)
        row = await self._approvals.get(call.inside(), pending_id)
        return messages_approvals.pending_message(call.tenant, row)

    async def ApproveRevision(
        self, request: pb2.ApproveRevisionRequest, call: Call
    ) -> pb2.PendingRevision:
        """Approve, and with the last approval apply."""
        answer = await self._approvals.approve(
            messages_approvals.verdict_of(request, call),
            lambda row: messages_approvals.decided_message(call.tenant, row).SerializeToString(),
        )
        return pb2.PendingRevision.FromString(answer)

    async def RejectRevision(
        self, request: pb2.RejectRevisionRequest, call: Call
    ) -> pb2.PendingRevision:
        """Let it go."""
        answer = await self._approvals.reject(
            messages_approvals.verdict_of(request, call),
            lambda row: messages_approvals.decided_message(call.tenant, row).SerializeToString(),
        )
        return pb2.PendingRevision.FromString(answer)

    async def WatchFeed(
        self, request: pb2.WatchFeedRequest, call: Call
    ) -> AsyncIterator[pb2.WatchFeedResponse]:
        """Everything after a position, for ever."""
        async for entry in self._feed.follow(request.position):
            yield messages.entry_message(entry)

    async def ReportProjection(
        self, request: pb2.ReportProjectionRequest, call: Call
    ) -> pb2.ReportProjectionResponse:
        """Keep what the executor says."""
        await self._tenants.report(call.inside(), request.revision)
        return pb2.ReportProjectionResponse()
