"""Why a lane does not move: pure, from how it stands.

A lane moves where it has work and may begin some of it now, or where it has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

LATE: Final = timedelta(seconds=15)
"""Beyond this, a look that is due has not been taken, or a lane sleeps over due work."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """How a lane and what is around it stand, at `now`.

    `waiting` is not held back by order, `blocked` is; both are counted to 10,000. `due_at` is when
    the first of what waits is due; `next_at` when a worker looks, None: not before something
    happens. `rate_at` is when its rate lets the next begin. `failures` are those in a row since
    something worked or the breaker opened, `trips` how often that opened since.
    """

    lane_id: UUID
    kind: str
    provider: str
    owner: str
    owner_state: str
    pause_reason: str
    breaker: str
    open_until: datetime
    probes: int
    concurrency: int
    ordering: str
    running: int
    waiting: int
    blocked: int
    due_at: datetime | None
    next_at: datetime | None
    rate_at: datetime | None
    off_reason: str | None
    tenant_paused: bool
    tenant_running: int
    tenant_most: int | None
    provider_running: int
    provider_most: int | None
    now: datetime
    failures: int = 0
    trips: int = 0

    @property
    def is_due(self) -> bool:
        """Whether something of it could begin now, as far as its work goes."""
        return self.due_at is not None and self.due_at <= self.now

    @property
    def oldest_age(self) -> timedelta | None:
        """How long what is due has waited beyond its time; None where nothing is due."""
        return self.now - self.due_at if self.due_at is not None and self.is_due else None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why: one word for programs, a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A reason, when it holds and how it is said."""

    code: str
    holds: Callable[[LaneState], bool]
    words: Callable[[LaneState], str]


HELD: Final = (
    Rule("PAUSED", lambda s: s.pause_reason != "", lambda s: f"paused: {s.pause_reason}"),
    Rule(
        "OWNER_INACTIVE", lambda s: s.owner_state == "inactive", lambda _: "its owner is inactive"
    ),
    Rule("TENANT_PAUSED", lambda s: s.tenant_paused, lambda _: "the tenant is paused or disabled"),
    Rule(
        "PROVIDER_OFF",
        lambda s: s.off_reason is not None,
        lambda s: f"provider {s.provider} is switched off: {s.off_reason}",
    ),
    Rule(
        "BREAKER_OPEN",
        lambda s: s.breaker == "OPEN" and s.open_until > s.now,
        lambda s: f"the breaker is open until {_clock(s.open_until)}",
    ),
    Rule(
        "BREAKER_PROBING",
        lambda s: s.breaker == "HALF_OPEN" and s.running >= s.probes,
        lambda s: f"the breaker is half-open: {s.running} of {s.probes} probes run",
    ),
    Rule(
        "FULL",
        lambda s: s.running >= s.concurrency,
        lambda s: f"full: {s.running} of {s.concurrency} run",
    ),
    Rule(
        "TENANT_FULL",
        lambda s: s.tenant_most is not None and s.tenant_running >= s.tenant_most,
        lambda s: f"the tenant is at its cap: {s.tenant_running} of {s.tenant_most} run",
    ),
    Rule(
        "PROVIDER_FULL",
        lambda s: s.provider_most is not None and s.provider_running >= s.provider_most,
        lambda s: (
            f"the tenant is at its cap for {s.provider}:"
            f" {s.provider_running} of {s.provider_most} run"
        ),
    ),
    Rule(
        "RATE",
        lambda s: s.rate_at is not None and s.rate_at > s.now,
        lambda s: f"the rate is used up until {_clock(s.rate_at)}",
    ),
)
"""What holds back whatever waits; several may."""

NOT_READY: Final = (
    Rule(
        "IN_ORDER",
        lambda s: s.blocked > 0 and s.waiting == 0,
        lambda s: f"in order: {s.blocked} behind what runs",
    ),
    Rule(
        "IN_ORDER",
        lambda s: s.blocked > 0 and not s.is_due,
        lambda s: f"in order: {s.blocked} behind what is due at {_clock(s.due_at)}",
    ),
    Rule("NOT_DUE", lambda s: not s.is_due, lambda s: f"nothing is due before {_clock(s.due_at)}"),
)
"""Where nothing is due; the first that holds."""

UNATTENDED: Final = (
    Rule(
        "ASLEEP",
        lambda s: s.next_at is None or s.next_at > s.now + LATE,
        lambda s: f"asleep until {_clock(s.next_at)} over due work: the doctor will wake it",
    ),
    Rule(
        "NO_WORKER",
        lambda s: s.next_at is not None and s.next_at < s.now - LATE,
        lambda s: f"no worker has looked since {_clock(s.next_at)}: does a `work` process run?",
    ),
)
"""Where something is due and nothing holds it back; the first that holds."""


def why(state: LaneState, kinds: frozenset[str]) -> tuple[Reason, ...]:
    """Why nothing of a lane begins now; nothing where something may, or nothing is there.

    `kinds` are those that workers work on. Work whose owner is gone is held back by nothing.
    """
    if not state.waiting and not state.blocked:
        return ()
    if state.kind not in kinds:
        return (Reason("NO_KIND", f"nobody works on {state.kind}"),)
    gone = state.owner_state == "gone"
    held = () if gone else tuple(rule for rule in HELD if rule.holds(state))
    if not held:
        held = _first(UNATTENDED if state.is_due else NOT_READY, state)
    return tuple(Reason(rule.code, rule.words(state)) for rule in held)


def _first(rules: tuple[Rule, ...], state: LaneState) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if rule.holds(state))[:1]


def _clock(moment: datetime | None) -> str:
    return "something happens" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")
