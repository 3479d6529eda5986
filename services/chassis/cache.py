"""What somebody else told us, kept for a while, and a little longer while they cannot be asked."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from services.chassis import errors

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Kept = TypeVar("Kept")
Clock = Callable[[], float]
Load = Callable[[], Awaitable[tuple[V, float]]]


UNSAID: Final = (errors.Unavailable, errors.ResourceExhausted)
"""Errors of asking, not of what was asked for."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """For how long a cache keeps an answer, in seconds, and how many it keeps.

    Up to `fresh_s` an answer is used without asking; up to `stale_s` only while asking raises an
    error that says nothing of it (UNSAID). Any other error is the answer, and used for `refused_s`.
    """

    fresh_s: float
    stale_s: float
    refused_s: float = 1.0
    size: int = 10_000


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    at: float
    keep_s: float
    down: bool = False


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: errors.TenonError
    at: float


class Cache(Generic[K, V]):
    """Answers by key; however many ask for one key, one question is under way."""

    def __init__(self, keeping: Keeping, clock: Clock = time.monotonic) -> None:
        self._keeping = keeping
        self._clock = clock
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._refusals: OrderedDict[K, _Refusal] = OrderedDict()
        self._asking: dict[K, asyncio.Task[V]] = {}
        self._drops = 0

    async def get(self, key: K, load: Load[V]) -> V:
        """The answer for a key, asked with `load` where it is not known.

        `load` gives the value and the seconds it may be kept at most. Raises what it raises.
        """
        entry, now = self._entries.get(key), self._clock()
        if entry is not None and now - entry.at < min(self._keeping.fresh_s, entry.keep_s):
            return entry.value
        self._raise_refused(key, now)
        asking = self._asking.get(key) or self._ask(key, load)
        # Known to be down: the answer we have serves at once, while the question goes on.
        if entry is not None and entry.down and self._usable(entry):
            return entry.value
        return await asyncio.shield(asking)

    def known(self, key: K) -> V | None:
        """The fresh answer for a key, if there is one: it is not asked for."""
        entry = self._entries.get(key)
        if entry is None or self._clock() - entry.at >= min(self._keeping.fresh_s, entry.keep_s):
            return None
        return entry.value

    def drop(self, concerns: Callable[[K, V], bool]) -> None:
        """Forget the answers that are concerned, and every refusal.

        What is being asked now was asked before the drop: whoever waits for it gets the answer,
        but it is not kept, and nobody else joins them.
        """
        self._drops += 1
        self._asking.clear()
        self._refusals.clear()
        gone = [key for key, entry in self._entries.items() if concerns(key, entry.value)]
        for key in gone:
            del self._entries[key]

    def _raise_refused(self, key: K, now: float) -> None:
        refusal = self._refusals.get(key)
        if refusal is not None and now - refusal.at < self._keeping.refused_s:
            raise refusal.error.with_traceback(None)

    def _ask(self, key: K, load: Load[V]) -> "asyncio.Task[V]":
        task = self._asking[key] = asyncio.ensure_future(self._answer(key, load))
        task.add_done_callback(_seen)
        return task

    async def _answer(self, key: K, load: Load[V]) -> V:
        asked_at, drops = self._clock(), self._drops
        try:
            value, keep_s = await load()
        except UNSAID:
            entry = self._entries.get(key)
            if entry is None or not self._usable(entry):
                raise
            entry.down = True
            return entry.value
        except errors.TenonError as error:
            self._entries.pop(key, None)
            if drops == self._drops:
                self._remember(self._refusals, key, _Refusal(error, asked_at))
            raise
        finally:
            if self._asking.get(key) is asyncio.current_task():
                del self._asking[key]
        if drops == self._drops:
            self._remember(self._entries, key, _Entry(value, asked_at, keep_s))
        return value

    def _usable(self, entry: _Entry[V]) -> bool:
        return self._clock() - entry.at < min(self._keeping.stale_s, entry.keep_s)

    def _remember(self, kept: "OrderedDict[K, Kept]", key: K, what: Kept) -> None:
        kept[key] = what
        kept.move_to_end(key)
        while len(kept) > self._keeping.size:
            kept.popitem(last=False)


def _seen(task: "asyncio.Task[V]") -> None:
    """Take note of an error nobody waits for: the next question raises it again."""
    if not task.cancelled():
        task.exception()
