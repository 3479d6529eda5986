"""Wrong credentials cost the address they come from.

An address has some tokens, and each wrong credential takes one. As many of its look-ups are under
way at once as it has tokens; the others wait for those. With none left, look-ups of that address go
one behind another at a steady rate: a right one still gets through, a wrong one is told to wait.
A credential that was right lately waits for nobody.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_network
from typing import Final, TypeVar

from services.chassis.addresses import ip_of
from services.chassis.errors import ResourceExhausted, Unauthenticated

Found = TypeVar("Found")
LookUp = Callable[[], Awaitable[Found]]

# Whoever has one IPv6 address has its whole network.
V6_PREFIX: Final = 64
TOO_MANY: Final = "TOO_MANY_WRONG_CREDENTIALS"
"""This one is wrong, after too many others of its address."""
CROWDED: Final = "TOO_MANY_LOOK_UPS"
"""Nobody looked at this one: too many of its address are before it."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an address may: wrong credentials at once, more a second, and then look-ups a second.

    A look-up that would wait longer than `longest_wait_s`, or behind `longest_queue` others, is
    refused at once. Of more than `places` addresses those are forgotten that have asked for nothing
    longest, and of more than `right` credentials those that were right longest ago.
    """

    burst: int = 20
    again_per_s: float = 1.0
    queued_per_s: float = 50.0
    longest_wait_s: float = 3.0
    longest_queue: int = 200
    places: int = 50_000
    right: int = 50_000


@dataclass(slots=True)
class _Place:
    tokens: float
    at: float
    turn_at: float
    under_way: int = 0
    waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque)


class Guesses:
    """Lets look-ups through, by the address that asks for them."""

    def __init__(
        self,
        allowance: Allowance = Allowance(),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._allowance = allowance
        self._clock = clock
        self._sleep = sleep
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._right: OrderedDict[bytes, None] = OrderedDict()

    async def look_up(self, address: str, mark: bytes, look_up: LookUp[Found]) -> Found:
        """What a look-up of the credential with this mark finds.

        Raises ResourceExhausted where too many of an address's were wrong: TOO_MANY if this one was
        looked up and is wrong, too, CROWDED if it would wait too long.
        """
        was_right = mark in self._right
        try:
            found = await (look_up() if was_right else self._in_turn(address, look_up))
        except Unauthenticated:
            # Known to be wrong from now on: its next look-up costs what any other does.
            self._right.pop(mark, None)
            raise
        self._right[mark] = None
        self._right.move_to_end(mark)
        while len(self._right) > self._allowance.right:
            self._right.popitem(last=False)
        return found

    async def _in_turn(self, address: str, look_up: LookUp[Found]) -> Found:
        place = self._place(place_of(address))
        if not await self._enter(place):
            return await self._queued(place, look_up)
        wrong = 0
        try:
            return await look_up()
        except Unauthenticated:
            wrong = 1
            raise
        finally:
            place.tokens -= wrong
            place.under_way -= 1
            _wake(place)

    async def _enter(self, place: _Place) -> bool:
        """Whether a look-up may go, once there is room for it; False: there are no tokens left."""
        while place.tokens >= 1:
            if place.under_way < int(place.tokens):
                place.under_way += 1
                return True
            if len(place.waiting) >= self._allowance.longest_queue:
                raise _crowded(1 / self._allowance.queued_per_s)
            waiter = asyncio.get_running_loop().create_future()
            place.waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                _leave(place, waiter)
                raise
        return False

    async def _queued(self, place: _Place, look_up: LookUp[Found]) -> Found:
        now = self._clock()
        wait_s = max(place.turn_at - now, 0.0)
        if wait_s > self._allowance.longest_wait_s:
            raise _crowded(wait_s)
        place.turn_at = now + wait_s + 1 / self._allowance.queued_per_s
        await self._sleep(wait_s)
        try:
            return await look_up()
        except Unauthenticated:
            raise ResourceExhausted(
                "too many wrong credentials came from this address; try again later",
                reason=TOO_MANY,
                retry_after_s=1 / self._allowance.again_per_s,
            ) from None

    def _place(self, name: str) -> _Place:
        """The place as it stands now."""
        now, burst = self._clock(), self._allowance.burst
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = _Place(burst, now, now)
        place.tokens = min(burst, place.tokens + (now - place.at) * self._allowance.again_per_s)
        place.at = now
        self._places.move_to_end(name)
        while len(self._places) > self._allowance.places:
            self._places.popitem(last=False)
        return place


def _crowded(retry_after_s: float) -> ResourceExhausted:
    return ResourceExhausted(
        "too many credentials of this address wait to be looked up; try again later",
        reason=CROWDED,
        retry_after_s=retry_after_s,
    )


def _leave(place: _Place, waiter: "asyncio.Future[None]") -> None:
    """Give up waiting: the place in the queue goes, or what woke it is for the next."""
    if waiter in place.waiting:
        place.waiting.remove(waiter)
    else:
        _wake(place)


def _wake(place: _Place) -> None:
    """Let the next that waits look again; without tokens, all of them."""
    left = 1 if place.tokens >= 1 else len(place.waiting)
    while place.waiting and left:
        waiter = place.waiting.popleft()
        if not waiter.done():
            waiter.set_result(None)
            left -= 1


def place_of(address: str) -> str:
    """What counts as one address: an IPv4 one, or the network of an IPv6 one."""
    found = ip_of(address)
    if isinstance(found, IPv6Address):
        return str(ip_network((found, V6_PREFIX), strict=False))
    return address if found is None else str(found)
