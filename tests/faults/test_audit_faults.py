"""kill -9 of the executor while it tells what was done: the audit log has it, once."""

import asyncio

import pytest
from tenon.executor.v1 import lane_service_pb2, lane_service_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.secret import Secret
from tests.family import Family, until
from tests.faults.points import points

pytestmark = pytest.mark.faults

SWITCHED = (
    "SELECT action, object, outcome, actor_name, reason FROM registry.platform_audit_events"
    " WHERE kind = 'ProviderSwitch'"
)


@pytest.mark.parametrize("point", points("ship"))
def test_killed_while_telling_it_tells_once(family: Family, point: str) -> None:
    before = len(family.rows(SWITCHED))
    family.start("executor", f"{point}=kill@1")
    switch_off(family)
    family.await_killed("executor")
    family.start("executor")
    until(lambda: not family.rows("SELECT FROM executor.platform_audit_outbox"), what="the telling")
    told = family.rows(SWITCHED)
    assert len(told) == before + 1
    assert told[-1][:3] == ("switch_off", "github", "done")
    family.kill("executor")
    family.rows("DELETE FROM executor.provider_switches RETURNING 1")


def switch_off(family: Family) -> None:
    """Switch a provider off, as the owner."""

    async def ask() -> None:
        key = Secret(family.deployment.owner_key.read_text().strip())
        async with open_channel(family.executor, key=key, reason="a test") as channel:
            stub: lane_service_pb2_grpc.LaneServiceAsyncStub = (
                lane_service_pb2_grpc.LaneServiceStub(channel)
            )
            request = lane_service_pb2.SwitchOffProviderRequest(provider="github", reason="why not")
            await stub.SwitchOffProvider(request, timeout=20)

    asyncio.run(ask())
