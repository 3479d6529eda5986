"""So many at a time; those who wait are let in by turns over whom they belong to."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import TypeAlias

from services.chassis.errors import Unavailable

_Turn: TypeAlias = "asyncio.Future[None]"


class Busy(Unavailable):
    """Too many wait already."""

    reason = "BUSY"


class Turns:
    """Lets in `places` at a time; of each owner at most `most_waiting` wait."""

    def __init__(self, places: int, most_waiting: int) -> None:
        self._free = places
        self._most_waiting = most_waiting
        # In the order of their next turns.
        self._waiting: dict[Hashable, deque[_Turn]] = {}

    @asynccontextmanager
    async def turn(self, owner: Hashable) -> AsyncIterator[None]:
        """A place for as long as the block lasts. Raises Busy."""
        await self._enter(owner)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, owner: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        line = self._waiting.setdefault(owner, deque())
        if len(line) >= self._most_waiting:
            raise Busy("too much is being worked out already", retry_after_s=1)
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._forget(owner, turn)
            raise

    def _forget(self, owner: Hashable, turn: _Turn) -> None:
        """Of one who no longer waits; the place it may just have been given is the next one's."""
        if turn.done() and not turn.cancelled():
            self._leave()
        elif turn in (line := self._waiting.get(owner, deque())):
            line.remove(turn)
            if not line:
                del self._waiting[owner]

    def _leave(self) -> None:
        while self._waiting:
            owner, line = next(iter(self._waiting.items()))
            turn = line.popleft()
            # Whoever had this turn stands behind all others now.
            del self._waiting[owner]
            if line:
                self._waiting[owner] = line
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
