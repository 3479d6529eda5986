"""A leader ends when it is told to, also where a cancellation gets lost on its way."""

import asyncio
import contextlib

import pytest

from services.chassis import leader
from services.chassis.leader import lead
from tests.conftest import Conninfos

SOON_S = 10.0


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "RETRY_S", 0.05)


async def test_a_loop_that_loses_a_cancellation_is_told_again(
    executor_conninfos: Conninfos,
) -> None:
    led, lost = asyncio.Event(), 0

    async def loop() -> None:
        nonlocal lost
        led.set()
        while lost < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
        await asyncio.Event().wait()

    leading = asyncio.create_task(lead(executor_conninfos[1], "test", loop))
    async with asyncio.timeout(SOON_S):
        await led.wait()
        leading.cancel()
        await asyncio.wait([leading])
    assert lost == 3


async def test_a_leader_that_never_felt_its_cancellation_ends(
    executor_conninfos: Conninfos, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, locked = asyncio.Event(), leader._locked

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def cancelled_while_it_asks(connection: object, name: str) -> bool:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await locked(connection, name)  # type: ignore[arg-type]

    monkeypatch.setattr(leader, "_locked", cancelled_while_it_asks)
    leading = asyncio.create_task(lead(executor_conninfos[1], "test", loop))
    async with asyncio.timeout(SOON_S):
        await asyncio.wait([leading])
    assert leading.done()
