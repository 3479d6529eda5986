"""Keeps events of many tenants in shared transactions; each is answered once it is on the disk.

A group is what has come while others were under way, so that nobody waits for company. It takes one
round trip: receipts, by which redeliveries are known, with the new events and the commit; or two,
where events start something, which goes with the commit then. It holds at most one event of a
tenant that starts something: whoever enqueued twice would want lanes while holding the tenant lane.
Tenants go in one order, as with all who wait for the locks of many. On an error nothing of a group
stays; it is halved until the bad one is alone.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from services.chassis import errors, failpoints
from services.chassis.database import Bound, Database
from services.executor.engine import lanes
from services.executor.events.accepting import Draft, place
from services.executor.store import events as store

BEFORE_COMMIT: Final = failpoints.declare("ingress.before_commit", "nothing of the event is there")
AFTER_COMMIT: Final = failpoints.declare("ingress.after_commit", "the event is there and runs once")

GROUPS: Final = 2
"""So many are under way at once: one is made up while the other waits for the disk."""
MOST: Final = 64
LARGEST: Final = 4 * 2**20
"""Bytes of bodies, as they are kept: with the event that reaches it a group is full."""
MOST_OF_A_TENANT: Final = 256
BUSY_S: Final = 1.0

Outcome = UUID | errors.TenonError


class Busy(errors.ResourceExhausted):
    """So many events of a tenant are under way that another one would only wait."""


class _Waiting(NamedTuple):
    draft: Draft
    answer: "asyncio.Future[UUID]"


class Intake:
    """Accepts events, many at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Waiting] = []
        self._under_way = 0
        self._of_tenant: Counter[UUID] = Counter()

    @contextmanager
    def room(self, tenant_id: UUID) -> Iterator[None]:
        """Where an event of a tenant is worked on. Raises Busy where too many of it are."""
        of_tenant = self._of_tenant[tenant_id]
        if of_tenant >= MOST_OF_A_TENANT:
            raise Busy("too many events of the tenant are under way", retry_after_s=BUSY_S)
        self._of_tenant[tenant_id] = of_tenant + 1
        try:
            yield
        finally:
            left = self._of_tenant.pop(tenant_id) - 1
            if left:
                self._of_tenant[tenant_id] = left

    async def accept(self, draft: Draft) -> UUID:
        """Keep an event and start what it starts; answers with its id, or the first delivery's.

        Receipt, event, executions and their work are there together. Raises NotFound where the
        tenant has just been disabled, ResourceExhausted where its quota is used up.
        """
        answer: asyncio.Future[UUID] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(draft, answer))
        self._begin()
        return await answer

    def _begin(self) -> None:
        while self._waiting and self._under_way < GROUPS:
            group = self._next_group()
            self._under_way += 1
            # A sender that goes away cannot cut it in two.
            task = asyncio.create_task(self._kept([each.draft for each in group]))
            task.add_done_callback(partial(self._tell, group))

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        later: list[_Waiting] = []
        starting: set[UUID] = set()
        size = 0
        for each in self._waiting:
            tenant_id = each.draft.event.tenant_id
            second = bool(each.draft.starts) and tenant_id in starting
            if second or len(group) == MOST or size >= LARGEST:
                later.append(each)
            else:
                group.append(each)
                size += len(each.draft.kept.body)
            if each.draft.starts:
                starting.add(tenant_id)
        self._waiting = later
        return group

    def _tell(self, group: Sequence[_Waiting], task: "asyncio.Task[list[Outcome]]") -> None:
        self._under_way -= 1
        fault = None if task.cancelled() else task.exception()
        outcomes = [fault] * len(group) if fault or task.cancelled() else task.result()
        for each, outcome in zip(group, outcomes, strict=True):
            if each.answer.done():
                continue
            if isinstance(outcome, UUID):
                each.answer.set_result(outcome)
            elif outcome is None:
                each.answer.cancel()
            else:
                each.answer.set_exception(outcome)
        self._begin()

    async def _kept(self, drafts: Sequence[Draft]) -> list[Outcome]:
        try:
            return await self._commit(drafts)
        except errors.TenonError as error:
            # With the database away no event is at fault, and each half would wait for it anew.
            if len(drafts) == 1 or isinstance(error, errors.Unavailable):
                return [error] * len(drafts)
        half = len(drafts) // 2
        return [*await self._kept(drafts[:half]), *await self._kept(drafts[half:])]

    async def _commit(self, drafts: Sequence[Draft]) -> list[Outcome]:
        ordered = sorted(drafts, key=place)
        accepting = [store.accepting([each.arriving for each in ordered])]
        async with self._database.across() as tx:
            if any(each.starts for each in ordered):
                outcomes = _outcomes(ordered, await tx.pipeline(accepting))
                starting = _starting(outcomes)
                BEFORE_COMMIT.hit()
                if starting:
                    await tx.each(starting, last=True)
            else:
                BEFORE_COMMIT.hit()
                outcomes = _outcomes(ordered, await tx.conclude(accepting))
        AFTER_COMMIT.hit()
        return [outcomes[draft] for draft in drafts]


def _outcomes(ordered: Sequence[Draft], answers: Sequence[list[Any]]) -> dict[Draft, Outcome]:
    return dict(zip(ordered, map(store.accepted, answers[0]), strict=True))


def _starting(outcomes: Mapping[Draft, Outcome]) -> dict[UUID, list[Bound]]:
    """What the new ones start, by tenant."""
    return {
        draft.event.tenant_id: lanes.beginning(draft.event.tenant_id, draft.starts)
        for draft, outcome in outcomes.items()
        if draft.starts and outcome == draft.event.id
    }
