"""Questions that come while one asking is under way are asked together, each once."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from services.chassis.errors import Unavailable
from services.executor.ingress.grouped import Grouped


class Asked:
    """Answers when it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.askings: list[set[int]] = []
        self.go = asyncio.Event()
        self.down = False

    async def __call__(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.askings.append(set(keys))
        assert len(keys) == len(self.askings[-1])
        await self.go.wait()
        if self.down:
            raise Unavailable("down")
        return {key: str(key) for key in keys if key > 0}


async def asking(grouped: Grouped[int, str], *keys: int) -> list[asyncio.Task[str | None]]:
    tasks = [asyncio.create_task(grouped.get(key)) for key in keys]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_what_comes_meanwhile_goes_together_and_is_asked_anew() -> None:
    asked = Asked()
    grouped = Grouped(asked)
    first = await asking(grouped, 1)
    later = await asking(grouped, 1, 2) + await asking(grouped, 2, -3)
    asked.go.set()
    assert await asyncio.gather(*first, *later) == ["1", "1", "2", "2", None]
    assert asked.askings == [{1}, {1, 2, -3}]


async def test_a_fault_is_told_to_those_who_asked_and_to_nobody_later() -> None:
    asked = Asked()
    grouped, asked.down = Grouped(asked), True
    tasks = await asking(grouped, 1, 2)
    gone = (await asking(grouped, 3))[0]
    gone.cancel()
    asked.go.set()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in told] == [Unavailable, Unavailable]
    asked.down = False
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await grouped.get(4) == "4"
