"""Connections to brokers: one for each endpoint, kept open between its deliveries.

A tenant's is never lent to another. What it was opened with is a part of it: where the hosts, the
credential's version or its limits have changed, the next delivery opens another one.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from uuid import UUID

from services.chassis.egress import ConnectFailed, ResponseLost
from services.chassis.endpoint_limits import Only
from services.executor.deliveries.broker_links import Link

MOST: Final = 256
"""Connections that are kept; more are open only while all of them are at work."""
IDLE_S: Final = 60.0

Whose: TypeAlias = tuple[UUID, UUID]
"""A tenant, and its endpoint."""
Opening: TypeAlias = Callable[[], Coroutine[Any, Any, Link]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a connection is opened with; `credential` is an id and a version."""

    url: str
    credential: tuple[UUID, int] | None
    only: Only | None


@dataclass(slots=True, eq=False)
class _Held:
    """A connection, open or being opened, and how many use it or wait for it."""

    terms: Terms
    opening: "asyncio.Task[Link]"
    users: int = 0
    doubtful: bool = False
    idle: asyncio.TimerHandle | None = None

    @property
    def spent(self) -> bool:
        """Whether it is of no more use."""
        if self.doubtful or not self.opening.done():
            return self.doubtful
        failed = self.opening.cancelled() or self.opening.exception() is not None
        return failed or self.opening.result().broken


class Links:
    """The connections of one process."""

    def __init__(self, most: int = MOST, idle_s: float = IDLE_S) -> None:
        self._most = most
        self._idle_s = idle_s
        self._all: OrderedDict[Whose, _Held] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for whose in list(self._all):
            self._close(self._all.pop(whose))
        await asyncio.gather(*self._closing)

    @asynccontextmanager
    async def lent(
        self, whose: Whose, terms: Terms, opening: Opening, timeout_s: float
    ) -> AsyncIterator[Link]:
        """An endpoint's connection, opened where there is none; others may use it meanwhile.

        One on which an answer was lost is not lent again. Raises ConnectFailed where it takes too
        long, and what `opening` raises.
        """
        held = self._taken(whose, terms, opening)
        try:
            yield await _ready(held, timeout_s)
        except ResponseLost:
            held.doubtful = True
            raise
        finally:
            held.users -= 1
            self._returned(whose, held)

    def _taken(self, whose: Whose, terms: Terms, opening: Opening) -> _Held:
        held = self._all.get(whose)
        if held is None or held.spent or held.terms != terms:
            self._drop(whose)
            held = self._all[whose] = _Held(terms, asyncio.create_task(opening()))
            held.opening.add_done_callback(_heard)
        self._all.move_to_end(whose)
        held.users += 1
        if held.idle is not None:
            held.idle.cancel()
            held.idle = None
        self._make_room()
        return held

    def _returned(self, whose: Whose, held: _Held) -> None:
        if held.users:
            return
        if self._all.get(whose) is not held:
            self._close(held)
        elif held.spent:
            self._drop(whose)
        else:
            loop = asyncio.get_running_loop()
            held.idle = loop.call_later(self._idle_s, self._drop, whose)

    def _make_room(self) -> None:
        """Close what was used longest ago and is not in use."""
        unused = (whose for whose, held in self._all.items() if not held.users)
        for whose in list(unused)[: max(0, len(self._all) - self._most)]:
            self._drop(whose)

    def _drop(self, whose: Whose) -> None:
        """Lend it no more; the last who uses it closes it."""
        held = self._all.pop(whose, None)
        if held is not None and not held.users:
            self._close(held)

    def _close(self, held: _Held) -> None:
        if held.idle is not None:
            held.idle.cancel()
        task = asyncio.create_task(_closed(held.opening))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _ready(held: _Held, timeout_s: float) -> Link:
    # Not cancelled with who waits: others wait for it, too.
    await asyncio.wait([held.opening], timeout=timeout_s)
    if not held.opening.done() or held.opening.cancelled():
        raise ConnectFailed("the broker: no connection in time", "timeout")
    return held.opening.result()


async def _closed(opening: "asyncio.Task[Link]") -> None:
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await (await opening).close()


def _heard(opening: "asyncio.Task[Link]") -> None:
    """Take note of how it ended, even where nobody waits for it any more."""
    if not opening.cancelled():
        opening.exception()
