"""What another service told is kept as long as it may be, and no question is asked twice at once."""

import asyncio

import pytest

from services.chassis.cache import Cache, Keeping
from services.chassis.errors import NotFound, ResourceExhausted, Unavailable

KEEPING = Keeping(fresh_s=30, stale_s=300, refused_s=1, size=3)


class Other:
    """The other side: answers, refuses, is down or waits, and counts what it was asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.answer: str | Exception = "first"
        self.keep_s = 1000.0
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.cache: Cache[str, str] = Cache(KEEPING, lambda: self.now)

    async def get(self, key: str = "k") -> str:
        return await self.cache.get(key, self._load)

    async def has_asked(self, times: int) -> None:
        async with asyncio.timeout(5):
            while self.asked < times:
                await asyncio.sleep(0)

    async def _load(self) -> tuple[str, float]:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer, self.keep_s


async def test_a_fresh_answer_is_not_asked_again_and_an_old_one_is() -> None:
    other = Other()
    assert await other.get() == "first"
    other.answer, other.now = "second", other.now + 29.9
    assert await other.get() == "first"
    other.now += 0.2
    assert await other.get() == "second"
    assert other.asked == 2


async def test_a_hundred_at_once_ask_once() -> None:
    other = Other()
    other.gate.clear()
    asking = [asyncio.ensure_future(other.get()) for _ in range(100)]
    await asyncio.sleep(0)
    asking[0].cancel()
    other.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == ["first"] * 99
    assert other.asked == 1


async def test_while_the_other_side_is_down_an_old_answer_serves_and_then_no_more() -> None:
    other = Other()
    await other.get()
    other.answer, other.now = Unavailable("down"), other.now + 299
    assert await other.get() == "first"
    other.now += 1
    with pytest.raises(Unavailable):
        await other.get()


async def test_known_to_be_down_nobody_waits_for_the_question() -> None:
    other = Other()
    await other.get()
    other.answer, other.now = Unavailable("down"), other.now + 31
    await other.get()
    other.gate.clear()
    assert await asyncio.wait_for(other.get(), 1) == "first"
    other.answer = "second"
    other.gate.set()
    await asyncio.sleep(0.01)
    assert await other.get() == "second"


async def test_what_may_be_kept_for_less_is_kept_for_less() -> None:
    other = Other()
    other.keep_s = 10
    await other.get()
    other.answer, other.now = Unavailable("down"), other.now + 10
    with pytest.raises(Unavailable):
        await other.get()


async def test_a_refusal_is_the_answer_and_is_soon_asked_again() -> None:
    other = Other()
    await other.get()
    other.answer, other.now = NotFound("gone"), other.now + 31
    for _ in range(3):
        with pytest.raises(NotFound):
            await other.get()
    assert other.asked == 2
    other.answer, other.now = Unavailable("down"), other.now + 1.1
    with pytest.raises(Unavailable):
        await other.get()


async def test_only_so_many_are_kept() -> None:
    other = Other()
    for key in "abcd":
        await other.get(key)
    await other.get("d")
    assert other.asked == 4
    await other.get("a")
    assert other.asked == 5


async def test_who_asks_after_a_drop_does_not_join_a_question_from_before_it() -> None:
    other = Other()
    other.gate.clear()
    before = asyncio.ensure_future(other.get())
    await other.has_asked(1)
    other.cache.drop(lambda _key, _value: True)
    after = asyncio.ensure_future(other.get())
    await other.has_asked(2)
    other.gate.set()
    await asyncio.gather(before, after)
    # The later question's answer is kept, whichever came first.
    assert other.cache.known("k") == "first"


async def test_an_answer_that_comes_late_does_not_outlive_the_drop() -> None:
    other = Other()
    other.gate.clear()
    asking = asyncio.ensure_future(other.get())
    await other.has_asked(1)
    other.cache.drop(lambda _key, _value: True)
    other.gate.set()
    assert await asking == "first"
    other.answer = "second"
    assert await other.get() == "second"
    assert other.asked == 2


async def test_a_refusal_from_before_a_drop_is_not_kept_either() -> None:
    other = Other()
    other.answer = NotFound("no")
    with pytest.raises(NotFound):
        await other.get()
    other.cache.drop(lambda _key, _value: False)
    other.answer = "there"
    assert await other.get() == "there"


async def test_a_drop_takes_only_what_it_concerns() -> None:
    other = Other()
    await other.get("a")
    await other.get("b")
    other.cache.drop(lambda key, _value: key == "a")
    assert other.cache.known("a") is None
    assert other.cache.known("b") == "first"


async def test_who_is_too_busy_to_say_says_nothing() -> None:
    other = Other()
    await other.get()
    other.answer, other.now = ResourceExhausted("later"), other.now + 31
    assert await other.get() == "first"
