"""Runs of the example's connector, as the tests of faults start them and look at them."""

import json
from dataclasses import dataclass
from itertools import count
from typing import Any, Final
from urllib.request import Request, urlopen
from uuid import uuid4

from tests.family import Family, until

OWNER, REPO = "acme", "shop"
ISSUES: Final = 45
ENDED_S: Final = 40.0
STEPS: Final = ("issue", "comment", "notify")
_numbers = count()


@dataclass(frozen=True)
class Delivery:
    """One webhook about an issue that no other test of the run is about."""

    number: int
    delivery_id: str

    @property
    def body(self) -> bytes:
        """An `issues.opened`."""
        return json.dumps(
            {
                "action": "opened",
                "issue": {"number": self.number, "title": "A title", "locked": False},
                "repository": {"name": REPO, "owner": {"login": OWNER}},
                "sender": {"login": "octocat"},
            }
        ).encode()

    def send(self, family: Family) -> tuple[int, str]:
        """Send it, signed; the answer's status (0: none came) and event."""
        status, answer = family.webhook(self.body, delivery_id=self.delivery_id)
        return status, str(answer.get("event", ""))


@dataclass(frozen=True)
class Ended:
    """How an execution ended."""

    state: str
    reason: str


def new_delivery() -> Delivery:
    """A delivery nobody has sent."""
    return Delivery(next(_numbers) % ISSUES + 1, str(uuid4()))


def executions_of(family: Family, event: str) -> list[Any]:
    """The ids of what an event started."""
    return [one for (one,) in family.rows(EXECUTIONS_OF, event)]


def ended(family: Family, event: str) -> Ended:
    """Wait until the one execution of an event has ended."""
    state, reason = until(lambda: family.rows(ENDED, event), ENDED_S, "the execution's end")[0]
    return Ended(state, reason)


def succeeded_steps(family: Family, event: str) -> set[str]:
    """The steps of an event's execution with a recorded success."""
    return {step for (step,) in family.rows(SUCCEEDED, event)}


def events_of(family: Family, delivery: Delivery) -> list[str]:
    """The stored events of a delivery."""
    return [str(one) for (one,) in family.rows(EVENTS_OF, delivery.delivery_id)]


def forget_calls(family: Family) -> None:
    """Empty the sandbox's log of calls."""
    urlopen(Request(f"{family.sandbox}/__calls", method="DELETE")).close()


def calls(family: Family, delivery: Delivery) -> dict[str, int]:
    """How often each step about the delivery's issue was called, by the sandbox's log."""
    with urlopen(f"{family.sandbox}/__calls") as answer:
        log = json.load(answer)
    issue = f"/repos/{OWNER}/{REPO}/issues/{delivery.number}"
    title = f"Issue {delivery.number} of {OWNER}/{REPO}"
    made = {
        "issue": [one for one in log if (one["method"], one["path"]) == ("GET", issue)],
        "comment": [one for one in log if one["path"] == f"{issue}/comments"],
        "notify": [one for one in log if one["path"] == "/echo" and f'"{title}"' in one["body"]],
    }
    return {step: len(found) for step, found in made.items()}


EXECUTIONS_OF: Final = "SELECT id FROM executor.executions WHERE trigger_id = %s::uuid"
ENDED: Final = (
    "SELECT state, failure_reason FROM executor.executions "
    "WHERE trigger_id = %s::uuid AND ended_at IS NOT NULL"
)
SUCCEEDED: Final = (
    "SELECT s.step FROM executor.execution_steps s "
    "JOIN executor.executions e ON (e.tenant_id, e.id) = (s.tenant_id, s.execution_id) "
    "WHERE e.trigger_id = %s::uuid AND s.state = 'success'"
)
EVENTS_OF: Final = "SELECT id FROM executor.events WHERE delivery_key = %s"
