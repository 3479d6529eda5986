"""Consumers of events: each is told what comes in, in one order, alone or as a member of a group.

A group keeps how far it has acknowledged. One member at a time is told, under a lease that it
prolongs as it goes on, so that order holds; who is told no more for `LEASE_S` seconds, be it dead
or stuck, loses its turn to one that waits. The next one begins where the group has acknowledged:
what was told and not acknowledged is told again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

from services.chassis.database import Database
from services.chassis.errors import NotFound, ResourceExhausted, TenonError, invalid
from services.chassis.evaluator import Evaluator
from services.chassis.ids import check_slug
from services.executor.events import accepting, position_tokens
from services.executor.events.arrivals import Arrivals
from services.executor.events.log import Seen, known_by, rules_for
from services.executor.events.retelling import opened, retold
from services.executor.events.selecting import ALL, Selection
from services.executor.redacting import shown
from services.executor.registry.credentials import Secrets
from services.executor.store import positions as store
from services.executor.store.consumer_groups import LEASE_S, Group
from services.executor.store.positions import OLDEST, Found, Position

log = logging.getLogger(__name__)

MOST: Final = 500
"""Consumers of one process at once."""
MOST_OF_TENANT: Final = 100
"""Of them of one tenant."""
MOST_GROUPS: Final = 100
"""Of one tenant."""
KEEP_S: Final = LEASE_S / 3
"""How often a member prolongs its lease."""
TURN_S: Final = 0.5
"""How often one that waits asks for its turn."""
SIGN_S: Final = 5.0
"""After so long without an event a consumer is told how far it is."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a consumer wants to be told; `start` is a token, or None for what comes from now on.

    An empty `start` is the oldest event that is kept. Without `group` it is a member of none.
    """

    tenant_id: UUID
    selection: Selection = ALL
    group: str = ""
    start: str | None = None


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
        self._open: Counter[UUID] = Counter()
        self._incarnation: int | None = None

    async def follow(self, wish: Wish) -> AsyncGenerator[Told, None]:
        """Tell events until the process drains.

        Raises InvalidArgument, OutOfRange for a position of another server, and ResourceExhausted.
        """
        wish.selection.check()
        with self._counted(wish.tenant_id):
            start = await self._start(wish)
            told = self._member(wish, start) if wish.group else self._after(wish, start, _always)
            async with aclosing(told) as found:
                async for each in found:
                    yield each

    async def acknowledge(self, done: Acknowledgement) -> str:
        """Move a group's position forward; answers where it is then.

        Raises NotFound, InvalidArgument, OutOfRange.
        """
        group = Group(self._database, done.tenant_id, check_slug(done.group))
        position = position_tokens.parsed(done.position, await self._server(done.tenant_id))
        moved = await (group.reset if done.reset else group.acknowledge)(position)
        if moved is not None:
            return await self._token(done.tenant_id, moved)
        if await group.find() is None:
            raise NotFound(f"there is no group {done.group}")
        raise invalid("position", "is not one that was told")

    async def _start(self, wish: Wish) -> Position:
        if wish.start is None:
            return await store.newest(self._database, wish.tenant_id)
        if not wish.start:
            return OLDEST
        return position_tokens.parsed(wish.start, await self._server(wish.tenant_id))

    async def _member(self, wish: Wish, start: Position) -> AsyncGenerator[Told, None]:
        """Wait for turns, and tell what a group has not acknowledged yet."""
        group = Group(self._database, wish.tenant_id, check_slug(wish.group))
        if await group.find() is None:
            await group.make(start, MOST_GROUPS)
        turns = _Turns(group)
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
        await self._arrivals.after(tenant_id, _NEVER, TURN_S)

    async def _after(
        self, wish: Wish, at: Position, may_go_on: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[Told, None]:
        """Tell what is wanted after a position, for as long as one may."""
        tenant_id, said_at = wish.tenant_id, time.monotonic()
        while not self._arrivals.closed and await may_go_on():
            page = await store.after(self._database, tenant_id, at)
            rules = await rules_for(self._database, tenant_id, (each.noted for each in page))
            for found in page:
                told = await self._told(wish, found, rules.get(found.noted.endpoint_id, ()))
                at = found.position
                if told is not None:
                    yield told
                    said_at = time.monotonic()
                    # Whoever was slow to take it may have lost their turn.
                    if not await may_go_on():
                        return
            if time.monotonic() - said_at >= SIGN_S:
                yield Told(await self._token(tenant_id, at))
                said_at = time.monotonic()
            if not page:
                await self._arrivals.after(tenant_id, at, SIGN_S)

    async def _told(self, wish: Wish, found: Found, rules: Sequence[str]) -> Told | None:
        """What a consumer is told of an event, if it is for them."""
        if not wish.selection.is_of_types(found.noted.type):
            return None
        said = await opened(self._secrets, found.kept)
        token = await self._token(wish.tenant_id, found.position)
        noted = known_by(found.noted, rules)
        if said is None:
            # Nobody can say whether a condition is true of it.
            silent = wish.selection.filter != ""
            empty = store.emptied(found.kept)
            return None if silent else Told(token, Seen(noted, empty, b""), unreadable=True)
        if wish.selection.filter:
            context = accepting.as_context(retold(found.noted, said, {}))
            view = self._evaluator.seeing({"event": context}, wish.tenant_id)
            if not await wish.selection.takes(context, view):
                return None
        seen = await asyncio.to_thread(shown, said.body, rules) if rules else said.body
        return Told(token, Seen(noted, said, seen))

    async def _token(self, tenant_id: UUID, position: Position) -> str:
        return position_tokens.written(position, await self._server(tenant_id))

    async def _server(self, tenant_id: UUID) -> int:
        if self._incarnation is None:
            self._incarnation = await store.incarnation(self._database, tenant_id)
        return self._incarnation

    @contextmanager
    def _counted(self, tenant_id: UUID) -> Iterator[None]:
        for most, count in (
            (MOST, self._open.total()),
            (MOST_OF_TENANT, self._open[tenant_id]),
        ):
            if count >= most:
                raise ResourceExhausted(
                    f"{most} consumers are here already", reason="CONSUMERS_EXHAUSTED"
                )
        self._open[tenant_id] += 1
        try:
            yield
        finally:
            self._open[tenant_id] -= 1
            self._open += Counter()


_NEVER: Final = Position(2**64 - 1, UUID(int=2**128 - 1))


async def _always() -> bool:
    return True


class _Turns:
    """A member's turns at its group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._member = uuid4()
        self._kept_at = 0.0

    async def take(self) -> Position | None:
        """Where to begin, if it is this member's turn."""
        # Counted from before the database was asked: no lease lasts longer than we think.
        kept_at = time.monotonic()
        begin = await self._group.claim(self._member)
        if begin is None and await self._group.find() is None:
            raise ResourceExhausted(
                f"the tenant has {MOST_GROUPS} groups already", reason="GROUPS_EXHAUSTED"
            )
        self._kept_at = kept_at
        return begin

    async def hold(self) -> bool:
        """Prolong the turn where it is time to; whether it is still this member's."""
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
