"""Wrong credentials cost the address they come from, and nobody else."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from services.chassis.errors import ResourceExhausted, Unauthenticated, Unavailable
from services.chassis.guesses import Allowance, Guesses, place_of

ALLOWANCE = Allowance(burst=3, again_per_s=1, queued_per_s=10, longest_wait_s=0.5, places=4)
HERE, THERE = "192.0.2.1", "192.0.2.2"


class Door:
    """Guesses with a clock that a test turns; waiting turns it, too."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.looked = 0
        self.guesses = Guesses(ALLOWANCE, lambda: self.now, self._sleep)

    async def right(self, address: str = HERE) -> str:
        return await self.guesses.look_up(address, self._found)

    async def wrong(self, address: str = HERE) -> None:
        await self.guesses.look_up(address, self._refused)

    async def _found(self) -> str:
        self.looked += 1
        await asyncio.sleep(0)
        return "somebody"

    async def _refused(self) -> str:
        self.looked += 1
        raise Unauthenticated("no")

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(round(seconds, 3))
        await asyncio.sleep(0)


async def outcome(call: Callable[[], Coroutine[Any, Any, Any]]) -> type[BaseException] | None:
    try:
        await call()
    except (Unauthenticated, ResourceExhausted) as error:
        return type(error)
    return None


async def test_wrong_ones_are_refused_as_ever_until_the_tokens_are_used_up() -> None:
    door = Door()
    told = [await outcome(door.wrong) for _ in range(5)]
    assert told == [Unauthenticated] * 3 + [ResourceExhausted] * 2
    with pytest.raises(ResourceExhausted) as held:
        await door.wrong()
    assert held.value.retry_after_s


async def test_right_ones_cost_nothing() -> None:
    door = Door()
    for _ in range(50):
        assert await door.right() == "somebody"
    assert door.waits == []


async def test_a_right_one_gets_through_where_wrong_ones_do_not() -> None:
    door = Door()
    for _ in range(4):
        await outcome(door.wrong)
    assert await door.right() == "somebody"


async def test_another_address_feels_nothing() -> None:
    door = Door()
    for _ in range(5):
        await outcome(door.wrong)
    assert await outcome(lambda: door.wrong(THERE)) is Unauthenticated


async def test_tokens_come_back_with_time() -> None:
    door = Door()
    for _ in range(3):
        await outcome(door.wrong)
    door.now += 2
    told = [await outcome(door.wrong) for _ in range(3)]
    assert told == [Unauthenticated, Unauthenticated, ResourceExhausted]


async def test_without_tokens_look_ups_go_one_behind_another_and_no_more_than_fit() -> None:
    door = Door()
    for _ in range(3):
        await outcome(door.wrong)
    looked = door.looked
    told = await asyncio.gather(*(outcome(door.wrong) for _ in range(20)))
    assert told == [ResourceExhausted] * 20
    assert door.waits == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert door.looked - looked == 6


async def test_a_thousand_at_once_have_no_more_than_the_burst() -> None:
    door = Door()
    told = await asyncio.gather(*(outcome(door.wrong) for _ in range(1000)))
    assert told.count(Unauthenticated) == 3


async def test_a_thousand_right_ones_at_once_all_get_through() -> None:
    door = Door()
    assert await asyncio.gather(*(door.right() for _ in range(1000))) == ["somebody"] * 1000
    assert door.waits == []


async def test_whoever_gives_up_leaves_their_turn_to_the_next() -> None:
    door = Door()
    asking = [asyncio.ensure_future(door.right()) for _ in range(20)]
    await asyncio.sleep(0)
    for each in asking[3:10]:
        each.cancel()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert found.count("somebody") == 13


async def test_a_look_up_that_could_not_be_made_costs_nothing() -> None:
    door = Door()

    async def down() -> str:
        raise Unavailable("down")

    for _ in range(10):
        with pytest.raises(Unavailable):
            await door.guesses.look_up(HERE, down)
    assert await outcome(door.wrong) is Unauthenticated


async def test_no_more_addresses_are_remembered_than_there_is_room_for() -> None:
    door = Door()
    for number in range(50):
        await outcome(lambda: door.wrong(f"198.51.100.{number}"))  # noqa: B023
    assert len(door.guesses._places) == ALLOWANCE.places


def test_a_network_of_ipv6_is_one_place() -> None:
    assert place_of("2001:db8::1") == place_of("2001:db8::ffff:2") == "2001:db8::/64"
    assert place_of("2001:db8:0:1::1") != place_of("2001:db8::1")
    assert place_of("::ffff:192.0.2.1") == place_of("192.0.2.1")
    assert place_of("unix") == "unix"
