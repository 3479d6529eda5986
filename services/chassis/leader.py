"""Loops of which a deployment runs one: whoever holds the advisory lock leads."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable

import psycopg

from services.chassis.errors import TenonError
from services.chassis.process import ended
from services.chassis.secret import Secret

log = logging.getLogger(__name__)

RETRY_S = 2.0
# A connection that says nothing for so long has lost its lock, for all we know.
ANSWER_S = 5.0


async def lead(conninfo: Secret, name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run `loop` while this process holds the lock `name`; stand by otherwise, until cancelled.

    The lock lives in a session of its own: with the connection lost, another process may lead, so
    the loop is cancelled at once. What a loop does must be safe to repeat.
    """
    while not _is_told_to_end():
        try:
            async with await psycopg.AsyncConnection.connect(
                conninfo.reveal_text(), autocommit=True
            ) as connection:
                if await _locked(connection, name):
                    log.info("leading %s", name)
                    await _while_held(connection, loop)
        except (psycopg.Error, TenonError, TimeoutError) as error:
            log.warning("leadership of %s ended: %s", name, type(error).__name__)
        except Exception:
            # A fault of one loop is no reason for its process to answer nobody.
            log.exception("leadership of %s ended by a fault", name)
        await asyncio.sleep(RETRY_S)


def lock_number(name: str) -> int:
    """The advisory lock of a name: 63 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


async def _locked(connection: psycopg.AsyncConnection[tuple[object, ...]], name: str) -> bool:
    # Asked again and again: to wait for the lock would be one long transaction in the database.
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [lock_number(name)])
    return await cursor.fetchone() == (True,)


async def _while_held(
    connection: psycopg.AsyncConnection[tuple[object, ...]], loop: Callable[[], Awaitable[None]]
) -> None:
    work = asyncio.ensure_future(loop())
    try:
        while not work.done() and not _is_told_to_end():
            async with asyncio.timeout(ANSWER_S):
                await connection.execute("SELECT 1")
            await asyncio.wait([work], timeout=RETRY_S)
        if work.done():
            await work
    finally:
        await ended(work)


def _is_told_to_end() -> bool:
    """Whether this task was cancelled, also where it never felt it, as `ended` explains."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
