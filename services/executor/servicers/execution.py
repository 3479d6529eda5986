"""ExecutionService: runs of connectors."""

from tenon.executor.v1 import execution_service_pb2 as pb

from services.chassis.interceptors import Call
from services.executor import messages
from services.executor.executions import Executions


class ExecutionServicer:
    """Message in, use case, message out."""

    def __init__(self, executions: Executions) -> None:
        self._executions = executions

    async def RunConnector(self, request: pb.RunConnectorRequest, call: Call) -> pb.Execution:
        """Run a connector; wait for the end where asked."""
        found = await self._executions.run(messages.run_request(request, call))
        return messages.execution(found, call.tenant)

    async def GetExecution(self, request: pb.GetExecutionRequest, call: Call) -> pb.Execution:
        """One execution with its steps."""
        found = await self._executions.get(call.inside(), messages.execution_id(request))
        return messages.execution(found, call.tenant)

    async def ListExecutions(
        self, request: pb.ListExecutionsRequest, call: Call
    ) -> pb.ListExecutionsResponse:
        """A page of executions, the newest first."""
        found = await self._executions.list(messages.query(request, call))
        return messages.page(found, call.tenant)
