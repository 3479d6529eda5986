"""A stream goes on only as long as its caller may have it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar, cast

from services.chassis.errors import Unavailable

T = TypeVar("T")
Check = Callable[[], Awaitable[None]]

CHECK_S: Final = 0.5
"""How often a stream's caller is looked at again; what is remembered of them answers."""
LONGEST_CHECK_S: Final = 10.0
"""After that nobody knows whether the caller may go on, so they may not."""


async def while_allowed(
    answers: AsyncIterator[T],
    check: Check,
    every_s: float = CHECK_S,
    longest_s: float = LONGEST_CHECK_S,
) -> AsyncGenerator[T, None]:
    """The answers, until `check` raises, whatever it is; then the stream raises the same.

    A check that takes longer than `longest_s` ends it as Unavailable.
    """
    watch = _Watch(check, every_s, longest_s)
    watching = asyncio.create_task(watch.run())
    try:
        while True:
            try:
                answer = await watch.next(answers)
            except StopAsyncIteration:
                return
            yield answer
    finally:
        watching.cancel()


class _Watch:
    """Interrupts a stream where it waits for its next answer: only there it can be told why."""

    def __init__(self, check: Check, every_s: float, longest_s: float) -> None:
        self._check = check
        self._every_s = every_s
        self._longest_s = longest_s
        self._stream = cast("asyncio.Task[object]", asyncio.current_task())
        self._waiting = False
        self._refused: Exception | None = None

    async def run(self) -> None:
        while self._refused is None:
            await asyncio.sleep(self._every_s)
            try:
                async with asyncio.timeout(self._longest_s):
                    await self._check()
            except TimeoutError:
                self._refused = Unavailable("whether the caller may go on took too long to find")
            except Exception as error:  # noqa: BLE001 - a stream nobody watches must not go on
                self._refused = error
        if self._waiting:
            self._stream.cancel()

    async def next(self, answers: AsyncIterator[T]) -> T:
        if self._refused is not None:
            raise self._refused
        self._waiting = True
        try:
            return await anext(answers)
        except asyncio.CancelledError:
            if self._refused is None or self._stream.uncancel() > 0:
                raise
            raise self._refused from None
        finally:
            self._waiting = False
