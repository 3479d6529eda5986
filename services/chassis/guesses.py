"""Wrong credentials cost the address they come from.

An address has some tokens, and each wrong credential takes one. As many of its look-ups are under
way at once as it has tokens; the others wait for those. With none left, look-ups of that address go
one behind another at a steady rate: a right one still gets through, a wrong one is told to wait.
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


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an address may: wrong credentials at once, more a second, and then look-ups a second.

    A look-up that would wait longer than `longest_wait_s` is refused at once. Of more than `places`
    addresses those are forgotten that have asked for nothing longest.
    """

    burst: int = 20
    again_per_s: float = 1.0
    queued_per_s: float = 50.0
    longest_wait_s: float = 3.0
    places: int = 50_000


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

    async def look_up(self, address: str, look_up: LookUp[Found]) -> Found:
        """What a look-up finds.

        Raises ResourceExhausted where too many of an address's were wrong and this one is, too, or
        would wait too long.
        """
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
            waiter = asyncio.get_running_loop().create_future()
            place.waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # What woke it is for the next.
                _wake(place)
                raise
        return False

    async def _queued(self, place: _Place, look_up: LookUp[Found]) -> Found:
        now = self._clock()
        wait_s = max(place.turn_at - now, 0.0)
        if wait_s > self._allowance.longest_wait_s:
            raise self._exhausted(wait_s)
        place.turn_at = now + wait_s + 1 / self._allowance.queued_per_s
        await self._sleep(wait_s)
        try:
            return await look_up()
        except Unauthenticated:
            raise self._exhausted(1 / self._allowance.again_per_s) from None

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

    def _exhausted(self, retry_after_s: float) -> ResourceExhausted:
        return ResourceExhausted(
            "too many wrong credentials came from this address; try again later",
            reason=TOO_MANY,
            retry_after_s=retry_after_s,
        )


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
