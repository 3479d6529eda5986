"""Counting calls by key: nothing twice, nothing lost while nobody takes it, never without bound."""

import asyncio
from collections.abc import Mapping
from uuid import uuid4

import pytest

from services.chassis import usage
from services.chassis.errors import InvalidArgument, Unavailable
from services.chassis.interceptors import NO_MESSAGE, Call
from services.chassis.rules import Risk, Rule
from services.chassis.tenancy import Access, Principal
from services.chassis.usage import Counted, Counter, flush, kept

RULE = Rule("/a.Service/Get", "a.read", Risk.LOW, "", False, frozenset(), False, False)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def call(
    session: str = "key one",
    agent: str = "",
    tenant: str = "",
    known: Mapping[str, Access] | None = None,
) -> Call:
    known = known or {}
    principal = Principal(uuid4(), "service", "billing", known, session=session)
    of = known[tenant].tenant_id if tenant else None
    return Call(
        RULE, NO_MESSAGE, {"user-agent": agent}, "ipv4:10.0.0.1:5", "r",
        principal=principal, tenant=tenant, tenant_id=of,
    )  # fmt: skip


def member(*slugs: str) -> dict[str, Access]:
    return {slug: Access(slug, uuid4(), ()) for slug in slugs}


def test_calls_alike_are_one_count_a_bucket() -> None:
    clock = Clock()
    counter = Counter(clock)
    for _ in range(3):
        counter.observe(call())
    clock.now += 1
    counter.observe(call(agent="curl"))
    clock.now += usage.BUCKET_S
    counter.observe(call())
    found = {(use.user_agent, use.bucket): use for use in counter.drain()[0].uses}
    assert sorted(use.count for use in found.values()) == [1, 1, 3]
    assert len({bucket for _, bucket in found}) == 2
    assert {use.key_id for use in found.values()} == {"one"}
    assert all(use.bucket % usage.BUCKET_S == 0 for use in found.values())
    assert max(use.last for use in found.values()) == clock.now
    assert not counter.drain()


def test_what_came_without_a_key_is_not_counted() -> None:
    counter = Counter()
    counter.observe(call("token abc"))
    assert not counter.drain()


def test_memory_is_bounded_and_no_call_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST", 10)
    counter = Counter()
    for number in range(1000):
        counter.observe(call(agent=f"agent {number}"))
    uses = counter.drain()[0].uses
    assert len(uses) == 11
    assert sum(use.count for use in uses) == 1000
    assert [use.count for use in uses if not use.address] == [990]


async def test_only_who_may_work_in_several_tenants_is_followed() -> None:
    counter = Counter()
    await counter.follow(call(tenant="acme", known=member("acme")))
    assert not counter.drain()
    both = member("acme", "globex")
    one = call(tenant="acme", known=both)
    await counter.follow(one)
    one.tenant, one.tenant_id = "globex", both["globex"].tenant_id
    await counter.follow(one)
    (stay,) = counter.drain()[0].stays
    assert stay.tenant_id == both["globex"].tenant_id


async def test_counts_wait_while_nobody_takes_them() -> None:
    counter, taken = Counter(), list[Counted]()

    async def nobody(_: Counted) -> None:
        raise Unavailable("away")

    async def taker(counted: Counted) -> None:
        taken.append(counted)

    counter.observe(call())
    await flush(counter, nobody)
    counter.observe(call())
    await flush(counter, taker)
    assert [use.count for use in taken[0].uses] == [2]


async def test_counts_that_are_refused_do_not_come_again() -> None:
    counter = Counter()

    async def refuses(_: Counted) -> None:
        raise InvalidArgument("no")

    counter.observe(call())
    await flush(counter, refuses)
    assert not counter.drain()


async def test_the_last_counts_are_handed_on_at_the_end() -> None:
    counter, taken = Counter(), list[Counted]()

    async def taker(counted: Counted) -> None:
        await asyncio.sleep(0)
        taken.append(counted)

    async with kept(counter, taker, every_s=3600):
        counter.observe(call())
    assert [use.count for counted in taken for use in counted.uses] == [1]
