"""ExecutionService: runs of connectors."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from tenon.executor.v1 import execution_service_pb2 as pb

from services.chassis.ids import parse_name
from services.chassis.interceptors import Call
from services.executor.audit.outbox import doer_of
from services.executor.executions.activity import Activities
from services.executor.executions.dry_runs import DryRuns
from services.executor.executions.runs import Executions
from services.executor.executions.watching import Watches
from services.executor.messages import executions as messages


class ExecutionServicer:
    """Message in, use case, message out."""

    def __init__(
        self, executions: Executions, watches: Watches, dry_runs: DryRuns, activities: Activities
    ) -> None:
        self._executions = executions
        self._watches = watches
        self._dry_runs = dry_runs
        self._activities = activities

    async def RunConnector(self, request: pb.RunConnectorRequest, call: Call) -> pb.Execution:
        """Run a connector; wait for the end where asked."""
        found = await self._executions.run(messages.run_request(request, call))
        return messages.execution(found, call.tenant)

    async def GetExecution(self, request: pb.GetExecutionRequest, call: Call) -> pb.Execution:
        """One execution with its steps."""
        found = await self._executions.get(call.inside(), messages.execution_id(request.name))
        return messages.execution(found, call.tenant)

    async def ListExecutions(
        self, request: pb.ListExecutionsRequest, call: Call
    ) -> pb.ListExecutionsResponse:
        """A page of executions, the newest first."""
        found = await self._executions.list(messages.query(request, call))
        return messages.page(found, call.tenant)

    async def WatchExecution(
        self, request: pb.WatchExecutionRequest, call: Call
    ) -> AsyncIterator[pb.Execution]:
        """An execution as it changes, to its end."""
        watch = self._watches.watch(call.inside(), messages.execution_id(request.name))
        async with aclosing(watch) as changes:
            async for found in changes:
                yield messages.execution(found, call.tenant)

    async def CancelExecution(self, request: pb.CancelExecutionRequest, call: Call) -> pb.Execution:
        """End an execution before its time."""
        found = await self._executions.cancel(
            call.inside(), messages.execution_id(request.name), doer_of(call)
        )
        return messages.execution(found, call.tenant)

    async def DryRunConnector(
        self, request: pb.DryRunConnectorRequest, call: Call
    ) -> pb.DryRunConnectorResponse:
        """What a connector's steps would send."""
        found = await self._dry_runs.run(messages.dry_run_request(request, call))
        return messages.dry_run(found)

    async def GetConnector(self, request: pb.GetConnectorRequest, call: Call) -> pb.Connector:
        """A connector, and how its runs have gone."""
        name = parse_name(request.name, "connectors")[1]
        return messages.connector(await self._activities.of(call.inside(), name), call.tenant)
