"""What a worker has done, by kind of work."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from services.executor.engine.work import Claimed, Outcome

KEPT_LAGS: Final = 1024


@dataclass(slots=True)
class KindMeter:
    """Counts since the start; `lags` are how late the last items were begun, in seconds."""

    claims: int = 0
    running: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    lags: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LAGS))

    def claimed(self, claimed: Claimed) -> None:
        """An item begins."""
        self.claims += 1
        self.running += 1
        self.lags.append(max(0.0, claimed.lag_s))

    def ended(self) -> None:
        """An item has ended, however."""
        self.running -= 1

    def recorded(self, outcome: Outcome) -> None:
        """An outcome was kept: done, later or failed."""
        self.outcomes[type(outcome).__name__.lower()] += 1

    def lag_s(self, share: float) -> float:
        """The lag that this share of the last items had at most; 0 where there were none."""
        ordered = sorted(self.lags)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
