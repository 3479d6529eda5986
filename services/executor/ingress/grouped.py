"""Asks many questions together: those that come while one asking is under way are the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Grouped(Generic[K, V]):
    """Answers by key; a key of which nothing is found has None."""

    def __init__(self, ask: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._ask = ask
        self._keys: set[K] = set()
        self._next: asyncio.Task[Mapping[K, V]] | None = None
        self._last: asyncio.Task[Mapping[K, V]] | None = None

    async def get(self, key: K) -> V | None:
        """What is found of a key, asked after this call; raises what asking raises."""
        self._keys.add(key)
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._last))
        found = await asyncio.shield(self._next)
        return found.get(key)

    async def _after(self, last: "asyncio.Task[Mapping[K, V]] | None") -> Mapping[K, V]:
        if last is not None:
            await asyncio.wait([last])
        self._last, self._next = self._next, None
        keys, self._keys = self._keys, set()
        return await self._ask(list(keys))
