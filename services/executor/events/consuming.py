"""Consumers of events: each is told what comes in, in one order, alone or as a member of a group.

A group keeps how far it has acknowledged. One member at a time is told, under a lease that it
prolongs as it goes on, so that order holds; who is told no more for `LEASE_S` seconds, be it dead
or stuck, loses its turn to one that waits. The next one begins where the group has acknowledged:
what was told and not acknowledged is told again. Who is told something else than the group is at,
since it was reset meanwhile, can acknowledge nothing of it.

A caller's condition sees no more of an event than the caller is shown.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID, uuid4

from services.chassis.database import Database
from services.chassis.errors import (
    FailedPrecondition,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    TenonError,
    invalid,
)
from services.chassis.evaluator import Evaluator
from services.chassis.ids import check_slug
from services.executor.audit.outbox import Deed, Doer, telling
from services.executor.deliveries import trials
from services.executor.events import accepting, position_tokens
from services.executor.events.arrivals import Arrivals
from services.executor.events.log import Seen, endpoints_for
from services.executor.events.places import Places
from services.executor.events.retelling import known_by, opened, retold, shown_of
from services.executor.events.selecting import ALL, Selection
from services.executor.registry.credentials import Secrets
from services.executor.store import positions as store
from services.executor.store.consumer_groups import LEASE_S, Group, Reached
from services.executor.store.event_pages import Noted
from services.executor.store.events import Kept
from services.executor.store.positions import OLDEST, Found, Position
from services.executor.store.projected import ProjectedObject

log = logging.getLogger(__name__)

MOST: Final = 500
"""Consumers of one process at once."""
MOST_OF_TENANT: Final = 100
"""Of them of one tenant."""
MOST_GROUPS: Final = 100
"""Of one tenant."""
KEEP_S: Final = LEASE_S / 3
"""How often a member prolongs its lease."""
TURN_S: Final = 2.0
"""How often one that waits asks for its turn, on average."""
SPREAD: Final = 0.5
"""Of that, so much more or less each time: those who began to wait together do not ask together."""
SIGN_S: Final = 5.0
"""After so long without an event a consumer is told how far it is."""
CONSUME: Final = "events.consume"
"""The permission that a member of a group needs, for as long as it is one."""


def _anybody() -> None:
    """Whoever may read may read alone."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a consumer wants to be told; `start` is a token, or None for what comes from now on.

    An empty `start` is the oldest event that is kept. Without `group` it is a member of none; with
    one, `check_member` raises PermissionDenied once the caller may be a member no longer.
    """

    tenant_id: UUID
    selection: Selection = ALL
    group: str = ""
    start: str | None = None
    check_member: Callable[[], None] = _anybody


@dataclass(frozen=True, slots=True)
class Told:
    """A position, with the event that is there; without one nothing was for this consumer.

    `unreadable`: the event is there, and what it says does not open any more.
    """

    position: str
    event: Seen | None = field(default=None, repr=False)
    unreadable: bool = False


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a group is done with: all up to a position; `reset` goes back as well."""

    tenant_id: UUID
    group: str
    position: str
    reset: bool = False


class Consumers:
    """The use cases, for the consumers of one process."""

    def __init__(
        self, database: Database, secrets: Secrets, evaluator: Evaluator, arrivals: Arrivals
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._evaluator = evaluator
        self._arrivals = arrivals
        self._places = Places("consumers", "CONSUMERS_EXHAUSTED")
        self._incarnation: int | None = None

    async def follow(self, wish: Wish) -> AsyncGenerator[Told, None]:
        """Tell events until the process drains.

        Raises InvalidArgument, PermissionDenied, ResourceExhausted, and OutOfRange for a position
        of another server, or one that this one has not come to.
        """
        wish.selection.check()
        with self._places.taken(wish.tenant_id, MOST, MOST_OF_TENANT):
            start = Reached(await self._start(wish))
            told = self._member(wish, start) if wish.group else self._after(wish, start, _always)
            async with aclosing(told) as found:
                async for each in found:
                    yield each

    async def acknowledge(self, done: Acknowledgement, doer: Doer) -> str:
        """Move a group's position forward; answers where it is then.

        Raises NotFound, InvalidArgument, OutOfRange, and FailedPrecondition where the group was
        reset after the position was told.
        """
        group = Group(self._database, done.tenant_id, check_slug(done.group))
        told = position_tokens.parsed(done.position, await self._server(done.tenant_id))
        if done.reset:
            deed = Deed("ConsumerGroup", "reset", done.group, said={"position": done.position})
            moved = await group.reset(told.position, telling(done.tenant_id, doer, deed))
        else:
            moved = await group.acknowledge(told)
        if moved is not None:
            return await self._token(done.tenant_id, moved)
        found = await group.find()
        if found is None:
            raise NotFound(f"there is no group {done.group}")
        if not done.reset and found.generation != told.generation:
            raise FailedPrecondition(
                f"the group {done.group} was reset after this was told; it is told anew",
                reason="GROUP_WAS_RESET",
            )
        raise invalid("position", "is not one that was told")

    async def _start(self, wish: Wish) -> Position:
        if wish.start is None:
            return await store.newest(self._database, wish.tenant_id)
        if not wish.start:
            return OLDEST
        told = position_tokens.parsed(wish.start, await self._server(wish.tenant_id))
        # Nothing is told from the horizon on. A server that was restored to an earlier moment has
        # forgotten what it told, and would tell nothing until it has come so far again.
        if told.position > await store.newest(self._database, wish.tenant_id):
            raise OutOfRange(
                "the position is ahead of the database server, which was restored to an earlier "
                "moment; begin with the oldest",
                reason="POSITION_AHEAD",
            )
        return told.position

    async def _member(self, wish: Wish, start: Reached) -> AsyncGenerator[Told, None]:
        """Wait for turns, and tell what a group has not acknowledged yet."""
        wish.check_member()
        group = Group(self._database, wish.tenant_id, check_slug(wish.group))
        turns = _Turns(group, start.position, wish.check_member)
        try:
            while not self._arrivals.closed:
                begin = await turns.take()
                if begin is None:
                    await self._rest(wish.tenant_id)
                    continue
                async with aclosing(self._after(wish, begin, turns.hold)) as found:
                    async for each in found:
                        yield each
        finally:
            # A caller who has gone cancels the stream, not this.
            await asyncio.shield(asyncio.create_task(turns.give_back()))

    async def _rest(self, tenant_id: UUID) -> None:
        """Wait a while for a turn, or for the end."""
        longest_s = TURN_S * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311 - no secret
        await self._arrivals.after(tenant_id, _NEVER, longest_s)

    async def _after(
        self, wish: Wish, begin: Reached, may_go_on: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[Told, None]:
        """Tell what is wanted after a position, for as long as one may."""
        tenant_id, at, said_at = wish.tenant_id, begin, time.monotonic()
        while not self._arrivals.closed and await may_go_on():
            page = await store.after(self._database, tenant_id, at.position)
            events = (each.noted for each in page)
            endpoints = await endpoints_for(self._database, tenant_id, events)
            for found in page:
                at = replace(begin, position=found.position)
                told = await self._told(wish, found, endpoints)
                # Whoever was slow, to take the one before or to look at this, may have lost their
                # turn.
                if not await may_go_on():
                    return
                if told is not None:
                    yield Told(await self._token(tenant_id, at), *told)
                    said_at = time.monotonic()
            if time.monotonic() - said_at >= SIGN_S:
                if not await may_go_on():
                    return
                yield Told(await self._token(tenant_id, at))
                said_at = time.monotonic()
            if not page:
                await self._arrivals.after(tenant_id, at.position, SIGN_S)

    async def _told(
        self, wish: Wish, found: Found, endpoints: Mapping[UUID, ProjectedObject]
    ) -> tuple[Seen, bool] | None:
        """What a consumer is told of an event, if it is for them, and whether it is unreadable."""
        if not _is_of_types(wish.selection, found.noted.type):
            return None
        said = await opened(self._secrets, found.kept)
        noted = known_by(found.noted, endpoints)
        if said is None:
            # Nobody can say whether a condition is true of it.
            silent = wish.selection.filter != ""
            return None if silent else (Seen(noted, store.emptied(found.kept), b""), True)
        shown = await shown_of(found.noted, said, endpoints)
        if not await self._takes(wish, found.noted, shown):
            return None
        return Seen(noted, said, shown.body), False

    async def _takes(self, wish: Wish, noted: Noted, shown: Kept) -> bool:
        """Whether a condition is true of an event, by what the caller is shown of it."""
        if not wish.selection.filter:
            return True
        context = accepting.as_context(retold(noted, shown, {}))
        view = self._evaluator.seeing({"event": context}, wish.tenant_id)
        return await wish.selection.takes(context, view)

    async def _token(self, tenant_id: UUID, at: Reached) -> str:
        return position_tokens.written(at, await self._server(tenant_id))

    async def _server(self, tenant_id: UUID) -> int:
        if self._incarnation is None:
            self._incarnation = await store.incarnation(self._database, tenant_id)
        return self._incarnation


_NEVER: Final = Position(2**64 - 1, UUID(int=2**128 - 1))


async def _always() -> bool:
    return True


def _is_of_types(selection: Selection, event_type: str) -> bool:
    """Whether a consumer wants events of a type; a test of an endpoint must be asked for."""
    asked = event_type != trials.TYPE or bool(selection.types)
    return asked and selection.is_of_types(event_type)


class _Turns:
    """A member's turns at its group, which begins at `start` where it has yet to be made."""

    def __init__(self, group: Group, start: Position, check: Callable[[], None]) -> None:
        self._group = group
        self._start = start
        self._check = check
        self._member = uuid4()
        self._kept_at = 0.0

    async def take(self) -> Reached | None:
        """Where to begin, if it is this member's turn."""
        self._check()
        begin = await self._claimed()
        if begin is None and await self._group.find() is None:
            await self._group.make(self._start, MOST_GROUPS)
            begin = await self._claimed()
            if begin is None and await self._group.find() is None:
                raise ResourceExhausted(
                    f"the tenant has {MOST_GROUPS} groups already", reason="GROUPS_EXHAUSTED"
                )
        return begin

    async def _claimed(self) -> Reached | None:
        # Counted from before the database was asked: no lease lasts longer than we think.
        self._kept_at = time.monotonic()
        return await self._group.claim(self._member)

    async def hold(self) -> bool:
        """Prolong the turn where it is time to; whether it is still this member's."""
        self._check()
        now = time.monotonic()
        if now - self._kept_at < KEEP_S:
            return True
        self._kept_at = now
        return await self._group.keep(self._member)

    async def give_back(self) -> None:
        """Let another member go on at once; without this the lease has to end."""
        try:
            await self._group.release(self._member)
        except TenonError as error:
            log.warning("a group's lease is left to end by itself: %s", error.message)
