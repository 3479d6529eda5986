"""Events that came in before are routed again, by the subscriptions there are now.

Batch by batch, each a transaction with what it begins and how far it is: whoever is cut short goes
on by the same request, and begins nothing twice. What is delivered again to an endpoint by the same
subscription has the `webhook-id` it had before, so that its receiver may know it.

Which events a replay is of is settled when it begins: none that comes in later, and none that is
still on its way then, since what commits behind a replay would be passed over.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition, NotFound, invalid
from services.chassis.evaluator import Evaluator
from services.chassis.ids import uuid7_floor
from services.chassis.retention import utc_now
from services.executor.audit.outbox import Deed, Doer, telling
from services.executor.deliveries import trials
from services.executor.deliveries.policies import KIND as DELIVERY
from services.executor.engine import lanes
from services.executor.engine.work import Started
from services.executor.events import accepting, routing
from services.executor.events.retelling import is_subscribed, opened, retold, shown_of, source_of
from services.executor.events.routing import Subscribed, Told
from services.executor.events.selecting import ALL, Selection
from services.executor.executions.runs import KIND as EXECUTION
from services.executor.registry.credentials import LeasedKey, Secrets
from services.executor.store import positions, projected
from services.executor.store import replays as store
from services.executor.store.events import Kept
from services.executor.store.positions import Found
from services.executor.store.projected import ProjectedObject
from services.executor.store.replays import Progress, Route
from services.executor.syncs.streams import KIND as SYNC

log = logging.getLogger(__name__)

MOST: Final = 5000
"""Events that one call looks at, and a page more at most; the rest is another call's."""
LONGEST_S: Final = 20.0
"""After that a call ends with its batch, and leaves the rest to another one."""
STARTS: Final = 50
"""What a batch may begin at once; what a single event begins always goes together."""
OF_QUOTA: Final = 10
"""A batch takes one part in so many of what the tenant may begin in an hour at most: else it would
have to wait until the tenant has begun nothing for as long."""
SETTLED: Final = timedelta(seconds=5)
"""The longest that a writing transaction lasts: an id that is older is there, or never will be."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Which events are to be routed again: those from `since` on, and before `until`.

    Without `until`, or with a later one, up to `SETTLED` before the first call. By one
    `subscription`, where it is said. Without `request_id` nothing is begun, and only said what
    would be.
    """

    tenant_id: UUID
    since: datetime
    until: datetime | None = None
    selection: Selection = ALL
    endpoint: str = ""
    subscription: str = ""
    request_id: UUID | None = None
    page_token: str = ""

    def marks(self) -> tuple[str, ...]:
        """What must be the same in all calls of a replay."""
        until = self.until.isoformat() if self.until else ""
        words = (*self.selection.types, self.selection.filter, self.endpoint, self.subscription)
        return (str(self.tenant_id), self.since.isoformat(), until, *words)

    def digest(self) -> bytes:
        """The same, in short."""
        return hashlib.sha256(json.dumps(self.marks()).encode()).digest()


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was begun by now, and the token for the rest."""

    progress: Progress
    next_page_token: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is wanted now: subscriptions, endpoints by id, and the only one that counts, if any.

    `most`: what a batch may begin.
    """

    to: Subscribed
    endpoints: Mapping[UUID, ProjectedObject]
    only: UUID | None
    most: int


@dataclass(slots=True)
class _Batch:
    """What routing some events again comes to."""

    looked_at: int = 0
    events: int = 0
    unreadable: int = 0
    starts: list[Started] = field(default_factory=list)

    def added(self, progress: Progress, after_id: UUID) -> Progress:
        """How far a replay is with it."""
        begun = Counter(each.item.kind for each in self.starts)
        return replace(
            progress,
            after_id=after_id,
            events=progress.events + self.events,
            unreadable=progress.unreadable + self.unreadable,
            deliveries=progress.deliveries + begun[DELIVERY],
            executions=progress.executions + begun[EXECUTION],
            sync_runs=progress.sync_runs + begun[SYNC],
        )


class Replaying:
    """The use case."""

    def __init__(
        self,
        database: Database,
        secrets: Secrets,
        evaluator: Evaluator,
        clock: Callable[[], datetime] = utc_now,
        most: int = MOST,
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._evaluator = evaluator
        self._clock = clock
        self._most = most

    async def replay(self, what: Replay, doer: Doer) -> Replayed:
        """Route events again, the oldest first; the answer counts for all calls up to now.

        Raises InvalidArgument, NotFound, FailedPrecondition, and ResourceExhausted where the
        tenant's quota is used up: what was begun until then stays.
        """
        what.selection.check()
        if what.until is not None and what.until <= what.since:
            raise invalid("until", "must be later than since")
        wanted, progress = await self._wanted(what), await self._progress(what)
        key = await self._secrets.lease_key(what.tenant_id)
        page: Sequence[Found] = ()
        looked_at, ends_at = 0, time.monotonic() + LONGEST_S
        while True:
            # What is left over of a page is the next batch, unless somebody else was faster.
            page = [each for each in page if each.noted.id > progress.after_id]
            if not page:
                ids = progress.after_id, progress.until_id
                page = await positions.between(self._database, what.tenant_id, ids, wanted.only)
            if not page:
                return Replayed(replace(progress, after_id=progress.until_id), "")
            batch = await self._routed(what, page, wanted, key, ends_at)
            looked_at += batch.looked_at
            now = batch.added(progress, page[batch.looked_at - 1].noted.id)
            progress = (
                now
                if what.request_id is None
                else await self._kept(what, what.request_id, (progress, now), batch, doer)
            )
            if looked_at >= self._most or time.monotonic() >= ends_at:
                return Replayed(progress, pages.next_token(_written(progress), *what.marks()))

    async def _wanted(self, what: Replay) -> _Wanted:
        """What there is to route by. Raises NotFound for a name that is not there."""
        subscriptions = await projected.all_of(self._database, what.tenant_id, "Subscription")
        endpoints = await projected.all_of(self._database, what.tenant_id, "WebhookEndpoint")
        if what.subscription:
            subscriptions = [each for each in subscriptions if each.name == what.subscription]
            if not subscriptions:
                raise NotFound(f"subscriptions/{what.subscription} does not exist")
        only = None
        if what.endpoint:
            named = [each.object_id for each in endpoints if each.name == what.endpoint]
            if not named:
                raise NotFound(f"webhookEndpoints/{what.endpoint} does not exist")
            (only,) = named
        to = await routing.subscribed(self._database, what.tenant_id, subscriptions)
        quota = await store.quota(self._database, what.tenant_id)
        most = STARTS if quota is None else min(STARTS, max(1, quota // OF_QUOTA))
        return _Wanted(to, {each.object_id: each for each in endpoints}, only, most)

    async def _progress(self, what: Replay) -> Progress:
        """How far the replay is: by what is kept of it, or by the token where nothing is."""
        said = pages.after_of(what.page_token, *what.marks())
        settled = self._clock() - SETTLED
        until = uuid7_floor(min(what.until or settled, settled))
        start = _read(said) if said else Progress(_before(uuid7_floor(what.since)), _before(until))
        if what.request_id is None:
            return start
        kept = await store.begin(
            self._database, what.tenant_id, what.request_id, what.digest(), start
        )
        if kept is None:
            raise _disabled()
        digest, progress = kept
        if digest != what.digest():
            raise FailedPrecondition(
                "this request_id was used for another replay", reason="REQUEST_ID_REUSED"
            )
        return progress

    async def _routed(
        self,
        what: Replay,
        page: Sequence[Found],
        wanted: _Wanted,
        key: LeasedKey,
        ends_at: float,
    ) -> _Batch:
        """What the first of some events begin, if they are wanted; outside any transaction."""
        ids = [each.noted.id for each in page]
        messages = await store.messages(self._database, what.tenant_id, ids)
        batch = _Batch()
        for found in page:
            # A test is for its endpoint alone, whatever is subscribed.
            if found.noted.type != trials.TYPE and what.selection.is_of_types(found.noted.type):
                begun = await self._route(what, found, wanted, (key, messages), batch)
                if batch.starts and begun and len(batch.starts) + len(begun) > wanted.most:
                    break
                batch.starts += begun
                batch.events += bool(begun)
            batch.looked_at += 1
            if time.monotonic() >= ends_at:
                break
        return batch

    async def _route(
        self,
        what: Replay,
        found: Found,
        wanted: _Wanted,
        by: tuple[LeasedKey, Mapping[Route, UUID]],
        batch: _Batch,
    ) -> list[Started]:
        """What an event begins, if it is wanted."""
        said = await opened(self._secrets, found.kept)
        if said is None:
            batch.unreadable += 1
            return []
        if not await self._takes(what, found, said, wanted):
            return []
        event = retold(found.noted, said, wanted.endpoints)
        context = accepting.as_context(event)
        view = self._evaluator.seeing({"event": context}, what.tenant_id)
        source = source_of(found.noted, event)
        asked = [each for each in wanted.to.subscriptions if is_subscribed(each, source)]
        taking = await routing.routes(Subscribed(asked, wanted.to.targets), context, view)
        key, messages = by
        told = Told(what.tenant_id, event.id, context, event.body, messages)
        return routing.started(told, taking, key)

    async def _takes(self, what: Replay, found: Found, said: Kept, wanted: _Wanted) -> bool:
        """Whether the caller wants an event, by what people are shown of it."""
        if not what.selection.filter:
            return True
        shown = await shown_of(found.noted, said, wanted.endpoints)
        context = accepting.as_context(retold(found.noted, shown, wanted.endpoints))
        view = self._evaluator.seeing({"event": context}, what.tenant_id)
        return await what.selection.takes(context, view)

    async def _kept(
        self,
        what: Replay,
        replay_id: UUID,
        progress: tuple[Progress, Progress],
        batch: _Batch,
        doer: Doer,
    ) -> Progress:
        """Begin a batch; where somebody else goes on with the same replay, how far they are."""
        before, now = progress
        async with self._database.tenant(what.tenant_id) as tx:
            moved = await store.advance(tx, what.tenant_id, replay_id, before, now)
            if moved and batch.starts:
                said = {"count": batch.events, "since": _told(what.since)}
                deed = Deed("Event", "replay", str(replay_id), replay_id, said)
                await tx.pipeline([telling(what.tenant_id, doer, deed)])
                await lanes.begin(tx, what.tenant_id, batch.starts)
        if moved:
            log.warning("%d events of replay %s are routed again", batch.events, replay_id)
            return now
        others = await self._progress(what)
        if others.after_id == before.after_id:
            raise _disabled()
        return others


def _disabled() -> FailedPrecondition:
    return FailedPrecondition("the tenant is disabled", reason="TENANT_DISABLED")


def _before(event_id: UUID) -> UUID:
    return UUID(int=event_id.int - 1)


def _told(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _written(progress: Progress) -> str:
    counts = (getattr(progress, name) for name in store.COUNTS)
    return " ".join(map(str, (progress.after_id, progress.until_id, *counts)))


def _read(said: str) -> Progress:
    after_id, until_id, *counts = said.split(" ")
    return Progress(UUID(after_id), UUID(until_id), *map(int, counts))
