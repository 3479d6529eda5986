"""The pure difference, as laws over generated documents."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chassis import constraints
from services.registry.messages.config import SCHEMAS, from_complete, to_declared
from services.registry.store import revisions
from services.registry.wanted.objects import (
    ORDER,
    Complete,
    Declared,
    Key,
    absent_fields,
    spec_of,
    top_field,
)
from services.registry.wanted.plan import Ownership, Plan, differences, make_plan, merge

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
NAMES = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(-(2**53), 2**53).map(float) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
FIELDS: Mapping[str, Mapping[str, st.SearchStrategy[Any]]] = {
    "Integration": {
        "spec.display_name": WORDS,
        "spec.environment": st.sampled_from(["production", "sandbox"]),
        "spec.is_primary": st.booleans(),
        "spec.is_active": st.booleans(),
        "spec.config": st.dictionaries(WORDS, JSON, max_size=3),
        "metadata.labels": st.dictionaries(WORDS, WORDS, min_size=1, max_size=2),
    },
    "Subscription": {
        "spec.event_types": st.lists(WORDS, min_size=1, max_size=3),
        "spec.filter": WORDS.filter(bool),
        "spec.is_active": st.booleans(),
    },
    "Connector": {
        "spec.description": WORDS,
        "spec.steps": st.lists(
            st.fixed_dictionaries(
                {"name": NAMES},
                optional={
                    "body": JSON,
                    "headers": st.dictionaries(WORDS, WORDS, max_size=2),
                    "timeout": st.sampled_from(["1s", "30s", "0.250s"]),
                    "retry": st.fixed_dictionaries({}, optional={"max_attempts": st.just(5)}),
                },
            ),
            max_size=3,
        ),
    },
}


def filled(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """With nested defaults spelt out, as a draft does."""
    said = spec_of(fields)
    rules = [rule for rule in SCHEMAS[kind] if rule.name in said]
    spec = constraints.filled(rules, said)
    return {**fields, **{f"spec.{name}": value for name, value in spec.items()}}


@st.composite
def documents(draw: st.DrawFn, kind: str | None = None, name: str | None = None) -> Declared:
    kind = kind or draw(st.sampled_from(sorted(FIELDS)))
    fields = draw(st.fixed_dictionaries({}, optional=dict(FIELDS[kind])))
    return Declared(kind, name or draw(NAMES), filled(kind, fields))


SETS = st.lists(documents(), max_size=5, unique_by=lambda one: one.key)


class World:
    """What a registry would hold: objects through JSON, ownership by its own statements."""

    def __init__(self) -> None:
        self.objects: dict[Key, Complete] = {}
        self.owners: dict[Key, dict[str, frozenset[str]]] = {}

    def plan(self, source: str, declared: list[Declared]) -> Plan:
        owners: Ownership = self.owners
        return make_plan("acme", source, 1, declared, self.objects, owners, SCHEMAS)

    def apply(self, source: str, declared: list[Declared]) -> Plan:
        plan = self.plan(source, declared)
        for change in plan.changes:
            kept = json.loads(json.dumps(change.after.fields))
            self.objects[change.after.key] = replace(
                change.after, fields=kept, object_id=UUID(int=1)
            )
        for one in declared:
            owners = self.owners.setdefault(one.key, {})
            for bound in list(
                revisions.owning(UUID(int=0), one.key, dict(owners), source, frozenset(one.fields))
            ):
                if bound.statement is revisions.DISOWN:
                    del owners[bound.parameters["source"]]
                else:
                    owners[bound.parameters["source"]] = frozenset(bound.parameters["fields"])
        return plan


# How long drawing takes says how busy the machine is.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(SETS, SETS)
def test_what_was_applied_is_planned_no_more(before: list[Declared], after: list[Declared]) -> None:
    world = World()
    world.apply("cli", before)
    world.apply("cli", after)
    plan = world.plan("cli", after)
    assert (plan.changes, plan.unchanged) == ((), len(after))


@given(SETS)
def test_what_a_snapshot_says_can_be_applied_and_changes_nothing(wanted: list[Declared]) -> None:
    world = World()
    world.apply("cli", wanted)
    told = [to_declared(from_complete(one)) for one in world.objects.values()]
    again = [replace(one, fields=filled(one.kind, dict(one.fields))) for one in told]
    assert world.plan("cli", again).changes == ()


@given(documents("Integration", "x"), documents("Integration", "x"))
def test_a_field_said_and_then_left_out_is_its_default_again(
    first: Declared, second: Declared
) -> None:
    world = World()
    world.apply("cli", [first])
    world.apply("cli", [second])
    fields = world.objects[first.key].fields
    for path, value in absent_fields(SCHEMAS["Integration"]).items():
        assert fields[path] == second.fields.get(path, value)


@given(documents("Integration", "x"), documents("Integration", "x"), documents("Integration", "x"))
def test_a_source_touches_only_what_it_says_or_said(
    git: Declared, desk: Declared, later: Declared
) -> None:
    world = World()
    world.apply("git", [git])
    before = dict(world.objects[git.key].fields)
    world.apply("desk", [desk])
    world.apply("desk", [later])
    after = world.objects[git.key].fields
    for path in after.keys() - desk.fields.keys() - later.fields.keys():
        assert after[path] == before[path]


@given(documents("Integration", "x"), documents("Integration", "x"))
def test_a_plan_names_the_source_a_field_is_taken_from(git: Declared, desk: Declared) -> None:
    world = World()
    world.apply("git", [git])
    for change in world.plan("desk", [desk]).changes:
        for field in change.fields:
            assert field.owner == ("git" if top_field(field.path) in git.fields else "")


@given(SETS, st.sampled_from(["git", "desk"]))
def test_every_field_has_one_owner_at_most(wanted: list[Declared], other: str) -> None:
    world = World()
    world.apply("git", wanted)
    world.apply(other, wanted[::2])
    for owners in world.owners.values():
        fields = [field for owned in owners.values() for field in owned]
        assert len(fields) == len(set(fields))
        assert all(owners.values())


@given(SETS)
def test_the_order_of_documents_does_not_count(wanted: list[Declared]) -> None:
    world = World()
    plan, turned = world.plan("cli", wanted), world.plan("cli", wanted[::-1])
    assert plan.digest() == turned.digest()
    kinds = [ORDER.index(change.after.kind) for change in plan.changes]
    assert kinds == sorted(kinds)


@given(SETS, SETS)
def test_plans_that_differ_have_different_hashes(one: list[Declared], two: list[Declared]) -> None:
    world = World()
    first, second = world.plan("cli", one), world.plan("cli", two)

    def words(plan: Plan) -> list[Any]:
        return [(c.action, c.after.key, c.fields) for c in plan.changes]

    if words(first) != words(second):
        assert first.digest() != second.digest()
    if first.changes:
        assert first.digest() != replace(first, source="git").digest()
    assert first.digest() != replace(first, base_revision=2).digest()
    assert first.digest() != replace(first, tenant="globex").digest()


@given(JSON)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert list(differences(value, json.loads(json.dumps(value)), "x")) == []


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ({"a": 1}, {"a": 2}, ["x.a"]),
        ({"a": 1}, {"b": 1}, ["x.a", "x.b"]),
        ([1, {"b": 2}], [1, {"b": 3}], ["x[1].b"]),
        ([1], [1, 2], ["x"]),
        (True, 1, ["x"]),
        (False, 0.0, ["x"]),
        ({"a": [True]}, {"a": [1]}, ["x.a[0]"]),
        (1e23, 10**23, []),
        (1, 1.0, []),
        (None, "", ["x"]),
        ({"a": {}}, {"a": None}, ["x.a"]),
    ],
)
def test_differences_lie_as_deep_as_they_go(before: Any, after: Any, paths: list[str]) -> None:
    assert [change.path for change in differences(before, after, "x")] == paths


def test_merge_says_each_field_of_the_kind_and_no_other() -> None:
    merged = merge({"spec.config": {"a": 1}}, None, frozenset(), SCHEMAS["Integration"])
    assert merged.keys() == absent_fields(SCHEMAS["Integration"]).keys()
    assert merged["spec.config"] == {"a": 1} and merged["spec.is_active"] is True
