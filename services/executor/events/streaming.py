"""Events that a service publishes one after the other, for as long as it likes.

What is there goes together: batches grow as the database is busy, and nobody waits for company.
What is not taken yet fills a short queue, and then the caller's own. A server that drains takes in
what it has read, and says how far that is.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final, Generic, TypeVar
from uuid import UUID

from services.chassis.errors import TenonError, Unavailable, Violation
from services.executor.events.arrivals import Arrivals
from services.executor.events.places import Places
from services.executor.events.publishing import LARGEST, MOST, NewEvent, Publishing, check

STREAMS: Final = 500
"""Of one process at once."""
STREAMS_OF_TENANT: Final = 100
"""Of them of one tenant."""
WAITING: Final = 100
"""Messages that are read ahead, of `LARGEST` bytes in all and one more."""
_INDEX: Final = re.compile(r"events\[(\d+)\]")

HEAR_OUT_S: Final = 5.0
"""After a fault the caller is heard out for so long: one who is still writing when a call ends may
see that alone, and never why it ended (measured: half of all callers of grpc.aio)."""
DRAINING_S: Final = 1.0
"""So long where the server drains, whose callers may have nothing to write."""

Given = TypeVar("Given")
Message = Sequence[NewEvent]


class Stream:
    """The use case."""

    def __init__(self, publishing: Publishing, arrivals: Arrivals) -> None:
        self._publishing = publishing
        self._arrivals = arrivals
        self._places = Places("streams", "STREAMS_EXHAUSTED")

    async def publish(
        self,
        tenant_id: UUID,
        given: AsyncIterator[Given],
        read: Callable[[Given], Message],
    ) -> AsyncGenerator[int, None]:
        """Take events in; tells after each batch how many of the stream are on the disk.

        An error says so, too: its metadata has `taken`, and its fields count from the stream's
        first event. Raises what `Publishing.publish` does, what `read` raises of a message,
        ResourceExhausted where there are too many, and Unavailable where the server drains.
        """
        with self._places.taken(tenant_id, STREAMS, STREAMS_OF_TENANT):
            taken, incoming = 0, _Incoming(given, read, self._arrivals.end)
            try:
                async with aclosing(incoming.batches()) as batches:
                    async for batch in batches:
                        taken += len(await self._publishing.publish(tenant_id, batch))
                        yield taken
            except TenonError as error:
                await incoming.hear_out(DRAINING_S if self._arrivals.closed else HEAR_OUT_S)
                raise _counted(error, taken) from None
            finally:
                incoming.stop()


class _Incoming(Generic[Given]):
    """What a caller sends, read ahead by a task of its own."""

    def __init__(
        self,
        given: AsyncIterator[Given],
        read: Callable[[Given], Message],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._given = given
        self._read = read
        self._end = end
        self._faulty = False
        self._queue: asyncio.Queue[tuple[Message, int] | Exception | None] = asyncio.Queue(WAITING)
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()
        self._reading = asyncio.create_task(self._follow())
        self._ending = asyncio.create_task(self._drain())

    def stop(self) -> None:
        """Read no more."""
        self._reading.cancel()
        self._ending.cancel()

    async def batches(self) -> AsyncGenerator[list[NewEvent], None]:
        """Whole messages, as many as are there and fit; a bad one ends it after those before it."""
        batch, size = list[NewEvent](), 0
        while True:
            if batch and self._queue.empty():
                yield batch
                batch, size = [], 0
            found = await self._next()
            fits = isinstance(found, tuple) and _fit(batch, size, *found)
            if batch and not fits:
                yield batch
                batch, size = [], 0
            if isinstance(found, Exception):
                raise found
            if found is None:
                return
            batch += found[0]
            size += found[1]

    async def hear_out(self, longest_s: float) -> None:
        """Return once nothing more comes, or when it has been long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while not (self._reading.done() and self._queue.empty()):
                    await self._next()

    async def _next(self) -> tuple[Message, int] | Exception | None:
        """What was read first, or how it ended."""
        found = await self._queue.get()
        self._hold(-found[1] if isinstance(found, tuple) else 0)
        return found

    def _hold(self, size: int) -> None:
        self._held += size
        (self._room.set if self._held < LARGEST else self._room.clear)()

    async def _follow(self) -> None:
        """Put each message that has events into the queue; what comes after a fault is let be."""
        try:
            async for each in self._given:
                self._faulty = self._faulty or not await self._put(each)
        except Exception as error:  # noqa: BLE001 - whoever takes from the queue raises it
            await self._queue.put(error)
        await self._queue.put(None)

    async def _drain(self) -> None:
        """Let be what comes once the server drains."""
        await self._end()
        self._faulty = True
        await self._queue.put(
            Unavailable("the server drains; go on with another one", reason="DRAINING")
        )

    async def _put(self, given: Given) -> bool:
        try:
            message = self._read(given)
            if message:
                size = check(message)
                await self._room.wait()
                self._hold(size)
                await self._queue.put((message, size))
        except TenonError as error:
            await self._queue.put(error)
            return False
        return True


def _fit(batch: Message, size: int, message: Message, more: int) -> bool:
    return len(batch) + len(message) <= MOST and size + more <= LARGEST


def _counted(error: TenonError, taken: int) -> TenonError:
    """The error, with how many were taken before it."""
    told = f"{error.message}; {taken} events of this stream are taken in"
    return type(error)(
        _INDEX.sub(lambda found: f"events[{int(found[1]) + taken}]", told),
        reason=error.code,
        metadata={**error.metadata, "taken": str(taken)},
        violations=[
            Violation(
                _INDEX.sub(lambda found: f"events[{int(found[1]) + taken}]", each.field, count=1),
                each.description,
            )
            for each in error.violations
        ],
        retry_after_s=error.retry_after_s,
    )
