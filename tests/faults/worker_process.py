"""What the worker processes of the tests of faults have in common."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from services.chassis.database import Database
from services.chassis.process import background, ready_until_told
from services.chassis.secret import Secret
from services.executor.engine import lanes
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Kind
from services.executor.engine.worker import Worker, WorkerLimits

ENVIRONMENT: Final = ("TENON_TEST_DATABASE_URL", "TENON_TEST_SYSTEM_DATABASE_URL")
LEASE_S: Final = 8.0
"""Longer than a loaded machine holds a renewal up: who loses a claim to that sends again."""
LIMITS: Final = WorkerLimits(items=64, lease_s=LEASE_S, poll_s=0.3, grace_s=8.0, away_s=0.2)


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[Database, Recorder]]:
    """The database that the environment names, and a recorder on it."""
    conninfos = [Secret(os.environ[name]) for name in ENVIRONMENT]
    async with Database(*conninfos, constraints=lanes.CONSTRAINTS) as database:
        yield database, Recorder(database, lease_s=LEASE_S)


async def work(database: Database, recorder: Recorder, kind: Kind[Any]) -> None:
    """Take turns until told to stop."""
    worker = Worker(database, {kind.name: kind}, recorder, LIMITS)
    async with background(worker.run()):
        await ready_until_told(pid=os.getpid())
