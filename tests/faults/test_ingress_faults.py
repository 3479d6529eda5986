"""kill -9 of the executor while a webhook comes in: what was answered 2xx is there, and only once."""

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
)

pytestmark = pytest.mark.faults

SUCCESS = Ended("success", "")


@pytest.fixture(scope="module", autouse=True)
def _applied(family: Family) -> None:
    family.start("executor")
    family.apply_example()


@pytest.fixture(autouse=True)
def _calls(family: Family) -> None:
    forget_calls(family)


def check_is_one(family: Family, delivery: Delivery, event: str) -> None:
    """One event, one run that succeeded, each step called once."""
    assert ended(family, event) == SUCCESS
    assert events_of(family, delivery) == [event]
    assert len(executions_of(family, event)) == 1
    assert calls(family, delivery) == dict.fromkeys(STEPS, 1)


@pytest.mark.parametrize("point", thinned(points("ingress")))
def test_killed_ingress_keeps_what_it_answered_and_a_redelivery_is_one_event(
    family: Family, point: str
) -> None:
    before, during = new_delivery(), new_delivery()
    family.restart("executor", f"{point}=kill@2")
    status, first = before.send(family)
    assert status == 202
    # Ended, or the kill could fall into its first step, which may be called again.
    assert ended(family, first) == SUCCESS
    assert during.send(family) == (0, "")
    family.await_killed("executor")
    assert events_of(family, before) == [first]
    assert len(events_of(family, during)) == (1 if point == "ingress.after_commit" else 0)

    family.start("executor")
    status, second = during.send(family)
    assert status == 202
    assert before.send(family) == (202, first)
    check_is_one(family, before, first)
    check_is_one(family, during, second)


@pytest.mark.parametrize("point", thinned(points("ingress")))
def test_failed_ingress_answers_500_and_lives(family: Family, point: str) -> None:
    delivery = new_delivery()
    family.restart("executor", f"{point}=error@1")
    assert delivery.send(family) == (500, "")
    status, event = delivery.send(family)
    assert status == 202
    assert family.alive("executor")
    check_is_one(family, delivery, event)
