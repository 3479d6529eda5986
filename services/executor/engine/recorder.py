"""Keeps what claimed work comes to: the records of many items share transactions.

While one transaction is on its way, what comes meanwhile waits for the next, so that a single
record waits for nobody and many share a commit. A record stands only under its claim; one whose
claim is lost, or whose statements fail, is found by halving and fails alone.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, groupby, islice
from random import Random
from typing import Any, Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Bound, Database
from services.chassis.errors import TenonError
from services.executor.engine import lanes
from services.executor.engine.work import (
    LEASE_S,
    Claimed,
    Done,
    Failed,
    Later,
    Outcome,
    Rows,
)
from services.executor.store import lanes as store
from services.executor.store import work as rows

log = logging.getLogger(__name__)

BEFORE_COMMIT = failpoints.declare("record.before_commit", "nothing of the records is there")
AFTER_COMMIT = failpoints.declare("record.after_commit", "all of the records is there")

AT_ONCE: Final = 2
"""Transactions on their way; the second is made ready while the first waits for the disk."""
LARGEST: Final = 512
TRIPPED: Final = "the breaker opened too often"
JITTER: Final = 0.2


Kept = tuple[Sequence["_Entry"], "dict[UUID, list[Rows]] | Exception"]


@dataclass(slots=True)
class _Entry:
    """What one item records, and who waits for that."""

    claimed: Claimed
    outcome: Outcome
    durable: bool
    answer: "asyncio.Future[list[Rows]]" = field(repr=False)


class Note(Outcome):
    """The work goes on under its claim."""


class Recorder:
    """Records outcomes and notes of one process; notes prolong the claim by `lease_s` seconds."""

    def __init__(
        self, database: Database, *, lease_s: float = LEASE_S, rng: Random | None = None
    ) -> None:
        self._database = database
        self._lease_s = lease_s
        self._rng = rng or Random()  # noqa: S311 - spreads waits, hides nothing
        self._waiting: list[_Entry] = []
        self._flushes: set[asyncio.Task[None]] = set()

    async def note(
        self, claimed: Claimed, record: Sequence[Bound], *, durable: bool = True
    ) -> list[Rows]:
        """Commit statements under the claim, which goes on; answers with their rows.

        Raises ClaimLost. What need not be `durable` may be lost with PostgreSQL, as long as nothing
        later is kept.
        """
        return await self._kept(claimed, Note(record=record), durable=durable)

    async def record(self, claimed: Claimed, outcome: Outcome) -> None:
        """Commit what a call came to, and end the claim. Raises ClaimLost."""
        answers = await self._kept(claimed, outcome, durable=True)
        if outcome.told is not None:
            outcome.told(answers)

    async def _kept(self, claimed: Claimed, outcome: Outcome, *, durable: bool) -> list[Rows]:
        answer: asyncio.Future[list[Rows]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(claimed, outcome, durable, answer))
        self._begin()
        return await answer

    def _begin(self) -> None:
        """Send what waits, unless enough is on its way; each that ends looks again."""
        if not self._waiting or len(self._flushes) >= AT_ONCE:
            return
        flush = asyncio.create_task(self._flush())
        self._flushes.add(flush)
        flush.add_done_callback(self._ended)

    def _ended(self, flush: "asyncio.Task[None]") -> None:
        self._flushes.discard(flush)
        self._begin()

    async def _flush(self) -> None:
        # Taken now and not when it was begun: what ends together is recorded together.
        entries, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
        if entries:
            await self._recorded(entries)

    async def _recorded(self, entries: list[_Entry]) -> None:
        # In one order for everybody: they wait for each other's lanes.
        entries.sort(key=_place)
        outcomes: list[Kept] = []
        try:
            BEFORE_COMMIT.hit()
            durable = any(entry.durable for entry in entries)
            outcomes += await self._database.batch(entries, self._arranged, durable=durable)
            AFTER_COMMIT.hit()
        except Exception as error:  # noqa: BLE001 - those who wait for the answer raise it
            outcomes = [(entries, error)]
        if _answered(outcomes):
            await self._wake()

    async def _wake(self) -> None:
        try:
            await self._database.tell(lanes.CHANNEL)
        except TenonError as error:
            log.warning("workers could not be woken and look by themselves: %s", error)

    def _arranged(self, entries: Sequence[_Entry]) -> dict[UUID, list[Bound]]:
        by_tenant = groupby(entries, key=lambda entry: entry.claimed.tenant_id)
        return {tenant_id: self._of_tenant(tenant_id, list(of)) for tenant_id, of in by_tenant}

    def _of_tenant(self, tenant_id: UUID, entries: list[_Entry]) -> list[Bound]:
        """Hold the claims, do what the entries say, then what that means for the work."""
        return [
            *_locked(tenant_id, entries),
            *(bound for entry in entries for bound in entry.outcome.record),
            *self._renewed(tenant_id, [e for e in entries if isinstance(e.outcome, Note)]),
            *self._left(tenant_id, [e for e in entries if not isinstance(e.outcome, Note)]),
        ]

    def _renewed(self, tenant_id: UUID, notes: list[_Entry]) -> Iterator[Bound]:
        if notes:
            works = [entry.claimed.work_id for entry in notes]
            lease = timedelta(seconds=self._lease_s)
            yield Bound(rows.RENEW, {"tenant_id": tenant_id, "works": works, "lease": lease})

    def _left(self, tenant_id: UUID, ended: list[_Entry]) -> Iterator[Bound]:
        if not ended:
            return
        done = [entry.claimed for entry in ended if isinstance(entry.outcome, Done)]
        lane_ids = sorted({entry.claimed.lane_id for entry in ended})
        if done:
            works = [claimed.work_id for claimed in done]
            yield Bound(rows.FINISH, {"tenant_id": tenant_id, "works": works})
        if len(done) < len(ended):
            waits = [entry for entry in ended if not isinstance(entry.outcome, Done)]
            yield Bound(rows.POSTPONE, {"tenant_id": tenant_id, **self._delays(waits)})
        yield from _counted(tenant_id, ended)
        yield from lanes.leaving(tenant_id, lane_ids, _ending_keys(ended))

    def _delays(self, waits: list[_Entry]) -> dict[str, list[Any]]:
        return {
            "works": [entry.claimed.work_id for entry in waits],
            "delays": [float(self._delay(entry)) for entry in waits],
            "failed": [int(isinstance(entry.outcome, Failed)) for entry in waits],
        }

    def _delay(self, entry: _Entry) -> float:
        """As the outcome says, or as the lane's schedule does, spread a little."""
        if isinstance(entry.outcome, Later):
            return entry.outcome.delay_s
        after = entry.claimed.retry_s[entry.claimed.failures]
        spread = after * self._rng.uniform(1 - JITTER, 1 + JITTER)
        least_s = entry.outcome.least_s if isinstance(entry.outcome, Failed) else 0.0
        return max(spread, least_s)


def _locked(tenant_id: UUID, entries: Sequence[_Entry]) -> list[Bound]:
    """The first statements: lock the lanes whose work goes in order, then hold the claims.

    Not only where the next of a key may go: a lane that is woken is locked too, and who cancels
    locks the lanes that go in order before their work.
    """
    claims = {
        "works": [entry.claimed.work_id for entry in entries],
        "claims": [entry.claimed.claim_id for entry in entries],
    }
    ordered = sorted(
        {
            entry.claimed.lane_id
            for entry in entries
            if entry.claimed.key is not None and not isinstance(entry.outcome, Note)
        }
    )
    locks = [Bound(store.LOCK_ORDERED, {"tenant_id": tenant_id, "lane_ids": ordered})]
    return [*(locks if ordered else []), Bound(rows.HOLD, {"tenant_id": tenant_id, **claims})]


def _place(entry: _Entry) -> tuple[int, int]:
    # Numbers: ids compare by a function of theirs, ten times for each entry of many.
    return entry.claimed.tenant_id.int, entry.claimed.lane_id.int


def _ending_keys(entries: Sequence[_Entry]) -> list[tuple[UUID, str]]:
    """The lanes and keys of what is final and went in order."""
    return [
        (entry.claimed.lane_id, entry.claimed.key)
        for entry in entries
        if entry.claimed.key is not None and isinstance(entry.outcome, Done)
    ]


def _counted(tenant_id: UUID, ended: list[_Entry]) -> Iterator[Bound]:
    """What the breakers count, in its order: that calls worked, or that so many failed."""
    telling = [entry for entry in ended if entry.outcome.worked is not None]
    for (lane_id, worked), of in groupby(
        telling, key=lambda entry: (entry.claimed.lane_id, entry.outcome.worked)
    ):
        counts = {"failed": 0 if worked else len(list(of)), "tripped": TRIPPED}
        yield Bound(store.COUNT, {"tenant_id": tenant_id, "lane_id": lane_id, **counts})


def _answered(outcomes: Sequence[Kept]) -> bool:
    """Tell everybody what has become of it; whether a lane or a tenant was woken."""
    woken = False
    for sent, answer in outcomes:
        if isinstance(answer, Exception):
            _fail(sent, answer)
        else:
            woken |= _answer(sent, answer)
    return woken


def _answer(entries: Sequence[_Entry], answers: dict[UUID, list[Rows]]) -> bool:
    """Give each its rows; whether a lane or a tenant was woken, which the last two tell."""
    woken = False
    for tenant_id, of in groupby(entries, key=lambda entry: entry.claimed.tenant_id):
        sent = list(of)
        told = answers[tenant_id][len(_locked(tenant_id, sent)) :]
        left = iter(told)
        for entry in sent:
            kept = list(islice(left, len(entry.outcome.record)))
            if not entry.answer.done():
                entry.answer.set_result(kept)
        if any(not isinstance(entry.outcome, Note) for entry in sent):
            _warn_of_pauses(left)
            woken |= any(told[-2:])
    return woken


def _warn_of_pauses(counted: Iterable[Rows]) -> None:
    """Say which lanes their breakers have given up; of all that is left, COUNT alone tells."""
    for lane in chain.from_iterable(counted):
        if getattr(lane, "pause_reason", "") == TRIPPED:
            log.warning("lane %s is paused: %s (%d times)", lane.lane_id, TRIPPED, lane.trips)


def _fail(entries: Sequence[_Entry], error: Exception) -> None:
    for entry in entries:
        if not entry.answer.done():
            entry.answer.set_exception(error)
