"""What API keys are used for, counted in memory; and how what is counted is handed on.

That goes on every few seconds, and once more at the end. A call costs the hot path a lookup in a
dictionary. What was counted since the last flush is lost when the process is killed, and what a
flush may have handed on before its answer was lost is counted twice: usage is for people to look
at, never to bill or refuse by.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar
from uuid import UUID

from services.chassis.errors import DeadlineExceeded, TenonError, Unavailable
from services.chassis.interceptors import Call
from services.chassis.process import ended

log = logging.getLogger(__name__)

BUCKET_S: Final = 300
FLUSH_S: Final = 5.0
LAST_FLUSH_S: Final = 3.0
MOST: Final = 10_000
"""Kinds of call kept apart between two flushes; beyond, address and user agent are left out."""
LONGEST: Final = 200
KEY: Final = "key "

_Where = tuple[str, str, str, str, int]
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Use:
    """Calls alike within one bucket; times are seconds since 1970."""

    key_id: str
    method: str
    address: str
    user_agent: str
    bucket: int
    count: int
    last: float


@dataclass(frozen=True, slots=True)
class Stay:
    """A principal with several memberships worked in one of its tenants from then on."""

    principal_id: UUID
    tenant_id: UUID
    since: float


@dataclass(frozen=True, slots=True)
class Counted:
    """What one flush hands on."""

    uses: tuple[Use, ...]
    stays: tuple[Stay, ...]

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.uses or self.stays)


class Counter:
    """Counts calls by key and place, and follows who comes to which tenant."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._counts: dict[_Where, int] = {}
        self._last: dict[str, float] = {}
        self._stays: dict[UUID, tuple[UUID, float]] = {}

    def observe(self, call: Call) -> None:
        """Count a call whose caller is known, if it came with a key."""
        session = call.principal.session
        if not session.startswith(KEY):
            return
        now = self._now()
        bucket = int(now) // BUCKET_S * BUCKET_S
        method = call.rule.method
        where = (session, method, call.address, call.user_agent[:LONGEST], bucket)
        self._add(where, 1)
        self._last[session] = now

    async def follow(self, call: Call) -> None:
        """A gate behind all others: note where somebody works who may in several tenants."""
        principal, tenant_id = call.principal, call.tenant_id
        if tenant_id is None or len(principal.accesses) < 2 or not principal.access(call.tenant):
            return
        stay = self._stays.get(principal.principal_id)
        if stay is not None and stay[0] == tenant_id:
            return
        if stay is not None or len(self._stays) < MOST:
            self._stays[principal.principal_id] = (tenant_id, self._now())

    def drain(self) -> list[Counted]:
        """All that was counted since the last time, in one part."""
        counts, self._counts = self._counts, {}
        last, self._last = self._last, {}
        stays, self._stays = self._stays, {}
        counted = Counted(
            tuple(
                Use(where[0].removeprefix(KEY), *where[1:], count, last.get(where[0], where[4]))
                for where, count in counts.items()
            ),
            tuple(Stay(principal, *stay) for principal, stay in stays.items()),
        )
        return [counted] if counted else []

    def put_back(self, counted: Counted) -> None:
        """Keep for the next flush what this one could not hand on."""
        for use in counted.uses:
            session = f"{KEY}{use.key_id}"
            where = (session, use.method, use.address, use.user_agent, use.bucket)
            self._add(where, use.count)
            self._last[session] = max(self._last.get(session, 0), use.last)
        for stay in counted.stays:
            self._stays.setdefault(stay.principal_id, (stay.tenant_id, stay.since))

    def _add(self, where: _Where, count: int) -> None:
        found = self._counts.get(where)
        if found is None and len(self._counts) >= MOST:
            where = (where[0], where[1], "", "", where[4])
            found = self._counts.get(where)
        self._counts[where] = (found or 0) + count


class Counting(Protocol[Part]):
    """What counts something; each part of it is handed on by itself."""

    def drain(self) -> Sequence[Part]:
        """All that was counted since the last time."""
        ...

    def put_back(self, part: Part, /) -> None:
        """Keep for the next flush what this one could not hand on."""
        ...


Keep = Callable[[Part], Awaitable[None]]


@asynccontextmanager
async def kept(
    counting: Counting[Part], keep: Keep[Part], every_s: float = FLUSH_S
) -> AsyncIterator[None]:
    """Hand on what is counted every few seconds until the block ends, and once more then."""
    task = asyncio.create_task(_flushing(counting, keep, every_s))
    try:
        yield
    finally:
        await ended(task)
        await flush(counting, keep, LAST_FLUSH_S)


async def flush(counting: Counting[Part], keep: Keep[Part], patience_s: float = FLUSH_S) -> None:
    """Hand on what is counted; it waits for the next time while nobody takes it."""
    left = deque(counting.drain())
    try:
        async with asyncio.timeout(patience_s):
            while left:
                await _hand_on(left[0], keep)
                left.popleft()
    except (Unavailable, DeadlineExceeded, TimeoutError, asyncio.CancelledError) as error:
        # The one that stopped them comes last next time.
        left.rotate(-1)
        for part in left:
            counting.put_back(part)
        if isinstance(error, asyncio.CancelledError):
            raise
        log.warning("usage waits: %s", type(error).__name__)


async def _hand_on(part: Part, keep: Keep[Part]) -> None:
    """Hand a part on; one that is refused is lost."""
    try:
        await keep(part)
    except (Unavailable, DeadlineExceeded):
        raise
    except TenonError as error:
        log.warning("usage is lost: %s", error.code)


async def _flushing(counting: Counting[Part], keep: Keep[Part], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        await flush(counting, keep)
