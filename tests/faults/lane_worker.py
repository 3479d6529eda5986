"""A worker process for the tests of faults: `python -m tests.faults.lane_worker CALLS`.

It works on what `test_lanes_faults` enqueues. Each call is written to the file CALLS as it begins
and as it ends, which a kill cannot undo; what it comes to is recorded in the table of `LEDGER`.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Final

from sqlalchemy import text

from services.chassis import failpoints
from services.chassis.database import Bound, Database, Statement
from services.chassis.process import background, ready_until_told
from services.chassis.secret import Secret
from services.chassis.telemetry import configure_logging
from services.executor import lanes
from services.executor.recorder import Recorder
from services.executor.work import Claimed, Done, Failed, Outcome, Why
from services.executor.worker import Worker, WorkerLimits

KIND: Final = "noted"
ENVIRONMENT: Final = ("TENON_TEST_DATABASE_URL", "TENON_TEST_SYSTEM_DATABASE_URL")
LEDGER: Final = "executor.noted_work"
LEASE_S: Final = 3.0
LIMITS: Final = WorkerLimits(items=64, lease_s=LEASE_S, poll_s=0.3, grace_s=8.0, away_s=0.2)
LONG_CALL_S: Final = LEASE_S * 1.3
NOTE: Final = Statement(text(f"INSERT INTO {LEDGER} (target_id, how) VALUES (:target_id, :how)"))


class Noted:
    """Work that takes a moment, now and then longer than its lease, and now and then fails."""

    name = KIND

    def __init__(self, calls: Path) -> None:
        self._calls = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def prepare(self, claimed: Claimed) -> None:
        """Nothing."""

    async def call(self, claimed: Claimed, prepared: None) -> Outcome:
        """Take the time that the target says."""
        self._write("begin", claimed)
        try:
            chance = claimed.target_id.int % 1000
            await asyncio.sleep(LONG_CALL_S if chance < 2 else chance / 100_000)
        finally:
            self._write("end", claimed)
        if chance % 50 == 3 and claimed.failures == 0:
            return Failed()
        return Done(record=[self._note(claimed, "done")])

    def give_up(self, claimed: Claimed, why: Why) -> Done:
        """Which the test takes for a fault."""
        return Done(record=[self._note(claimed, why)])

    def _note(self, claimed: Claimed, how: str) -> Bound:
        return Bound(NOTE, {"target_id": claimed.target_id, "how": how})

    def _write(self, what: str, claimed: Claimed) -> None:
        words = (what, time.monotonic(), os.getpid(), claimed.target_id, claimed.claim_id)
        os.write(self._calls, (" ".join(map(str, words)) + "\n").encode())


async def work(calls: Path) -> None:
    """Take turns until told to stop."""
    conninfos = [Secret(os.environ[name]) for name in ENVIRONMENT]
    async with Database(*conninfos, constraints=lanes.CONSTRAINTS) as database:
        recorder = Recorder(database, lease_s=LEASE_S)
        worker = Worker(database, {KIND: Noted(calls)}, recorder, LIMITS)
        async with background(worker.run()):
            await ready_until_told(pid=os.getpid())


if __name__ == "__main__":
    failpoints.check_armed()
    configure_logging("lane_worker", "console", "INFO")
    asyncio.run(work(Path(sys.argv[1])))
