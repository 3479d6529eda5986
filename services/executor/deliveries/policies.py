"""How deliveries to an endpoint take their turns: its lane, from what is wanted of it."""

from collections.abc import Mapping
from typing import Any, Final

from services.executor.engine.work import Breaker, LanePolicy, Ordering

KIND: Final = "delivery"
BREAKER: Final = Breaker(threshold=10, reset_s=60)
"""An endpoint that has failed ten times running is asked once a minute, by one delivery; those that
wait meanwhile lose no try."""
A_MINUTE_S: Final = 60
_ORDERINGS: Final[Mapping[str, Ordering]] = {"none": "none", "endpoint": "lane", "key": "key"}


def policy_of(spec: Mapping[str, Any]) -> LanePolicy:
    """The policy of an outbound endpoint's lane."""
    delivery = spec["delivery"]
    rate = delivery["rate_per_minute"]
    return LanePolicy(
        concurrency=delivery["concurrency"],
        ordering=_ORDERINGS[delivery["ordering"]],
        rate_per_s=rate / A_MINUTE_S if rate else None,
        burst=max(1, rate // A_MINUTE_S),
        retry_s=tuple(seconds(each) for each in delivery["retries"]),
        breaker=BREAKER,
    )


def seconds(duration: str) -> float:
    """A duration of a spec, such as "1.5s"."""
    return float(duration.removesuffix("s"))
