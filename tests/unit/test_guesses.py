"""Wrong credentials cost the address they come from, and nobody else."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from services.chassis.errors import ResourceExhausted, Unauthenticated, Unavailable
from services.chassis.guesses import CROWDED, TOO_MANY, Allowance, Guesses, place_of

ALLOWANCE = Allowance(
    burst=3, again_per_s=1, queued_per_s=10, longest_wait_s=0.5, longest_queue=20, places=4, right=5
)
HERE, THERE = "192.0.2.1", "192.0.2.2"


class Door:
    """Guesses with a clock that a test turns; waiting turns it, too."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.looked = 0
        self.made = 0
        self.guesses = Guesses(ALLOWANCE, lambda: self.now, self._sleep)

    async def right(self, address: str = HERE, mark: bytes = b"") -> str:
        return await self.guesses.look_up(address, mark or self._new(), self._found)

    async def wrong(self, address: str = HERE, mark: bytes = b"") -> None:
        await self.guesses.look_up(address, mark or self._new(), self._refused)

    def _new(self) -> bytes:
        """The mark of a credential that was never seen."""
        self.made += 1
        return str(self.made).encode()

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


async def test_as_many_right_ones_at_once_as_may_wait_all_get_through() -> None:
    door = Door()
    assert await asyncio.gather(*(door.right() for _ in range(23))) == ["somebody"] * 23
    assert door.waits == []


async def test_no_more_wait_than_there_is_room_for_and_whoever_gives_up_makes_room() -> None:
    door = Door()

    async def stuck() -> str:
        await asyncio.Event().wait()
        return "never"

    asking = [
        asyncio.ensure_future(door.guesses.look_up(HERE, str(number).encode(), stuck))
        for number in range(1000)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    refused = [each for each in asking if each.done()]
    assert len(refused) == 1000 - 23
    with pytest.raises(ResourceExhausted) as held:
        await refused[0]
    assert held.value.code == CROWDED
    for each in asking[3:]:
        each.cancel()
    await asyncio.gather(*asking[3:], return_exceptions=True)
    waiting = asyncio.ensure_future(door.right())
    await asyncio.sleep(0)
    asking[0].cancel()
    assert await waiting == "somebody"
    for each in asking[1:3]:
        each.cancel()


async def test_one_that_was_right_lately_waits_for_nobody() -> None:
    door = Door()
    await door.right(mark=b"known")
    for _ in range(3):
        await outcome(door.wrong)
    flood = [asyncio.ensure_future(outcome(door.wrong)) for _ in range(200)]
    for _ in range(20):
        assert await door.right(mark=b"known") == "somebody"
    assert set(await asyncio.gather(*flood)) == {ResourceExhausted}


async def test_one_that_is_right_no_longer_costs_what_any_other_does() -> None:
    door = Door()
    await door.right(mark=b"known")
    told = [await outcome(lambda: door.wrong(mark=b"known")) for _ in range(5)]
    assert told == [Unauthenticated] * 4 + [ResourceExhausted]


async def test_no_more_right_ones_are_remembered_than_there_is_room_for() -> None:
    door = Door()
    for _ in range(50):
        await door.right()
    assert len(door.guesses._right) == ALLOWANCE.right


async def test_a_wrong_one_and_one_nobody_looked_at_are_told_apart() -> None:
    door = Door()
    for _ in range(3):
        await outcome(door.wrong)
    told = await asyncio.gather(*(door.wrong() for _ in range(20)), return_exceptions=True)
    codes = [each.code for each in told if isinstance(each, ResourceExhausted)]
    assert codes == [TOO_MANY] * 6 + [CROWDED] * 14


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
            await door.guesses.look_up(HERE, b"down", down)
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
