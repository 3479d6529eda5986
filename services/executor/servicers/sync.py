"""SyncService: streams that are transferred, their transfers and their records."""

from tenon.executor.v1 import sync_service_pb2 as pb

from services.chassis.interceptors import Call
from services.executor.audit.outbox import doer_of
from services.executor.messages import syncs as messages
from services.executor.syncs.reading import Records
from services.executor.syncs.runs import Syncs


class SyncServicer:
    """Message in, use case, message out."""

    def __init__(self, syncs: Syncs, records: Records) -> None:
        self._syncs = syncs
        self._records = records

    async def TriggerSync(self, request: pb.TriggerSyncRequest, call: Call) -> pb.SyncRun:
        """Have a stream transferred."""
        found = await self._syncs.trigger(messages.sync_request(request, call))
        return messages.sync_run(found, call.tenant)

    async def GetSyncRun(self, request: pb.GetSyncRunRequest, call: Call) -> pb.SyncRun:
        """One transfer."""
        found = await self._syncs.get(call.inside(), messages.sync_run_id(request.name))
        return messages.sync_run(found, call.tenant)

    async def ListSyncRuns(
        self, request: pb.ListSyncRunsRequest, call: Call
    ) -> pb.ListSyncRunsResponse:
        """A page of transfers, the newest first."""
        found = await self._syncs.page(messages.sync_query(request, call))
        return messages.sync_page(found, call.tenant)

    async def CancelSyncRun(self, request: pb.CancelSyncRunRequest, call: Call) -> pb.SyncRun:
        """End a transfer before its time."""
        uid = messages.sync_run_id(request.name)
        found = await self._syncs.cancel(call.inside(), uid, doer_of(call))
        return messages.sync_run(found, call.tenant)

    async def ListStreams(
        self, request: pb.ListStreamsRequest, call: Call
    ) -> pb.ListStreamsResponse:
        """A tenant's streams."""
        found = await self._syncs.streams(call.inside(), messages.integration_in(request.parent))
        return messages.streams(found, call.tenant)

    async def ResetStream(self, request: pb.ResetStreamRequest, call: Call) -> pb.Stream:
        """Have a stream begin anew."""
        named = messages.stream_in(request.stream)
        found = await self._syncs.reset(call.inside(), named, doer_of(call))
        return messages.stream(found, call.tenant)

    async def ListRecords(
        self, request: pb.ListRecordsRequest, call: Call
    ) -> pb.ListRecordsResponse:
        """A page of a stream's records."""
        found = await self._records.page(messages.record_query(request, call))
        return messages.record_page(found)
