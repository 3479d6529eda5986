"""Events that a service publishes one after the other, for as long as it likes.

What is there goes together: batches grow as the database is busy, and nobody waits for company.
What is not taken yet fills a short queue, and then the caller's own.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final
from uuid import UUID

from services.chassis.errors import TenonError, Violation
from services.executor.events.publishing import LARGEST, MOST, NewEvent, Publishing, check

WAITING: Final = 100
"""Messages that are read ahead."""
_INDEX: Final = re.compile(r"events\[(\d+)\]")

Message = Sequence[NewEvent]


class Stream:
    """The use case."""

    def __init__(self, publishing: Publishing) -> None:
        self._publishing = publishing

    async def publish(
        self, tenant_id: UUID, messages: AsyncIterator[Message]
    ) -> AsyncGenerator[int, None]:
        """Take events in; tells after each batch how many of the stream are on the disk.

        An error says so, too: its metadata has `taken`, and its fields count from the stream's
        first event. Raises what `Publishing.publish` does, and what the messages raise.
        """
        taken = 0
        try:
            async with aclosing(_batches(messages)) as batches:
                async for batch in batches:
                    taken += len(await self._publishing.publish(tenant_id, batch))
                    yield taken
        except TenonError as error:
            raise _counted(error, taken) from None


async def _batches(messages: AsyncIterator[Message]) -> AsyncGenerator[list[NewEvent], None]:
    """Whole messages, as many as are there and fit; a bad one stands in nobody's way before it."""
    queue: asyncio.Queue[tuple[Message, int] | Exception | None] = asyncio.Queue(WAITING)
    reading = asyncio.create_task(_read(messages, queue))
    try:
        batch, size = list[NewEvent](), 0
        while True:
            if batch and queue.empty():
                yield batch
                batch, size = [], 0
            found = await queue.get()
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
    finally:
        reading.cancel()


async def _read(
    messages: AsyncIterator[Message],
    queue: "asyncio.Queue[tuple[Message, int] | Exception | None]",
) -> None:
    """Put each message that has events into the queue, and how it ended at the end."""
    ended: Exception | None = None
    try:
        async for message in messages:
            if message:
                await queue.put((message, check(message)))
    except Exception as error:  # noqa: BLE001 - whoever takes from the queue raises it
        ended = error
    await queue.put(ended)


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
