"""Whatever people do under a policy, wanted state changes only with the approvals it asks for."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tenon.registry.v1 import config_service_pb2 as pb2

from services.registry import opening
from services.registry.reviews.endings import Endings
from services.registry.reviews.expiry import Expiry
from tests.integration.registry.callers import Caller, Registry
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme, connector, integration, resource

PEOPLE = 4
NEEDED = 2
WHO, WHICH, NUMBER = st.integers(0, PEOPLE), st.integers(0, 5), st.integers(1, 3)
STEPS = st.one_of(
    st.tuples(st.just("submit"), WHO, NUMBER),
    st.tuples(st.just("approve"), WHO, WHICH),
    st.tuples(st.just("approve"), WHO, WHICH),
    st.tuples(st.just("reject"), WHO, WHICH),
    st.tuples(st.just("loosen"), WHO, NUMBER),
    st.tuples(st.just("harmless"), WHO, NUMBER),
    st.tuples(st.just("expire"), st.just(0), st.just(0)),
)
Step = tuple[str, int, int]
slugs = (f"law-{number}" for number in count())


@dataclass
class World:
    """One tenant, what waits there, and who approved it."""

    registry: Registry
    slug: str
    owner: Caller
    # The last one is a service.
    callers: Sequence[Caller]
    waiting: list[str] = field(default_factory=list)
    author: dict[str, int] = field(default_factory=dict)
    approvers: dict[str, set[int]] = field(default_factory=dict)

    async def begin(self) -> None:
        four_eyes = resource("review_policy", "four-eyes", min_risk="MEDIUM", approvals=NEEDED)
        await self.owner.apply(self.slug, [*acme(self.slug), four_eyes])

    async def guarded(self) -> tuple[str, bytes]:
        """What may not change without approval: the address, and the policy."""
        found = await self.owner.snapshot(self.slug)
        policy = found["review_policy", "four-eyes"].resource.review_policy
        address = found["integration", "github"].resource.integration.base_url
        return address, policy.SerializeToString(deterministic=True)

    async def take(self, step: Step) -> str:
        """Do one step; the name of what it approved, if it did."""
        action, who, what = step
        caller = self.callers[who]
        if action == "submit":
            address = f"http://127.0.0.1:{what}"
            config = {"owner": "acme"}
            await self._submit(who, integration(config=config, base_url=address))
        elif action == "loosen":
            loose = resource("review_policy", "four-eyes", min_risk="CRITICAL", approvals=what)
            await self._submit(who, loose)
        elif action == "harmless":
            harmless = connector()
            harmless.connector.description = f"number {what}"
            await caller.apply(self.slug, [harmless])
        elif action == "expire":
            later = datetime.now(UTC) + timedelta(days=4)
            endings = Endings(opening.open_log(self.registry.vault))
            await Expiry(self.registry.database, endings, lambda: later).expire()
        elif self.waiting:
            return await self._decide(action, who, self.waiting[what % len(self.waiting)])
        return ""

    async def _submit(self, who: int, document: Any) -> None:
        answer = await self.callers[who].apply(self.slug, [document])
        if answer.HasField("pending") and answer.pending.name not in self.waiting:
            self.waiting.append(answer.pending.name)
            self.author[answer.pending.name] = who

    async def _decide(self, action: str, who: int, name: str) -> str:
        config = self.callers[who].config
        if action == "reject":
            await config.RejectRevision(pb2.RejectRevisionRequest(name=name))
            return ""
        await config.ApproveRevision(pb2.ApproveRevisionRequest(name=name))
        self.approvers.setdefault(name, set()).add(who)
        return name


@pytest.fixture
async def callers(calling: Calls) -> list[Caller]:
    people = [await calling("SUPER_ADMIN") for _ in range(PEOPLE)]
    return [*people, await calling("SUPER_ADMIN", kind="service")]


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, max_size=14))
@example(steps=[("submit", 0, 1), ("approve", 1, 0), ("approve", 2, 0)])
@example(steps=[("loosen", 0, 1), ("approve", 0, 0), ("approve", 4, 0), ("approve", 1, 0)])
@example(steps=[("submit", 4, 1), ("approve", 0, 0), ("harmless", 0, 1), ("approve", 1, 0)])
@example(steps=[("loosen", 2, 1), ("approve", 0, 0), ("approve", 1, 0), ("submit", 0, 1)])
async def test_only_the_approvals_of_others_change_what_a_policy_guards(
    registry: Registry, owner: Caller, callers: list[Caller], steps: list[Step]
) -> None:
    world = World(registry, next(slugs), owner, callers)
    await world.begin()
    before = await world.guarded()
    for step in steps:
        approved = ""
        with contextlib.suppress(grpc.aio.AioRpcError):
            approved = await world.take(step)
        after = await world.guarded()
        if after != before:
            people = world.approvers.get(approved, set()) - {world.author.get(approved)}
            assert len(people - {PEOPLE}) >= NEEDED, step
            if after[1] != before[1]:
                # Rightly loosened, the policy asks for less from here on.
                return
        before = after


async def test_and_those_do_change_it(
    registry: Registry, owner: Caller, callers: list[Caller]
) -> None:
    world = World(registry, next(slugs), owner, callers)
    await world.begin()
    before = await world.guarded()
    for step in (("submit", 4, 1), ("approve", 0, 0), ("approve", 1, 0)):
        await world.take(step)
    assert await world.guarded() != before
