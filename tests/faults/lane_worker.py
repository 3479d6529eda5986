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
from services.chassis.database import Bound, Statement
from services.chassis.telemetry import configure_logging
from services.executor.engine.work import Claimed, Done, Failed, Outcome, Why
from tests.faults.worker_process import LEASE_S, recording, work

KIND: Final = "noted"
LEDGER: Final = "executor.noted_work"
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


async def run(calls: Path) -> None:
    """Work until told to stop."""
    async with recording() as (database, recorder):
        await work(database, recorder, Noted(calls))


if __name__ == "__main__":
    failpoints.check_armed()
    configure_logging("lane_worker", "console", "INFO")
    asyncio.run(run(Path(sys.argv[1])))
