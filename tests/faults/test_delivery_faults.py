"""kill -9 of workers, restarts of PostgreSQL, receivers that fail: every event gets where it should, signed and logged."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import pytest

from tests.faults.faulty_receiver import TAKEN, Got
from tests.faults.killed_workers import killed_workers
from tests.faults.points import ALL, points
from tests.faults.sent_deliveries import DEAD, ORDERED, Logged, SentDeliveries, sent_deliveries
from tests.faults.worker_process import LIMITS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900 if ALL else 180)]

SIZE: Final = int(os.environ.get("TENON_FAULTS_EVENTS", "20000" if ALL else "1000"))
# After sending comes first, where a thinned run goes to the first and the last.
POINTS: Final = [*reversed(points("delivery")), *points("record")]
ENDED_S: Final = 300.0 if ALL else 60.0
WAITING: Final = {"queued", "sending", "retrying", "dead"}


@pytest.fixture
def sent() -> Iterator[SentDeliveries]:
    """Two workers on a server of their own, and a receiver."""
    with (
        killed_workers("tests.faults.delivery_worker", seed=7) as workers,
        sent_deliveries(workers) as made,
    ):
        yield made


def test_killed_workers_deliver_everything_signed_and_logged(sent: SentDeliveries) -> None:
    workers = sent.workers
    done = workers.harm(POINTS, sent.publish)
    for one in done:
        sent.publish(SIZE // len(done))
        time.sleep(workers.random.random())
        one()
    sent.publish(max(0, SIZE - sent.published))
    sent.end(ENDED_S)

    got, logged = sent.got(), sent.logged()
    check_arrived(sent, got)
    check_logged(sent, logged)
    requests = defaultdict(list)
    for request in got:
        requests[request.message_id].append(request)
    healthy = [delivery for delivery in logged if delivery.endpoint != DEAD]
    assert set(requests) == {delivery.message_id for delivery in healthy}
    for delivery in healthy:
        check_is_one_message(delivery, requests[delivery.message_id])
    check_repeats(sent, [(each, requests[each.message_id]) for each in healthy])


def check_arrived(sent: SentDeliveries, got: list[Got]) -> None:
    """Every place that is there has got what it asked for and nothing else, the ordered in order."""
    arrived: dict[tuple[str, str], dict[int, None]] = defaultdict(dict)
    for request in got:
        if request.answer == TAKEN:
            arrived[request.tenant_id, request.endpoint][request.number] = None
    wanted = {place: numbers for place, numbers in sent.wanted.items() if place[1] != DEAD}
    assert {place: set(numbers) for place, numbers in arrived.items()} == {
        place: set(numbers) for place, numbers in wanted.items()
    }
    asked = {(*place, number) for place, numbers in wanted.items() for number in numbers}
    assert {(each.tenant_id, each.endpoint, each.number) for each in got} <= asked
    for place, numbers in wanted.items():
        if place[1] == ORDERED:
            assert list(arrived[place]) == numbers


def check_logged(sent: SentDeliveries, logged: list[Logged]) -> None:
    """There is a delivery for each event and place, and its attempts say how it stands."""
    of_place: dict[tuple[str, str], int] = defaultdict(int)
    for delivery in logged:
        of_place[str(delivery.tenant_id), delivery.endpoint] += 1
        assert delivery.numbers == list(range(1, delivery.attempts + 1)), delivery
        assert delivery.status == (delivery.statuses or [0])[-1], delivery
        if delivery.endpoint == DEAD:
            assert delivery.state in WAITING, delivery
            assert set(delivery.statuses) <= {0}, delivery
        else:
            assert (delivery.state, delivery.ended) == ("success", True), delivery
            assert delivery.statuses[-1] == 200 and 200 not in delivery.statuses[:-1], delivery
    assert of_place == {place: len(numbers) for place, numbers in sent.wanted.items()}


def check_is_one_message(delivery: Logged, requests: list[Got]) -> None:
    """All requests say the same to the same, and are signed by its secret."""
    said = {(each.tenant_id, each.endpoint, each.hash, each.number, each.type) for each in requests}
    assert len(said) == 1, delivery
    assert {(each.tenant_id, each.endpoint) for each in requests} == {
        (str(delivery.tenant_id), delivery.endpoint)
    }
    assert {each.fault for each in requests} == {""}, delivery


def check_repeats(sent: SentDeliveries, sendings: list[tuple[Logged, list[Got]]]) -> None:
    """Each call but those under way at some harm is on record, and so what is taken is not sent again."""
    workers, unrecorded = sent.workers, 0
    for delivery, requests in sendings:
        lost = len(requests) - delivery.attempts
        assert lost >= 0, f"{delivery} tells of calls that were not"
        times = [each.at for each in requests]
        harmed = sum(workers.was_harmed(*both) for both in pairwise(times))
        assert lost <= harmed, f"{delivery} was sent again, and nothing had happened: {requests}"
        unrecorded += lost
    harms = len(workers.deaths) + 2 * len(workers.outages)
    assert unrecorded <= harms * LIMITS.items
