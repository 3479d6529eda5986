"""LaneService: how lanes stand, and the switches of operators."""

from tenon.executor.v1 import lane_service_pb2 as pb

from services.chassis.interceptors import Call
from services.executor.audit.outbox import doer_of
from services.executor.engine.switchboard import Switchboard
from services.executor.messages import lanes as messages


class LaneServicer:
    """Message in, use case, message out."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard

    async def ListLanes(self, request: pb.ListLanesRequest, call: Call) -> pb.ListLanesResponse:
        """A page of a tenant's lanes."""
        found = await self._switchboard.page(messages.lane_query(request, call))
        return messages.lane_page(found, call.tenant)

    async def ListProviderStates(
        self, _: pb.ListProviderStatesRequest, call: Call
    ) -> pb.ListProviderStatesResponse:
        """A tenant's lanes by provider."""
        return messages.provider_states(await self._switchboard.providers(call.inside()))

    async def PauseLane(self, request: pb.PauseLaneRequest, call: Call) -> pb.Lane:
        """Begin nothing of a lane."""
        lane_id = messages.lane_id(request)
        found = await self._switchboard.pause(call.inside(), lane_id, request.reason, doer_of(call))
        return messages.lane(found, call.tenant)

    async def ResumeLane(self, request: pb.ResumeLaneRequest, call: Call) -> pb.Lane:
        """Let a lane go on."""
        found = await self._switchboard.resume(
            call.inside(), messages.lane_id(request), doer_of(call)
        )
        return messages.lane(found, call.tenant)

    async def SwitchOffProvider(
        self, request: pb.SwitchOffProviderRequest, call: Call
    ) -> pb.ProviderSwitch:
        """Begin no work with a provider."""
        switched = await self._switchboard.switch_off(
            request.provider, request.reason, doer_of(call)
        )
        return messages.switch(switched)

    async def SwitchOnProvider(
        self, request: pb.SwitchOnProviderRequest, call: Call
    ) -> pb.SwitchOnProviderResponse:
        """Let the work with a provider go on."""
        await self._switchboard.switch_on(request.provider, doer_of(call))
        return pb.SwitchOnProviderResponse()

    async def ListProviderSwitches(
        self, _: pb.ListProviderSwitchesRequest, __: Call
    ) -> pb.ListProviderSwitchesResponse:
        """The providers that are off."""
        return messages.switches(await self._switchboard.switches())
