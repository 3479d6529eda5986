"""What was tried and not done: told in a transaction of its own, after the other is rolled back.

Only callers who were let in are told of, and the same refusal of the same caller once a minute: the
next event says how often it was repeated meanwhile. A storm of refusals costs no storm of writes.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    TenonError,
    Unavailable,
)
from services.chassis.rules import Risk
from services.registry.audit.log import Actor, Event, Log, Outcome
from services.registry.wanted.plan import NOTHING, FieldChange

log = logging.getLogger(__name__)

QUIET_S: Final = 60.0
MOST_REMEMBERED: Final = 10_000
FAILURES: Final = (Internal, Unavailable, DeadlineExceeded)
KIND: Final = "Config"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What somebody tries to do to a tenant, which may not be there yet (None)."""

    tenant_id: UUID | None
    actor: Actor
    action: str
    source: str
    commit: str


@dataclass(slots=True)
class _Heard:
    """When a refusal was told last, and how often it came untold since."""

    told_at: float = -inf
    repeats: int = 0


class Refusals:
    """Tells of refusals and failures."""

    def __init__(
        self, database: Database, events: Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._log = events
        self._clock = clock
        self._heard: OrderedDict[tuple[object, ...], _Heard] = OrderedDict()

    @asynccontextmanager
    async def telling(self, attempt: Attempt) -> AsyncIterator[None]:
        """Tell of what the block raises, and let it go on."""
        try:
            yield
        except Exception as error:
            await self._tell(attempt, error)
            raise

    async def _tell(self, attempt: Attempt, error: Exception) -> None:
        code = error.code if isinstance(error, TenonError) else type(error).__name__
        heard = self._heard_of(
            (attempt.tenant_id, attempt.actor.principal_id, attempt.action, code)
        )
        before, told_at, now = heard.repeats, heard.told_at, self._clock()
        heard.repeats += 1
        if now - told_at < QUIET_S:
            return
        # At once, so that those who come meanwhile do not tell it, too.
        heard.told_at, written = now, False
        try:
            await self._write(attempt, _event(attempt, error, code, before))
            heard.repeats -= before + 1
            written = True
        except TenonError as fault:
            # The caller shall hear what happened to the call, not to its record.
            log.warning("a refusal is not in the audit log: %s", fault.message)
        finally:
            if not written:
                heard.told_at = told_at

    def _heard_of(self, key: tuple[object, ...]) -> _Heard:
        heard = self._heard.setdefault(key, _Heard())
        self._heard.move_to_end(key)
        while len(self._heard) > MOST_REMEMBERED:
            self._heard.popitem(last=False)
        return heard

    async def _write(self, attempt: Attempt, event: Event) -> None:
        if attempt.tenant_id is None:
            async with self._database.system() as transaction:
                await self._log.append_platform(transaction, attempt.actor, [event])
            return
        async with self._database.tenant(attempt.tenant_id) as transaction:
            await self._log.append(transaction, attempt.tenant_id, attempt.actor, [event])


def _event(attempt: Attempt, error: Exception, code: str, repeats: int) -> Event:
    failed = not isinstance(error, TenonError) or isinstance(error, FAILURES)
    outcome: Outcome = "failed" if failed else "refused"
    faults = len(error.violations) if isinstance(error, InvalidArgument) else 0
    return Event(
        action=attempt.action,
        kind=KIND,
        object=attempt.source,
        object_id=attempt.tenant_id or UUID(int=0),
        risk=Risk.LOW,
        fields=[FieldChange("faults", NOTHING, faults)] if faults else (),
        outcome=outcome,
        source=attempt.source,
        commit=attempt.commit,
        error=code,
        repeats=repeats,
    )
