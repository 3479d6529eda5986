"""kill -9 of workers and restarts of PostgreSQL: all work is done, recorded once, and never twice at a time."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import pytest

from tests.faults.killed_workers import killed_workers
from tests.faults.lane_worker import LEDGER
from tests.faults.points import ALL, points
from tests.faults.worked_lanes import WorkedLanes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]

SIZE: Final = int(os.environ.get("TENON_FAULTS_ITEMS", "50000" if ALL else "2000"))
POINTS: Final = [*points("work"), *points("record"), "run.after_claim"]
ENDED_S: Final = 150.0


@pytest.fixture
def worked() -> Iterator[WorkedLanes]:
    """Two workers on a server of their own."""
    with killed_workers("tests.faults.lane_worker", seed=5) as workers:
        made = WorkedLanes(workers)
        made.prepare()
        yield made


def test_killed_workers_do_all_work_and_record_it_once(worked: WorkedLanes) -> None:
    workers = worked.workers
    done = workers.harm(POINTS, worked.enqueue)
    for one in done:
        worked.enqueue(SIZE // len(done))
        time.sleep(workers.random.random())
        one()
    worked.enqueue(max(0, SIZE - len(worked.items)))
    workers.end(ENDED_S)

    assert len(worked.items) >= SIZE - len(worked.items) % 20
    recorded = workers.rows(f"SELECT target_id, how FROM {LEDGER}")
    assert len(recorded) == len(worked.items)
    assert set(recorded) == {(target_id, "done") for target_id in worked.items}

    calls = worked.calls()
    assert {call.target_id for call in calls} == set(worked.items)
    assert worked.overlaps(calls) == []
    begun = defaultdict(list)
    for target_id in dict.fromkeys(call.target_id for call in calls):
        begun[worked.sequence(target_id)].append(target_id)
    enqueued = defaultdict(list)
    for target_id in worked.items:
        enqueued[worked.sequence(target_id)].append(target_id)
    del begun[None], enqueued[None]
    assert begun == enqueued
