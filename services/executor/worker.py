"""Takes due work by turns and runs it: many items at once, each as a task of its own."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from services.chassis import failpoints
from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.chassis.telemetry import bind
from services.executor import lanes
from services.executor.lanes import Claimed, Turn

log = logging.getLogger(__name__)

AFTER_CLAIM = failpoints.declare("run.after_claim", "claimed work is claimed again by another")


class Kind(Protocol):
    """One kind of work."""

    @property
    def name(self) -> str:
        """What `WorkItem.kind` calls it."""
        ...

    async def run(self, claimed: Claimed) -> None:
        """Prepare, call, record; completes or postpones the work in the recording transaction.

        Whatever it raises is logged and the work tried again later. It is cancelled when the worker
        goes and its grace is over; the work is then given to another.
        """
        ...


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How much one worker takes, and its times in seconds.

    Work that failed is tried again after `retry_s` for each time it was claimed, at most
    `retry_most_s`.
    """

    items: int = 32
    tenants: int = 4
    lease_s: float = lanes.LEASE_S
    poll_s: float = 1.0
    grace_s: float = 10.0
    retry_s: float = 5.0
    retry_most_s: float = 300.0


class Worker:
    """One process's share of the work; several on one database share it among them."""

    def __init__(
        self, database: Database, kinds: Mapping[str, Kind], limits: WorkerLimits | None = None
    ) -> None:
        self._database = database
        self._kinds = dict(kinds)
        self._limits = limits or WorkerLimits()
        self._running: dict[asyncio.Task[None], Claimed] = {}
        self._wake = asyncio.Event()
        self._draining = False

    async def run(self) -> None:
        """Work until cancelled; then let what runs end, and give back what does not in time."""
        async with asyncio.TaskGroup() as helpers:
            helpers.create_task(self._listen())
            helpers.create_task(self._keep_leases())
            try:
                await self._take_turns()
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

    async def start(self, claimed: Claimed) -> None:
        """Run one item that is claimed already; returns when it is begun."""
        AFTER_CLAIM.hit()
        await self._start(claimed)

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
                # Not wait_for, which on 3.11 loses a cancellation that comes with the waking.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()

    async def _round(self) -> float:
        """Give due tenants their turns; how many seconds to wait then, unless woken."""
        poll_s, free = self._limits.poll_s, self._limits.items - len(self._running)
        if not free:
            return poll_s
        try:
            look = await lanes.claim_tenants(self._database, min(self._limits.tenants, free))
        except TenonError as error:
            log.warning("looking for work failed: %s", error)
            return poll_s
        if not look.turns:
            return poll_s if look.next_s is None else min(poll_s, look.next_s)
        share = free // len(look.turns)
        moved = await asyncio.gather(*(self._turn(turn, share) for turn in look.turns))
        return 0.0 if any(moved) else poll_s

    async def _turn(self, turn: Turn, share: int) -> bool:
        """One tenant's turn: claim, start, settle; False if that left everything as it was."""
        try:
            taken = await lanes.claim_work(
                self._database, turn, list(self._kinds), share, self._limits.lease_s
            )
            if taken.items:
                AFTER_CLAIM.hit()
            for claimed in taken.items:
                await self._start(claimed)
            asleep = await lanes.settle(self._database, turn, taken.lane_ids)
        except TenonError as error:
            log.warning("a turn failed: %s", error, extra={"tenant": str(turn.tenant_id)})
            return False
        return asleep or bool(taken.items)

    async def _start(self, claimed: Claimed) -> None:
        if self._draining:
            await self._give_back(claimed, 0)
            return
        task = asyncio.create_task(self._run(claimed))
        self._running[task] = claimed
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._running) >= self._limits.items
        del self._running[task]
        if was_full:
            self._wake.set()

    async def _run(self, claimed: Claimed) -> None:
        """Run one item; what it raises ends here."""
        with bind(tenant_id=str(claimed.tenant_id), work_id=str(claimed.work_id)):
            try:
                await self._kinds[claimed.kind].run(claimed)
            except asyncio.CancelledError:
                await self._give_back(claimed, 0)
                raise
            except Exception:
                log.exception("%s failed at attempt %d", claimed.kind, claimed.attempt)
                delay_s = self._limits.retry_s * claimed.attempt
                await self._give_back(claimed, min(delay_s, self._limits.retry_most_s))

    async def _give_back(self, claimed: Claimed, delay_s: float) -> None:
        try:
            async with self._database.tenant(claimed.tenant_id) as tx:
                await lanes.postpone(tx, claimed, delay_s)
        except TenonError as error:
            log.warning("work could not be given back and waits for its lease: %s", error)

    async def _drain(self) -> None:
        """Wait for what runs, then cancel the rest."""
        self._draining = True
        if self._running:
            await asyncio.wait(self._running, timeout=self._limits.grace_s)
        left = list(self._running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _listen(self) -> None:
        async with aclosing(self._database.listen(lanes.CHANNEL)) as notices:
            async for _ in notices:
                self._wake.set()

    async def _keep_leases(self) -> None:
        """Renew every running claim three times a lease, so that one failure loses none."""
        while True:
            await asyncio.sleep(self._limits.lease_s / 3)
            for claimed in list(self._running.values()):
                try:
                    async with self._database.tenant(claimed.tenant_id) as tx:
                        await lanes.renew(tx, claimed, self._limits.lease_s)
                except TenonError as error:
                    log.warning("a lease could not be renewed: %s", error)
