"""Turns: places, lines and owners; pure asyncio, no clock."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.chassis.turns import Busy, Turns


class Desk:
    """One place, and who came to it in which order."""

    def __init__(self, places: int = 1, most_waiting: int = 10) -> None:
        self.turns = Turns(places, most_waiting)
        self.came: list[str] = []
        self.may_go = asyncio.Event()

    async def visit(self, owner: str) -> None:
        async with self.turns.turn(owner):
            self.came.append(owner)
            await self.may_go.wait()

    async def visits(self, owners: str) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.visit(owner)) for owner in owners]
        await settled()
        return tasks


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_owners_take_turns_however_many_of_one_wait() -> None:
    desk = Desk()
    tasks = await desk.visits("aaaaabbc")
    desk.may_go.set()
    await asyncio.gather(*tasks)
    assert "".join(desk.came) == "aabcabaa"


async def test_only_so_many_at_a_time() -> None:
    desk = Desk(places=2)
    tasks = await desk.visits("abcd")
    assert desk.came == ["a", "b"]
    desk.may_go.set()
    await asyncio.gather(*tasks)
    assert sorted(desk.came) == ["a", "b", "c", "d"]


async def test_an_owner_with_too_many_waiting_is_told_and_others_are_not() -> None:
    desk = Desk(most_waiting=2)
    tasks = await desk.visits("aaa")
    with pytest.raises(Busy):
        await desk.visit("a")
    tasks += await desk.visits("b")
    desk.may_go.set()
    await asyncio.gather(*tasks)
    assert sorted(desk.came) == ["a", "a", "a", "b"]


async def _while_waiting(task: asyncio.Task[None], desk: Desk) -> None:
    task.cancel()
    await settled()
    desk.may_go.set()


async def _before_anybody_notices(task: asyncio.Task[None], desk: Desk) -> None:
    task.cancel()
    desk.may_go.set()


async def _as_its_turn_comes(task: asyncio.Task[None], desk: Desk) -> None:
    desk.may_go.set()
    task.cancel()


@pytest.mark.parametrize("cancel", [_while_waiting, _before_anybody_notices, _as_its_turn_comes])
async def test_one_who_gives_up_leaves_no_place_taken(
    cancel: Callable[[asyncio.Task[None], Desk], Awaitable[None]],
) -> None:
    desk = Desk()
    first, gone, last = await desk.visits("abc")
    await cancel(gone, desk)
    async with asyncio.timeout(5):
        await asyncio.gather(first, last)
        await desk.visit("d")
    assert desk.came == ["a", "c", "d"] and gone.cancelled()


async def test_a_turn_given_to_one_who_is_gone_is_the_next_ones() -> None:
    turns, came = Turns(1, 10), list[str]()

    async def waits(owner: str) -> None:
        async with turns.turn(owner):
            came.append(owner)

    async with turns.turn("a"):
        gone, last = asyncio.create_task(waits("b")), asyncio.create_task(waits("c"))
        await settled()
    # Given to b at this moment, which has not run since.
    gone.cancel()
    async with asyncio.timeout(5):
        await last
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert came == ["c"]
