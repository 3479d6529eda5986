"""The life of a service's process: told by its settings, ready, told to stop."""

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

from services.chassis import failpoints
from services.chassis.errors import TenonError
from services.chassis.settings import SettingsError, load
from services.chassis.telemetry import configure_logging

log = logging.getLogger(__name__)

CANCEL_AGAIN_S: Final = 1.0
COLLECT_AFTER: Final = (50_000, 20, 50)
"""Objects of a generation, before it is looked through for cycles."""


class Logged(Protocol):
    """Settings that say how to log."""

    @property
    def log_format(self) -> str:
        """`json` or `console`."""

    @property
    def log_level(self) -> str:
        """The least level that is written."""


Told = TypeVar("Told", bound=Logged)


def start(
    service: str, kind: type[Told], prefix: str, run: Callable[[Told], Coroutine[Any, Any, None]]
) -> int:
    """Run a service by the settings in the environment; answers with the exit code.

    What stops a start is one line on standard error and no traceback.
    """
    faults: list[Exception] = []
    try:
        settings = load(kind, prefix)
        configure_logging(service, settings.log_format, settings.log_level)
        for point in failpoints.check_armed():
            log.warning("failpoint %s is armed", point)
        asyncio.run(run(settings))
    except* (SettingsError, TenonError) as group:
        faults = list(_alone(group))
    for fault in faults:
        sys.stderr.write(f"{service}: {fault}\n")
    return 1 if faults else 0


def _alone(error: Exception) -> Iterator[Exception]:
    """Each error of a group, however deep it stands there."""
    if isinstance(error, ExceptionGroup):
        for part in error.exceptions:
            yield from _alone(part)
    else:
        yield error


@asynccontextmanager
async def background(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run jobs until the block ends, then cancel them and wait; one that fails ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        yield
        for task in tasks:
            task.cancel()


async def ended(work: "asyncio.Future[None]") -> None:
    """Cancel work until it has ended.

    On Python 3.11 a cancellation that comes together with a connection is lost: psycopg's pool
    waits by `asyncio.wait_for`, which then answers instead.
    """
    while not work.done():
        work.cancel()
        await asyncio.wait([work], timeout=CANCEL_AGAIN_S)


def settle() -> None:
    """Have the garbage collector leave alone what a started process consists of.

    What stays is large and what goes hardly ever hangs together in a cycle: the collector's looks
    took 14 % of an ingress' time (measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def ready_until_told(**ports: int) -> None:
    """Say that we serve, and where, in one line of JSON; return at the first SIGTERM or SIGINT."""
    settle()
    stop = asyncio.Event()
    # First: whoever reads that line may tell us to stop at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sys.stdout.write(json.dumps({"ready": True, **ports}) + "\n")
    sys.stdout.flush()
    await stop.wait()
