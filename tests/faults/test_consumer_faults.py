"""kill -9 of the executor while it tells a group's member: the next one misses nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.struct_pb2 import Value
from tenon.executor.v1 import event_service_pb2 as pb
from tenon.executor.v1 import event_service_pb2_grpc as pb_grpc

from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from tests.family import Family

pytestmark = pytest.mark.faults

PARENT: Final = "tenants/acme"
GROUP: Final = "billing"
CALL_S: Final = 40.0
HOLDER: Final = "SELECT claim_id FROM executor.consumer_groups WHERE claim_id IS NOT NULL"
LAPSED: Final = "UPDATE executor.consumer_groups SET lease_until = now() RETURNING claim_id"


class Calls:
    """A consumer's calls; it reads what it is told as it asks for it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = pb_grpc.EventServiceStub(channel)

    def publish(self, *numbers: int) -> list[str]:
        """The names of new events, in their order."""
        events = [pb.NewEvent(type="n", payload=Value(number_value=number)) for number in numbers]
        request = pb.PublishEventsRequest(parent=PARENT, events=events)
        return list(self._stub.PublishEvents(request, timeout=CALL_S).names)

    def member(self) -> Any:
        """A stream of what the group is told."""
        request = pb.SubscribeEventsRequest(
            parent=PARENT, group=GROUP, start=pb.SubscribeEventsRequest.START_OLDEST
        )
        return self._stub.SubscribeEvents(request, timeout=CALL_S)

    def acknowledge(self, position: str) -> str:
        """Where the group is then."""
        request = pb.AcknowledgeEventsRequest(parent=PARENT, group=GROUP, position=position)
        return self._stub.AcknowledgeEvents(request, timeout=CALL_S).position


@pytest.fixture
def calls(family: Family) -> Iterator[Calls]:
    family.start("executor")
    family.apply_example()
    key = Secret(Path(family.deployment.owner_key).read_text().strip())
    with open_sync_channel(family.executor, key=key, reason="a test") as channel:
        yield Calls(channel)


def told(stream: Any, count: int) -> dict[str, str]:
    """The next events of a stream, in order: their positions by their names."""
    found: dict[str, str] = {}
    while len(found) < count:
        each = next(stream)
        if each.HasField("event"):
            found[each.event.name] = each.position
    return found


def test_the_next_member_gets_what_was_not_acknowledged_and_no_late_word_moves_it(
    family: Family, calls: Calls
) -> None:
    names = calls.publish(*range(6))
    first = calls.member()
    seen = told(first, 6)
    assert [*seen] == names
    assert calls.acknowledge(seen[names[1]]) == seen[names[1]]

    family.kill("executor")
    with pytest.raises(grpc.RpcError) as ended:
        next(first)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    # Nobody gave its lease back.
    (holder,) = family.rows(HOLDER)
    family.start("executor")
    names += calls.publish(6)
    second = calls.member()
    assert family.rows(LAPSED) == [holder]
    again = told(second, 5)
    assert [*again] == names[2:]
    assert family.rows(HOLDER) != [holder]

    # Whoever was told by the dead one is done with some of it by now, as is the next one with more.
    last = again[names[-1]]
    assert calls.acknowledge(last) == last
    assert calls.acknowledge(seen[names[3]]) == last
    second.cancel()
    (new,) = calls.publish(7)
    assert [*told(calls.member(), 1)] == [new]
