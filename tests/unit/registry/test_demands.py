"""Which plans need approval: by the policies that stood before, the strictest of each field."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from services.chassis.rules import Risk
from services.registry.messages.config import SCHEMAS
from services.registry.reviews.demands import demanded, risk_of
from services.registry.wanted.objects import Complete, Declared, Key, absent_fields
from services.registry.wanted.plan import Change, Plan


def policy(name: str = "a", **spec: Any) -> Complete:
    said = {"min_risk": "HIGH"} | spec
    fields = absent_fields(SCHEMAS["ReviewPolicy"]) | {f"spec.{k}": v for k, v in said.items()}
    return Complete("ReviewPolicy", name, fields)


def change(
    kind: str = "Connector",
    risk: Risk = Risk.HIGH,
    before: Complete | None = None,
    after: Complete | None = None,
) -> Change:
    after = after or Complete(kind, "x", {})
    declared = Declared(after.kind, after.name, {})
    return Change("update" if before else "create", before, after, (), risk, declared)


def plan(*changes: Change) -> Plan:
    return Plan("acme", "cli", 1, changes, 0)


def known(*policies: Complete) -> dict[Key, Complete]:
    return {one.key: one for one in policies}


@pytest.mark.parametrize(
    ("spec", "of", "needs"),
    [
        ({}, change(), True),
        ({}, change(risk=Risk.CRITICAL), True),
        ({}, change(risk=Risk.MEDIUM), False),
        ({"kinds": ["Connector"]}, change(), True),
        ({"kinds": ["Integration"]}, change(), False),
        ({"is_active": False}, change(), False),
        # Who decides, and by which policy, is never decided alone.
        ({"kinds": ["Integration"], "min_risk": "CRITICAL"}, change("Role", Risk.LOW), True),
        ({"kinds": ["Integration"]}, change("RoleBinding", Risk.LOW), True),
        ({"kinds": ["Integration"]}, change("ReviewPolicy", Risk.LOW), True),
    ],
)
def test_a_policy_is_about_changes_of_its_risk_and_kinds(
    spec: dict[str, Any], of: Change, needs: bool
) -> None:
    assert (demanded(plan(of), known(policy(**spec))) is not None) is needs


def test_without_changes_nothing_is_needed() -> None:
    assert demanded(plan(), known(policy())) is None
    assert risk_of(plan()) is Risk.LOW


def test_the_strictest_of_each_field_counts() -> None:
    demand = demanded(
        plan(change()),
        known(
            policy("a", approvals=1, expires="60s", allow_self_approval=True),
            policy("b", approvals=3, expires="90s", allow_self_approval=False),
            policy("c", approvals=5, min_risk="CRITICAL"),
        ),
    )
    assert demand is not None
    assert demand.policies == ("a", "b")
    assert (demand.approvals, demand.expires) == (3, timedelta(seconds=60))
    assert demand.self_approval is False


def test_the_policy_that_stood_before_counts() -> None:
    strict, off = policy(approvals=2), policy(approvals=2, is_active=False)
    loosening = change(before=strict, after=off)
    demand = demanded(plan(loosening), known(off))
    assert demand is not None and demand.approvals == 2
    deleting = replace(change(before=strict, after=strict), action="delete")
    assert demanded(plan(deleting), {}) is not None
    # A new policy does not yet count for what comes with it, nor does one that is switched on.
    making = change(after=strict)
    assert demanded(plan(making, change()), known(strict)) is None
    assert demanded(plan(change(before=off, after=strict)), known(strict)) is None


def test_the_risk_of_a_plan_is_its_highest() -> None:
    assert risk_of(plan(change(risk=Risk.MEDIUM), change(risk=Risk.LOW))) is Risk.MEDIUM
    assert risk_of(plan(change("RoleBinding", Risk.LOW))) is Risk.CRITICAL
