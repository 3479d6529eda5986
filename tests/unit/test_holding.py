"""A stream that nobody can watch any more ends."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.chassis.errors import PermissionDenied, Unavailable
from services.chassis.holding import Check, while_allowed


async def endless() -> AsyncIterator[int]:
    while True:
        await asyncio.sleep(0.001)
        yield 1


async def heard(check: Check, longest_s: float = 5.0) -> None:
    async with asyncio.timeout(5):
        async for _ in while_allowed(endless(), check, 0.001, longest_s):
            pass


@pytest.mark.parametrize("fault", [PermissionDenied("revoked"), RuntimeError("a bug")])
async def test_a_stream_ends_by_whatever_its_check_raises(fault: Exception) -> None:
    times = 0

    async def check() -> None:
        nonlocal times
        times += 1
        if times == 3:
            raise fault

    with pytest.raises(type(fault)):
        await heard(check)
    assert times == 3


async def test_a_stream_ends_where_its_check_does_not() -> None:
    async def check() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Unavailable):
        await heard(check, 0.01)
