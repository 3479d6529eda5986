"""A broker's leader is killed while events go to it: its stream has every event, and each once."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from nats.js import JetStreamContext
from nats.js.errors import APIError

from services.chassis.database import Database
from services.executor.events.publishing import MOST, NewEvent
from tests.faults.points import ALL, thinned
from tests.integration.executor.delivery_bench import DeliveryBench, delivery_bench
from tests.nats_servers import NatsServer, nats_cluster, needs_nats, streams

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), needs_nats]

SIZE: Final = 500 if ALL else 100
STREAM: Final = "ORDERS"
ORDERS: Final = thinned(["endpoint", "none"], keep=1)
"""Out of order more than ten fail at once, and an endpoint that has failed so is left alone for a
minute."""
# An election takes up to nine seconds.
RETRIES: Final = ["1s"] * 100
ENDED_S: Final = 150.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Sequence[NatsServer]]:
    with nats_cluster(tmp_path) as servers:
        yield servers


@pytest.mark.parametrize("ordering", ORDERS)
async def test_a_killed_leader_loses_nothing_and_makes_nothing_twice(
    cluster: Sequence[NatsServer],
    executor_database: Database,
    tenant_ids: tuple[UUID, UUID],
    ordering: str,
) -> None:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in cluster)
    async with (
        streams(*(each.url for each in cluster)) as js,
        delivery_bench(executor_database, tenant_ids[0], *(each.port for each in cluster)) as out,
    ):
        await begin(js)
        delivery = {"ordering": ordering, "retries": RETRIES}
        await out.want(url=f"nats://{hosts}", subject="orders.${event.type}", delivery=delivery)
        await publish(out)
        async with out.working():
            await until_kept(js, SIZE // 4)
            info = await js.stream_info(STREAM)
            assert info.cluster is not None and info.state.messages < SIZE
            (leader,) = [each for each in cluster if each.name == info.cluster.leader]
            leader.kill()
            await until_kept(js, SIZE)
            found = await out.until(lambda all_: all(d.state == "success" for d in all_), 20.0)
        kept = [await js.get_msg(STREAM, seq) for seq in range(1, SIZE + 1)]
        assert (await js.stream_info(STREAM)).state.messages == SIZE
    assert max(each.attempts for each in found) > 1, "nothing went to the leader when it was killed"
    told = [json.loads(each.data or b"")["data"]["number"] for each in kept]
    assert sorted(told) == list(range(SIZE))
    assert ordering == "none" or told == list(range(SIZE))
    assert {each.headers["webhook-id"] for each in kept if each.headers} == {
        f"evt_{each.id}" for each in found
    }


async def begin(js: JetStreamContext) -> None:
    """A stream on all three, once they have found each other."""
    async with asyncio.timeout(30):
        while True:
            try:
                await js.add_stream(name=STREAM, subjects=["orders.>"], num_replicas=3)
            except (APIError, TimeoutError):
                await asyncio.sleep(0.1)
            else:
                return


async def publish(out: DeliveryBench) -> None:
    """All events."""
    for first in range(0, SIZE, MOST):
        numbers = range(first, min(SIZE, first + MOST))
        new = [NewEvent("order.paid", {"number": number}) for number in numbers]
        await out.publishing.publish(out.tenant_id, new)


async def until_kept(js: JetStreamContext, count: int) -> None:
    """Wait until the stream has so many; while it elects a leader it tells nobody."""
    async with asyncio.timeout(ENDED_S):
        while True:
            try:
                if (await js.stream_info(STREAM)).state.messages >= count:
                    return
            except (APIError, TimeoutError):
                pass
            await asyncio.sleep(0.02)
