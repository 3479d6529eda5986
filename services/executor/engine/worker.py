"""Takes due work by turns and runs it: many items at once, each as a task of its own."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from services.chassis import failpoints
from services.chassis.database import Database
from services.chassis.errors import TenonError, Unavailable
from services.chassis.telemetry import bind
from services.executor.engine import lanes, turns
from services.executor.engine.meters import KindMeter
from services.executor.engine.recorder import Recorder
from services.executor.engine.turns import Turn
from services.executor.engine.work import (
    LEASE_S,
    Claimed,
    ClaimLost,
    Done,
    Failed,
    Kind,
    Later,
    Outcome,
    Why,
)

log = logging.getLogger(__name__)

AFTER_TURNS = failpoints.declare("work.after_turns", "the tenants are due again with their lease")
AFTER_CLAIM = failpoints.declare("run.after_claim", "claimed work is claimed again by another")
AFTER_START = failpoints.declare("work.after_start", "begun work is claimed again by another")

ROOM_S: Final = 0.02
"""How long a worker that is almost full waits for more room, to take more at once."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How much one worker takes, and its times in seconds.

    Work whose service is away is tried again after `away_s` for each time it was claimed, at most
    `away_most_s`.
    """

    items: int = 128
    tenants: int = 12
    lease_s: float = LEASE_S
    poll_s: float = 1.0
    grace_s: float = 10.0
    away_s: float = 5.0
    away_most_s: float = 60.0


class Worker:
    """One process's share of the work; several on one database share it among them."""

    def __init__(
        self,
        database: Database,
        kinds: Mapping[str, Kind[Any]],
        recorder: Recorder,
        limits: WorkerLimits | None = None,
    ) -> None:
        self._database = database
        self._kinds = dict(kinds)
        self._recorder = recorder
        self._limits = limits or WorkerLimits()
        self._running: dict[asyncio.Task[None], Claimed] = {}
        self._begun: set[Claimed] = set()
        self._cancelled: set[Claimed] = set()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._draining = False
        self.meters = {name: KindMeter() for name in self._kinds}

    async def run(self, *, takes_turns: bool = True) -> None:
        """Work until cancelled; then let what runs end, and give back what does not in time.

        One that takes no turns runs what it is given by `start` alone.
        """
        async with asyncio.TaskGroup() as helpers:
            helpers.create_task(self._hear_of_work())
            helpers.create_task(self._hear_of_cancels())
            helpers.create_task(self._keep_leases())
            try:
                await (self._take_turns() if takes_turns else asyncio.Event().wait())
            finally:
                await self._drain()

    @property
    def has_room(self) -> bool:
        """Whether it could start one more item now."""
        return not self._draining and len(self._running) < self._limits.items

    @property
    def lease_s(self) -> float:
        """How long what it starts is claimed for."""
        return self._limits.lease_s

    async def start(self, claimed: Claimed, prepared: Any = None) -> None:
        """Run one item that is claimed, and may be prepared, already; returns when it is begun."""
        AFTER_CLAIM.hit()
        self._start(claimed, prepared)

    async def _take_turns(self) -> None:
        """Round after round; between them wait for a notice, for a free place or for the time."""
        while True:
            self._wake.clear()
            # A round that a cancellation cut in two would leave claims behind.
            looking = asyncio.ensure_future(self._round())
            try:
                wait_s = await asyncio.shield(looking)
            except asyncio.CancelledError:
                self._draining = True
                await looking
                raise
            if wait_s > 0:
                await _within(wait_s, self._wake)

    async def _round(self) -> float:
        """Give due tenants their turns; how many seconds to wait then, unless woken."""
        poll_s = self._limits.poll_s
        free = await self._free()
        if not free:
            return poll_s
        try:
            look = await turns.claim_tenants(self._database, min(self._limits.tenants, free))
            AFTER_TURNS.hit()
            if not look.turns:
                return poll_s if look.next_s is None else min(poll_s, look.next_s)
            return 0.0 if await self._turns(look.turns, free) else poll_s
        except TenonError as error:
            log.warning("looking for work failed: %s", error)
            return poll_s

    async def _turns(self, won: Sequence[Turn], free: int) -> bool:
        """Turns of many tenants: claim, start, settle; False if that left all as it was."""
        shares = _shares(won, free)
        taken = await turns.claim_work(
            self._database, shares, list(self._kinds), self._limits.lease_s
        )
        if any(each.items for each in taken.values()):
            AFTER_CLAIM.hit()
        for each in taken.values():
            for claimed in each.items:
                self._start(claimed)
        AFTER_START.hit()
        asleep = await turns.settle(self._database, taken)
        return asleep or any(each.items for each in taken.values())

    async def _free(self) -> int:
        """How many more may run; where that is few, a moment is given for more to end."""
        if len(self._running) > self._limits.items * 3 // 4:
            self._room.clear()
            await _within(ROOM_S, self._room)
        return self._limits.items - len(self._running)

    def _start(self, claimed: Claimed, prepared: Any = None) -> None:
        self.meters[claimed.kind].claimed(claimed)
        task = asyncio.create_task(self._run(claimed, prepared))
        self._running[task] = claimed
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        before = len(self._running)
        claimed = self._running.pop(task)
        self._cancelled.discard(claimed)
        self._begun.discard(claimed)
        self.meters[claimed.kind].ended()
        if before >= self._limits.items:
            self._wake.set()
        if before <= self._limits.items * 3 // 4:
            self._room.set()

    async def _run(self, claimed: Claimed, prepared: Any) -> None:
        """Run one item; what it raises ends here."""
        self._begun.add(claimed)
        with bind(tenant_id=str(claimed.tenant_id), work_id=str(claimed.work_id)):
            try:
                await self._record(claimed, await self._outcome(claimed, prepared))
            except asyncio.CancelledError:
                if claimed not in self._cancelled:
                    await self._record(claimed, Later(delay_s=0))
                    raise
                _go_on()
                await self._record(claimed, self._given_up(claimed, "CANCELLED"))
            except ClaimLost as error:
                log.warning("%s goes on elsewhere: %s", claimed.kind, error)

    async def _outcome(self, claimed: Claimed, prepared: Any) -> Outcome:
        """Prepare and call; what they raise becomes an outcome too."""
        if claimed.cancelled or claimed in self._cancelled:
            return self._given_up(claimed, "CANCELLED")
        if claimed.left_s is not None and claimed.left_s <= 0:
            return self._given_up(claimed, "DEADLINE_EXCEEDED")
        kind, late = self._kinds[claimed.kind], asyncio.timeout(claimed.left_s)
        try:
            if self._draining:
                return Later(delay_s=0)
            async with late:
                known = prepared if prepared is not None else await kind.prepare(claimed)
                return await kind.call(claimed, known)
        except Unavailable as error:
            log.warning("%s waits: %s", claimed.kind, error)
            away_s = self._limits.away_s * claimed.attempt
            return Later(delay_s=min(away_s, self._limits.away_most_s))
        except Exception as error:
            if late.expired():
                return self._given_up(claimed, "DEADLINE_EXCEEDED")
            if isinstance(error, ClaimLost):
                raise
            log.exception("%s failed at attempt %d", claimed.kind, claimed.attempt)
            return Failed()

    async def _record(self, claimed: Claimed, outcome: Outcome) -> None:
        """Keep an outcome; one that cannot be kept counts as a failure."""
        if isinstance(outcome, Failed) and claimed.failures >= len(claimed.retry_s):
            given_up = self._given_up(claimed, "EXHAUSTED")
            outcome = replace(
                given_up, record=(*outcome.record, *given_up.record), worked=outcome.worked
            )
        try:
            await self._recorder.record(claimed, outcome)
            self.meters[claimed.kind].recorded(outcome)
        except ClaimLost as error:
            log.warning("%s is not recorded: %s", claimed.kind, error)
        except Unavailable as error:
            log.warning("%s is not recorded and waits for its lease: %s", claimed.kind, error)
        except Exception:
            log.exception("%s could not be recorded", claimed.kind)
            if outcome.record:
                await self._record(claimed, Failed())

    def _given_up(self, claimed: Claimed, why: Why) -> Done:
        return self._kinds[claimed.kind].give_up(claimed, why)

    async def _drain(self) -> None:
        """Wait for what runs, then cancel the rest."""
        self._draining = True
        if self._running:
            await asyncio.wait(self._running, timeout=self._limits.grace_s)
        left = list(self._running)
        for task in left:
            self._interrupt(task)
        await asyncio.gather(*left, return_exceptions=True)

    async def _hear_of_work(self) -> None:
        async with aclosing(self._database.listen(lanes.CHANNEL)) as notices:
            async for _ in notices:
                self._wake.set()

    async def _hear_of_cancels(self) -> None:
        async with aclosing(self._database.listen(lanes.CANCEL_CHANNEL)) as notices:
            async for work_id in notices:
                self._cancel(work_id)

    def _cancel(self, work_id: str | None) -> None:
        """End an item, if it runs here, as cancelled."""
        for task, claimed in self._running.items():
            if str(claimed.work_id) == work_id and claimed not in self._cancelled:
                self._cancelled.add(claimed)
                self._interrupt(task)

    def _interrupt(self, task: asyncio.Task[None]) -> None:
        """Break an item off; one that has not begun sees by itself that it must not.

        A task that is cancelled before its first step never takes it: its claim would stay.
        """
        if self._running[task] in self._begun:
            task.cancel()

    async def _keep_leases(self) -> None:
        """Renew every running claim three times a lease, so that one failure loses none."""
        while True:
            await asyncio.sleep(self._limits.lease_s / 3)
            try:
                await turns.renew(
                    self._database, list(self._running.values()), self._limits.lease_s
                )
            except TenonError as error:
                log.warning("leases could not be renewed: %s", error)


def _shares(won: Sequence[Turn], free: int) -> dict[Turn, int]:
    """What each turn may take of the free places, by its tenant's weight; at least one."""
    total = sum(turn.weight for turn in won)
    return {turn: max(1, free * turn.weight // total) for turn in won}


def _go_on() -> None:
    """Let this task wait again although it was cancelled."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for an event, but no longer."""
    # Not wait_for, which on 3.11 loses a cancellation that comes with the waking.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
