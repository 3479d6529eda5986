"""What this process remembers of callers is dropped at each notice, and so is what followers do."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from services.chassis.database import Database
from services.chassis.invalidation import EVERYTHING, Forget, Invalidation, invalidation
from services.registry.store.invalidations import CHANNEL

ALIVE_S: Final = 10.0
MOST_WAITING: Final = 1000


class Invalidations:
    """Hears of every change of access in the deployment, and passes it on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._forgets: list[Forget] = []
        self._followers: set[asyncio.Queue[Invalidation | None]] = set()

    def reach(self, forget: Forget) -> None:
        """Let something that remembers callers hear of what no longer holds."""
        self._forgets.append(forget)

    async def listen(self) -> None:
        """Hear and pass on; runs as long as the service."""
        async for payload in self._database.listen(CHANNEL):
            # After each connection: what was told before it went past us.
            self._tell(EVERYTHING if payload is None else _read(payload))

    async def follow(self) -> AsyncGenerator[Invalidation | None, None]:
        """Everything first, then each one that is told; None is a sign of life."""
        waiting: asyncio.Queue[Invalidation | None] = asyncio.Queue()
        self._followers.add(waiting)
        try:
            yield EVERYTHING
            while waiting in self._followers:
                told = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(ALIVE_S):
                        told = await waiting.get()
                yield told
        finally:
            self._followers.discard(waiting)

    def close(self) -> None:
        """End every follower's stream: a server that drains would wait for them in vain."""
        for waiting in list(self._followers):
            self._followers.discard(waiting)
            waiting.put_nowait(None)

    def _tell(self, told: Invalidation) -> None:
        for forget in self._forgets:
            forget(told)
        for waiting in self._followers:
            if waiting.qsize() >= MOST_WAITING:
                # Who cannot follow in detail is told in one word.
                while not waiting.empty():
                    waiting.get_nowait()
                waiting.put_nowait(EVERYTHING)
            waiting.put_nowait(told)


def _read(payload: str) -> Invalidation:
    try:
        ((what, of),) = json.loads(payload).items()
        return invalidation(what, str(of))
    except (ValueError, AttributeError):
        return EVERYTHING
