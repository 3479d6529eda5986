"""Work, in the words of the engine: what is enqueued, what is claimed, what it comes to.

Pure: `lanes` moves work through the database, `worker` runs it, `recorder` keeps what it came to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeVar
from uuid import UUID

from services.chassis.database import Bound
from services.chassis.errors import Aborted

Ordering = Literal["none", "lane", "key"]
Why = Literal["CANCELLED", "DEADLINE_EXCEEDED", "EXHAUSTED"]
Rows = list[Any]

LEASE_S: Final = 30.0
RETRY_S: Final = (5.0, 15.0, 60.0, 300.0, 300.0, 300.0)
"""What work waits, in seconds, after each failure that nobody foresaw."""


class ClaimLost(Aborted):
    """Another worker has this work by now."""

    reason = "CLAIM_LOST"

    def __init__(self, message: str = "another worker has this work") -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a lane stops trying: after `threshold` failures in a row it is OPEN for `reset_s`.

    Then it is HALF_OPEN: at most `probes` run at once, one success closes it, one failure opens it
    again. After `trips_allowed` openings without a success between them the lane is paused.
    """

    threshold: int
    reset_s: float
    probes: int = 1
    trips_allowed: int | None = None


@dataclass(frozen=True, slots=True)
class LanePolicy:
    """How a lane runs.

    At most `concurrency` of it at once; at most `rate_per_s` begun a second, `burst` at once; in
    turns of `weight` items. `ordering`: "lane" runs one after the other, "key" one after the other
    of each key; what waits for its next try holds back what comes after it. `retry_s` is how long
    work waits after each failure; one more and it is given up.
    """

    concurrency: int = 16
    provider: str = ""
    weight: int = 1
    ordering: Ordering = "none"
    rate_per_s: float | None = None
    burst: int = 1
    retry_s: tuple[float, ...] = RETRY_S
    breaker: Breaker | None = None


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Something to do: what `kind` of work, in which lane, on which row.

    Of a lane, lower `priority` goes first, then what has been due longer. It is due in `delay_s`
    seconds and given up after `deadline_s`. `policy` counts where the lane is new.
    """

    kind: str
    lane_id: UUID
    target_id: UUID
    delay_s: float = 0
    deadline_s: float | None = None
    priority: int = 0
    key: str = ""
    policy: LanePolicy = LanePolicy()


@dataclass(frozen=True, slots=True)
class Started:
    """Work, and the statements that make what it is about; both are there, or neither."""

    item: WorkItem
    first: Sequence[Bound] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Claimed:
    """Work that is ours until the lease runs out; each claim is another one.

    `attempt` counts the claims, from 1; `failures` those that failed. It waited `lag_s` seconds
    beyond its time, and must end within `left_s`.
    """

    tenant_id: UUID
    work_id: UUID
    kind: str
    lane_id: UUID
    target_id: UUID
    attempt: int
    claim_id: UUID
    key: str | None = None
    failures: int = 0
    cancelled: bool = False
    left_s: float | None = None
    lag_s: float = 0.0
    retry_s: tuple[float, ...] = RETRY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call came to, with the statements that stand or fall with it.

    `worked` is what the lane's breaker counts; None where it says nothing about who was called.
    `told` gets the rows of the statements once they are committed.
    """

    record: Sequence[Bound] = field(default=(), repr=False)
    worked: bool | None = None
    told: Callable[[list[Rows]], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Outcome):
    """It is final: the work goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Later(Outcome):
    """It is due again in `delay_s` seconds, which counts as no failure."""

    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Outcome):
    """It is tried again when the lane's schedule says so, but not before `least_s` seconds.

    Where the schedule is at its end it is given up.
    """

    least_s: float = 0.0


class Notes(Protocol):
    """Keeps what a call must not lose before it ends."""

    async def note(
        self, claimed: Claimed, record: Sequence[Bound], *, durable: bool = True
    ) -> list[Rows]:
        """Commit statements under the claim, which is prolonged; raises ClaimLost."""
        ...


Prepared = TypeVar("Prepared")


class Kind(Protocol[Prepared]):
    """One kind of work: prepare, call, record."""

    @property
    def name(self) -> str:
        """What `WorkItem.kind` calls it."""
        ...

    async def prepare(self, claimed: Claimed) -> Prepared:
        """What the call needs; reads only."""
        ...

    async def call(self, claimed: Claimed, prepared: Prepared) -> Outcome:
        """The effect, and what is to be recorded of it.

        What it raises is a failure; Unavailable is none, and the work waits. It is cancelled where
        its time is over, somebody cancels the work, or the worker goes.
        """
        ...

    def give_up(self, claimed: Claimed, why: Why) -> Done:
        """What is recorded of work that ends without an outcome of its own."""
        ...
