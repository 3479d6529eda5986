"""DeliveryService: events on their way to outbound endpoints."""

from tenon.executor.v1 import delivery_service_pb2 as pb
from tenon.executor.v1 import lane_service_pb2 as lane_pb

from services.chassis.interceptors import Call
from services.executor.audit.outbox import doer_of
from services.executor.deliveries.again import Again
from services.executor.deliveries.endpoints import Endpoints
from services.executor.deliveries.reading import DeliveryLog
from services.executor.messages import deliveries as messages
from services.executor.messages.lanes import lane


class DeliveryServicer:
    """Message in, use case, message out."""

    def __init__(self, log: DeliveryLog, again: Again, endpoints: Endpoints) -> None:
        self._log = log
        self._again = again
        self._endpoints = endpoints

    async def ListDeliveries(
        self, request: pb.ListDeliveriesRequest, call: Call
    ) -> pb.ListDeliveriesResponse:
        """A page of deliveries, the newest first."""
        found = await self._log.page(messages.delivery_query(request, call))
        return messages.delivery_page(found, call.tenant)

    async def GetDelivery(self, request: pb.GetDeliveryRequest, call: Call) -> pb.Delivery:
        """One delivery with its attempts."""
        found = await self._log.get(call.inside(), messages.delivery_id(request.name))
        return messages.delivery(found, call.tenant)

    async def RetryDelivery(self, request: pb.RetryDeliveryRequest, call: Call) -> pb.Delivery:
        """Deliver again what has ended."""
        uid = messages.delivery_id(request.name)
        found = await self._again.retry(call.inside(), uid, doer_of(call))
        return messages.delivery(found, call.tenant)

    async def RecoverEndpoint(
        self, request: pb.RecoverEndpointRequest, call: Call
    ) -> pb.RecoverEndpointResponse:
        """Deliver again what an endpoint has not taken."""
        found = await self._again.recover(messages.recovery(request, call), doer_of(call))
        return messages.recovered(found)

    async def ListEndpointStates(
        self, request: pb.ListEndpointStatesRequest, call: Call
    ) -> pb.ListEndpointStatesResponse:
        """A page of outbound endpoints."""
        size, token = request.page_size, request.page_token
        found = await self._endpoints.page(call.inside(), size, token)
        return messages.endpoint_page(found, call.tenant)

    async def ResetCircuit(self, request: pb.ResetCircuitRequest, call: Call) -> lane_pb.Lane:
        """Close an endpoint's breaker."""
        name = messages.endpoint(request)
        found = await self._endpoints.reset(call.inside(), name, doer_of(call))
        return lane(found, call.tenant)
