"""The feed: what changed, in an order no late commit can slip into.

A position is (incarnation, xid, seq), read below the oldest open transaction: a plain sequence
would lose what commits late. Another incarnation of the database answers OUT_OF_RANGE.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import OutOfRange, invalid
from services.registry.store import revisions as store

PAGE: Final = 500
POSITION: Final = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,20})\.([0-9]{1,19})")
POLL_S: Final = 0.25
# How soon to look again after a notice: open transactions may still hide the entry.
BLINK_S: Final = 0.02
ALIVE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One change; `position` is where to go on after it. Without tenant it is a sign of life."""

    position: str
    tenant_id: UUID | None = None
    kind: str = ""
    revision: int = 0
    subject: str = ""


class Feed:
    """Lets any number of followers wait for what changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """End every follower's stream: a server that drains would wait for them in vain."""
        self._closed = True
        self._changed.set()

    async def listen(self) -> None:
        """Wake followers at every notice; runs as long as the service."""
        async for _ in self._database.listen(store.FEED_CHANNEL):
            self._changed.set()
            self._changed = asyncio.Event()

    async def follow(self, position: str) -> AsyncIterator[Entry]:
        """Every entry after a position, for ever; a sign of life where nothing happens."""
        async with self._database.system() as transaction:
            incarnation = str((await transaction.one(store.INCARNATION)).incarnation)
        xid, seq = _parse(position, incarnation)
        alive = time.monotonic()
        while not self._closed:
            changed = self._changed
            rows = await self._read(xid, seq)
            for row in rows:
                xid, seq = int(row.xid), row.seq
                position = f"{incarnation}.{xid}.{seq}"
                yield Entry(position, row.tenant_id, row.kind, row.revision, row.subject)
            if rows:
                alive = time.monotonic()
                continue
            if time.monotonic() - alive > ALIVE_S:
                alive = time.monotonic()
                yield Entry(f"{incarnation}.{xid}.{seq}")
            await _wait(changed)

    async def _read(self, xid: int, seq: int) -> list[Any]:
        async with self._database.system() as transaction:
            return await transaction.all(store.READ_FEED, xid=str(xid), seq=seq, size=PAGE)


async def _wait(changed: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(POLL_S):
            await changed.wait()
        await asyncio.sleep(BLINK_S)


def _parse(position: str, incarnation: str) -> tuple[int, int]:
    if not position:
        return 0, 0
    parts = POSITION.fullmatch(position)
    if parts is None:
        raise invalid("position", "is not one of this feed")
    if parts[1] != incarnation:
        raise OutOfRange("the position belongs to another incarnation; read every tenant again")
    return int(parts[2]), int(parts[3])
