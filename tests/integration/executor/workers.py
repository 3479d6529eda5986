"""A worker that works on one kind of work as long as a block lasts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.chassis.database import Database
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Kind
from services.executor.engine.worker import Worker, WorkerLimits


@asynccontextmanager
async def at_work(database: Database, kind: Kind[Any], recorder: Recorder) -> AsyncIterator[None]:
    """It runs inside the block; what is under way at its end is broken off."""
    limits = WorkerLimits(poll_s=0.2, away_s=0.1, grace_s=0.1)
    worker = asyncio.create_task(Worker(database, {kind.name: kind}, recorder, limits).run())
    try:
        yield
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
