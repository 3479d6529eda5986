"""Plans and applies one tenant: what came of it, never an exception for what a user can cause."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from tenon.registry.v1 import config_service_pb2

from config.client import RegistryClient, Submission
from config.problems import Mark, Problem, problem
from config.resolve import Batch
from services.chassis.errors import Aborted, TenonError, Unauthenticated, Unavailable, Violation
from services.chassis.redaction import redact

Plan = config_service_pb2.Plan
Answer = config_service_pb2.ApplyConfigResponse


class Exit(IntEnum):
    """How a command ends."""

    OK = 0
    ERROR = 1
    CHANGES = 2
    BLOCKED = 3
    OVER_BUDGET = 4
    STALE = 5


WORST_FIRST: Final = (
    Exit.ERROR,
    Exit.STALE,
    Exit.OVER_BUDGET,
    Exit.BLOCKED,
    Exit.CHANGES,
    Exit.OK,
)

EXIT_OF_REASON: Final = {
    "POLICY_BLOCKED": Exit.BLOCKED,
    "DELETION_BUDGET": Exit.OVER_BUDGET,
}
"""Refusals of the registry that have a code of their own."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one tenant: after an apply `revision`, or `pending` where it waits."""

    tenant: str
    exit: Exit
    plan: Plan | None = None
    revision: int | None = None
    pending: config_service_pb2.PendingRevision | None = None
    problems: tuple[Problem, ...] = ()


def worst(codes: Iterable[Exit]) -> Exit:
    """The code that counts for all; OK when there is none."""
    return min(codes, key=WORST_FIRST.index, default=Exit.OK)


def planned(plan: Plan) -> Outcome:
    """What a plan comes to: nothing to do, changes, or changes that need approval."""
    if plan.HasField("needs_approval"):
        return Outcome(plan.tenant, Exit.BLOCKED, plan)
    return Outcome(plan.tenant, Exit.CHANGES if plan.changes else Exit.OK, plan)


def taken(plan: Plan, answer: Answer) -> Outcome:
    """What came of a plan that the registry took: it is done, or waits for approval."""
    if answer.HasField("pending"):
        return Outcome(plan.tenant, Exit.BLOCKED, plan, pending=answer.pending)
    return Outcome(plan.tenant, Exit.OK, plan, answer.revision)


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Works for one source against one registry."""

    client: RegistryClient
    address: str
    source: str
    commit: str = ""

    def plan(self, batch: Batch) -> Outcome:
        """The difference between what is and what is wanted."""
        try:
            plan = self.client.plan(self._submission(batch))
        except TenonError as error:
            return self.failed(batch, error)
        return planned(plan)

    def apply(self, batch: Batch, show: Callable[[Plan], None], *, wait: bool) -> Outcome:
        """Plan, `show` the plan, and do exactly that."""
        outcome = self.plan(batch)
        if outcome.plan is None:
            return outcome
        show(outcome.plan)
        try:
            answer = self._apply(batch, outcome.plan)
        except TenonError as error:
            return self.failed(batch, error, outcome.plan)
        outcome = taken(outcome.plan, answer)
        return self._waited(batch, outcome, answer.revision) if wait else outcome

    def _waited(self, batch: Batch, applied: Outcome, revision: int) -> Outcome:
        if applied.pending is not None:
            # People may take days.
            return applied
        try:
            self.client.wait_projected(batch.tenant, revision)
        except TenonError as error:
            return replace(self.failed(batch, error, applied.plan), revision=revision)
        return applied

    def _apply(self, batch: Batch, plan: Plan) -> Answer:
        if not plan.changes:
            return Answer(revision=plan.base_revision)
        return self.client.apply(self._submission(batch), plan, str(uuid.uuid4()))

    def _submission(self, batch: Batch) -> Submission:
        return Submission(batch.tenant, self.source, batch.resources, self.commit)

    def failed(self, batch: Batch, error: TenonError, plan: Plan | None = None) -> Outcome:
        """What came of a call that was refused, in words for the user."""
        usual = Exit.STALE if isinstance(error, Aborted) else Exit.ERROR
        problems = problems_of(batch, error)
        if hint := _HINTS.get(type(error)):
            told = hint.format(address=self.address)
            problems = (*problems, problem(Mark(f"tenant {batch.tenant}"), told))
        code = EXIT_OF_REASON.get(error.code, usual)
        return Outcome(batch.tenant, code, plan, problems=problems)


_HINTS: Final[dict[type[TenonError], str]] = {
    Unavailable: "the registry at {address} cannot be reached: is it running (`make up`)? "
    "--registry or TENON_REGISTRY says where it is",
    Unauthenticated: "the registry at {address} does not know this key: "
    "--key-file or TENON_KEY_FILE says where the right one is",
    Aborted: "somebody changed this tenant meanwhile; nothing was applied: plan again",
}
"""What to try next."""


def problems_of(batch: Batch, error: TenonError) -> tuple[Problem, ...]:
    """The registry's words at the places in YAML they are about; else about the tenant."""
    if not error.violations:
        return (problem(Mark(f"tenant {batch.tenant}"), redact(error.message)),)
    return tuple(sorted(_placed(batch, violation) for violation in error.violations))


def _placed(batch: Batch, violation: Violation) -> Problem:
    """A violation's field is `Kind/name#path`."""
    target, _, path = violation.field.partition("#")
    for each in batch.documents:
        if f"{each.kind}/{each.name}" == target:
            field = path.rpartition(".")[2]
            sentence = f"{field}: {violation.description}" if field else violation.description
            return problem(each.mark_at(path), redact(sentence))
    where = Mark(f"tenant {batch.tenant}")
    field = violation.field.removesuffix("#")
    return problem(where, redact(f"{field}: {violation.description}"))
