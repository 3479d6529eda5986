"""kill -9 of the executor anywhere in a run: it ends well, or says that it cannot know."""

from typing import Final

import pytest

from tests.family import Family
from tests.faults.points import points, thinned
from tests.faults.runs import (
    STEPS,
    Delivery,
    Ended,
    calls,
    ended,
    events_of,
    executions_of,
    forget_calls,
    new_delivery,
    succeeded_steps,
)

pytestmark = pytest.mark.faults

SUCCESS: Final = Ended("success", "")
UNKNOWN: Final = Ended("failed", "OUTCOME_UNKNOWN")
ONCE_A_RUN: Final = {"run.after_claim", "run.before_finish", "run.after_finish"}
SAFE_STEP: Final = 1
"""The first step reads; both others do what must not be done twice."""
IN_FLIGHT: Final = {"run.after_intent", "run.after_call", "run.before_record", "run.before_finish"}
"""Where a call may have been made whose outcome is not recorded."""


def hits_of(point: str) -> tuple[int, ...]:
    """Which hit of the point belongs to which step."""
    return (1,) if point in ONCE_A_RUN else tuple(range(1, len(STEPS) + 1))


CASES: Final = [(point, hit) for point in points("run") for hit in hits_of(point)]


def step_at(point: str, hit: int) -> int:
    """The step, from 1, that was under way there; the last where the run was ending."""
    return len(STEPS) if point in {"run.before_finish", "run.after_finish"} else hit


def end_after(point: str, hit: int) -> Ended:
    """How a run must end that was killed there."""
    return UNKNOWN if point in IN_FLIGHT and step_at(point, hit) != SAFE_STEP else SUCCESS


@pytest.fixture(scope="module", autouse=True)
def _applied(family: Family) -> None:
    family.start("executor")
    family.apply_example()


@pytest.fixture(autouse=True)
def _calls(family: Family) -> None:
    forget_calls(family)


def accepted(family: Family, delivery: Delivery) -> str:
    """The event of a delivery that is taken in."""
    status, event = delivery.send(family)
    assert status == 202
    return event


@pytest.mark.parametrize(("point", "hit"), thinned(CASES, keep=4))
def test_killed_run_ends_and_repeats_no_recorded_success(
    family: Family, point: str, hit: int
) -> None:
    delivery = new_delivery()
    family.restart("executor", f"{point}=kill@{hit}")
    event = accepted(family, delivery)
    family.await_killed("executor")
    assert events_of(family, delivery) == [event]
    recorded, made = succeeded_steps(family, event), calls(family, delivery)

    family.start("executor")
    assert ended(family, event) == end_after(point, hit)
    again = calls(family, delivery)
    assert {step: again[step] for step in recorded} == {step: made[step] for step in recorded}
    assert all(again[step] <= 1 for step in STEPS[SAFE_STEP:])
    if end_after(point, hit) == SUCCESS:
        assert all(again[step] >= 1 for step in STEPS)
    assert accepted(family, delivery) == event
    assert len(executions_of(family, event)) == 1


@pytest.mark.parametrize(("point", "hit"), thinned(CASES, keep=2))
def test_failed_run_ends_and_the_executor_lives(family: Family, point: str, hit: int) -> None:
    delivery = new_delivery()
    family.restart("executor", f"{point}=error@{hit}")
    event = accepted(family, delivery)
    assert ended(family, event) == end_after(point, hit)
    assert family.alive("executor")
    assert all(made <= 1 for made in list(calls(family, delivery).values())[SAFE_STEP:])
    assert len(executions_of(family, event)) == 1
