"""The breaker of a lane, beside a reference that knows what it is for and nothing of the database."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.chassis.database import Database
from services.chassis.secret import Secret
from services.executor.engine import lanes, steering, turns
from services.executor.engine.recorder import TRIPPED
from services.executor.engine.work import Breaker, Claimed, Done, Failed, Later, Outcome
from tests.integration.executor.lane_bench import LaneBench, pass_time

Admin = psycopg.AsyncConnection[Any]
BREAKER: Final = Breaker(threshold=2, reset_s=60.0, probes=2, trips_allowed=3)
CONCURRENCY: Final = 6
# Longer than all the time that passes, so that no claim is lost to it.
LEASE_S: Final = 1_000_000.0
OUTCOMES: Final[tuple[Outcome, ...]] = (
    Done(worked=True),
    Later(delay_s=0, worked=True),
    Failed(worked=False),
    Failed(worked=False),
    Done(worked=False),
    Later(delay_s=0),
)
PAUSED: Final = "somebody paused it"


@dataclass
class Reference:
    """What a lane with this breaker may do."""

    state: Literal["CLOSED", "OPEN", "HALF_OPEN"] = "CLOSED"
    failures: int = 0
    trips: int = 0
    paused: str = ""
    now: float = 0.0
    open_until: float = 0.0
    waiting: int = 0
    running: int = 0

    @property
    def allowed(self) -> int:
        """How many more may begin."""
        if self.paused or (self.state == "OPEN" and self.now < self.open_until):
            return 0
        most = CONCURRENCY if self.state == "CLOSED" else BREAKER.probes
        return min(self.waiting, max(0, most - self.running))

    def begin(self, count: int) -> None:
        """So many begin; where the breaker was open they are its probes."""
        self.waiting, self.running = self.waiting - count, self.running + count

    def half_open(self) -> None:
        """Somebody looked, and its time was over."""
        assert self.state == "OPEN"
        assert self.now >= self.open_until
        self.state = "HALF_OPEN"

    def end(self, outcome: Outcome) -> None:
        """One ends."""
        self.running -= 1
        self.waiting += not isinstance(outcome, Done)
        if outcome.worked is True:
            self._worked()
        elif outcome.worked is False:
            self._failed()

    def resume(self) -> None:
        """Somebody lets it go on."""
        self.paused, self.state, self.failures, self.trips = "", "CLOSED", 0, 0

    def _worked(self) -> None:
        if self.state != "OPEN":
            self.failures = 0
        if self.state == "HALF_OPEN":
            self.state, self.trips = "CLOSED", 0

    def _failed(self) -> None:
        if self.state == "HALF_OPEN" or (
            self.state == "CLOSED" and self.failures + 1 >= BREAKER.threshold
        ):
            self._open()
        elif self.state == "CLOSED":
            self.failures += 1

    def _open(self) -> None:
        self.state, self.failures, self.trips = "OPEN", 0, self.trips + 1
        self.open_until = self.now + BREAKER.reset_s
        if BREAKER.trips_allowed and self.trips >= BREAKER.trips_allowed:
            self.paused = self.paused or TRIPPED


class Lane(RuleBasedStateMachine):
    """A lane in the database and the reference, side by side."""

    def __init__(self, runner: asyncio.Runner, database: Database, admin: Admin) -> None:
        super().__init__()
        self._run = runner.run
        self._admin = admin
        self._bench = LaneBench(database)
        self._running: list[Claimed] = []
        self._expected = Reference()
        self._enqueue(4)

    def _enqueue(self, count: int) -> None:
        policy: dict[str, Any] = {
            "breaker": BREAKER,
            "concurrency": CONCURRENCY,
            "retry_s": (0.0,) * 1000,
        }
        self._run(self._bench.enqueue(*(self._bench.item(**policy) for _ in range(count))))
        self._expected.waiting += count

    def _row(self) -> Any:
        async def read() -> Any:
            query = (
                "SELECT breaker, failures, trips, pause_reason FROM executor.lanes"
                " WHERE lane_id = %s"
            )
            return await (await self._admin.execute(query, [self._bench.lane_id])).fetchone()

        return self._run(read())

    @rule(count=st.integers(1, 3))
    def enqueue(self, count: int) -> None:
        self._enqueue(count)

    @rule()
    def take(self) -> None:
        # A tenant where nothing was found rests a moment.
        self._pass(2 * turns.REST_S)
        allowed = self._expected.allowed
        taken = self._run(self._bench.take(lease_s=LEASE_S))
        assert len(taken) == allowed
        if self._expected.state == "OPEN" and self._row()[0] == "HALF_OPEN":
            self._expected.half_open()
        self._expected.begin(len(taken))
        self._running += taken

    @precondition(lambda self: self._running)
    @rule(data=st.data(), outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4))
    def end(self, data: st.DataObject, outcomes: list[Outcome]) -> None:
        """Some end, and are recorded together in this order."""
        ended = []
        for outcome in outcomes[: len(self._running)]:
            at = data.draw(st.integers(0, len(self._running) - 1))
            ended.append((self._running.pop(at), outcome))
            self._expected.end(outcome)

        async def record() -> None:
            async with self._bench.database.across() as tx:
                await self._bench.end(tx, *ended)

        self._run(record())

    @rule(seconds=st.sampled_from([BREAKER.reset_s / 2, BREAKER.reset_s]))
    def pass_time(self, seconds: float) -> None:
        self._pass(seconds)

    @rule()
    def pause(self) -> None:
        async def pause() -> None:
            async with self._bench.database.tenant(self._bench.tenant_id) as tx:
                await steering.pause(tx, self._bench.tenant_id, self._bench.lane_id, PAUSED)

        self._run(pause())
        self._expected.paused = PAUSED

    @rule()
    def resume(self) -> None:
        async def resume() -> None:
            async with self._bench.database.tenant(self._bench.tenant_id) as tx:
                await steering.resume(tx, self._bench.tenant_id, self._bench.lane_id)

        self._run(resume())
        self._expected.resume()

    def teardown(self) -> None:
        """The next example finds nobody due."""
        self._run(self._admin.execute("TRUNCATE executor.tenant_lanes CASCADE"))

    @invariant()
    def is_as_expected(self) -> None:
        expected = self._expected
        assert self._row() == (
            expected.state,
            expected.failures,
            expected.trips,
            expected.paused,
        )

    def _pass(self, seconds: float) -> None:
        self._run(pass_time(self._admin, seconds))
        self._expected.now += seconds


@pytest.fixture
def stepwise(
    executor_conninfos: tuple[Secret, Secret], superuser: Secret
) -> Iterator[tuple[asyncio.Runner, Database, Admin]]:
    """A loop of its own, which a state machine can run step by step."""
    with asyncio.Runner() as runner:
        database = Database(*executor_conninfos, constraints=lanes.CONSTRAINTS)
        runner.run(database.__aenter__())
        admin = runner.run(
            psycopg.AsyncConnection.connect(superuser.reveal_text(), autocommit=True)
        )
        yield runner, database, admin
        runner.run(admin.close())
        runner.run(database.__aexit__(None, None, None))


def test_a_breaker_does_what_its_reference_does(
    stepwise: tuple[asyncio.Runner, Database, Admin],
) -> None:
    class LaneHere(Lane):
        def __init__(self) -> None:
            super().__init__(*stepwise)

    run_state_machine_as_test(
        LaneHere,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


async def test_a_lane_that_opens_too_often_is_paused_with_a_notice_and_resumed(
    bench: LaneBench, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    breaker = Breaker(threshold=1, reset_s=60.0, trips_allowed=2)
    await bench.enqueue(bench.item(breaker=breaker, retry_s=(0.0,) * 9))
    for expected in ([], [f"lane {bench.lane_id} is paused: {TRIPPED} (2 times)"]):
        (claimed,) = await bench.take()
        with caplog.at_level(logging.WARNING):
            assert await bench.record(claimed, Failed(worked=False))
        assert [record.getMessage() for record in caplog.records] == expected
        await pass_time(admin, 61)
    assert await bench.take() == []
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.resume(tx, bench.tenant_id, bench.lane_id)
    (claimed,) = await bench.take()
    assert await bench.record(claimed, Done(worked=True))


async def test_an_open_lane_begins_nothing_before_its_time_and_its_tenant_goes_on(
    bench: LaneBench, admin: Admin
) -> None:
    breaker = Breaker(threshold=1, reset_s=60.0)
    await bench.enqueue(bench.item(breaker=breaker), bench.item(breaker=breaker))
    first, second = await bench.take()
    assert await bench.record(first, Failed(worked=False))
    # What was begun before and ends well while it is open does not close it.
    assert await bench.record(second, Done(worked=True))
    other = bench.item(lane_id=first.target_id)
    await bench.enqueue(bench.item(), other)
    (claimed,) = await bench.take()
    assert claimed.target_id == other.target_id
    assert await bench.complete(claimed)
    # When the lease of the other was to end, somebody looks once more.
    await pass_time(admin, 31)
    assert await bench.take() == []
    look = await turns.claim_tenants(bench.database, 10)
    assert look.turns == ()
    assert look.next_s is not None
    assert 20 < look.next_s <= 29
    await pass_time(admin, 30)
    assert len(await bench.take()) == 1
