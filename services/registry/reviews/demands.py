"""Which plans wait for the approval of others: pure, by the policies that stood before the change.

Of several policies that match, the strictest of each field counts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.chassis.rules import Risk
from services.registry.wanted.checks import seconds
from services.registry.wanted.objects import Complete, Key
from services.registry.wanted.plan import Change, Plan

POLICY: Final = "ReviewPolicy"
# What decides who may approve: under a policy for other kinds, somebody alone could give the
# right to a friend, or take the policy away.
GUARDS: Final = frozenset({POLICY, "Role", "RoleBinding"})


@dataclass(frozen=True, slots=True)
class Demand:
    """What a plan needs before it takes effect, and by which policies."""

    policies: tuple[str, ...]
    approvals: int
    expires: timedelta
    self_approval: bool


def demanded(plan: Plan, known: Mapping[Key, Complete]) -> Demand | None:
    """What a plan needs; None where it may take effect at once.

    `known` has every object as the plan would leave it.
    """
    found = [policy for policy in _standing(plan, known) if _falls_under(plan, policy)]
    if not found:
        return None
    specs = [policy.spec() for policy in found]
    return Demand(
        tuple(sorted(policy.name for policy in found)),
        max(spec["approvals"] for spec in specs),
        timedelta(seconds=min(seconds(spec["expires"]) for spec in specs)),
        all(spec["allow_self_approval"] for spec in specs),
    )


def guarding(policies: Iterable[Complete], kind: str, risk: Risk) -> list[str]:
    """The names of the active policies that a change of a kind and a risk falls under."""
    return sorted(
        one.name for one in policies if one.spec()["is_active"] and _is_about(one, kind, risk)
    )


def risk_of(plan: Plan) -> Risk:
    """The highest risk of a plan's changes."""
    return max(map(_risk, plan.changes), default=Risk.LOW)


def _standing(plan: Plan, known: Mapping[Key, Complete]) -> Iterator[Complete]:
    """The active policies as they were before the plan."""
    before = {key: one for key, one in known.items() if one.kind == POLICY}
    before |= {change.after.key: change.before for change in plan.changes if change.before}
    made = {change.after.key for change in plan.changes if change.before is None}
    for key, one in before.items():
        if one.kind == POLICY and key not in made and one.spec()["is_active"]:
            yield one


def _falls_under(plan: Plan, policy: Complete) -> bool:
    return any(_is_about(policy, change.after.kind, _risk(change)) for change in plan.changes)


def _is_about(policy: Complete, kind: str, risk: Risk) -> bool:
    spec = policy.spec()
    kinds = {*spec["kinds"]}
    return risk >= Risk[spec["min_risk"]] and (not kinds or kind in kinds | GUARDS)


def _risk(change: Change) -> Risk:
    return Risk.CRITICAL if change.after.kind in GUARDS else change.risk
