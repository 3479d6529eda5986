"""kill -9 of workers and restarts of PostgreSQL: all work is done, recorded once, and never twice at a time."""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from services import embedded
from tests.faults.lane_worker import LEDGER
from tests.faults.points import ALL, points, thinned
from tests.faults.worked_lanes import WorkedLanes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]

SIZE: Final = int(os.environ.get("TENON_FAULTS_ITEMS", "50000" if ALL else "2000"))
WORKERS: Final = 2
KILLS: Final = 10 if ALL else 1
"""How often each worker is killed at random."""
POINTS: Final = [*points("work"), *points("record"), "run.after_claim"]
ENDED_S: Final = 150.0


@pytest.fixture
def worked() -> Iterator[WorkedLanes]:
    """Two workers on a server of their own."""
    with tempfile.TemporaryDirectory(prefix="tenon-lanes-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENON_HOME", str(folder / "home"))
            state = folder / "state"
            made = WorkedLanes(folder, state, Random(5), embedded.start(state))
            try:
                made.prepare()
                yield made
            finally:
                made.stop()


def harm(worked: WorkedLanes) -> list[Callable[[], Any]]:
    """All that is done to them, in a random order."""
    done: list[Callable[[], Any]] = [
        *(partial(worked.kill, at) for at in range(WORKERS) for _ in range(KILLS)),
        *(
            partial(worked.kill_at, number % WORKERS, point)
            for number, point in enumerate(thinned(POINTS, keep=2))
        ),
        *(
            partial(worked.restart_server, crash=crash)
            for crash in ((False, True) if ALL else (True,))
        ),
    ]
    worked.random.shuffle(done)
    return done


def test_killed_workers_do_all_work_and_record_it_once(worked: WorkedLanes) -> None:
    for at in range(WORKERS):
        worked.start(at)
    done = harm(worked)
    for one in done:
        worked.enqueue(SIZE // len(done))
        time.sleep(worked.random.random())
        one()
    worked.enqueue(max(0, SIZE - len(worked.items)))
    worked.end(ENDED_S)

    assert len(worked.items) >= SIZE - len(worked.items) % 20
    recorded = worked.rows(f"SELECT target_id, how FROM {LEDGER}")
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
