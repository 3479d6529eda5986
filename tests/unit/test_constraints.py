"""Constraints of the contract over JSON-like values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenon.registry.v1 import wanted_pb2

from services.chassis.constraints import did_you_mean, faults, filled, references
from services.chassis.rules import schema_of

CONNECTOR = schema_of(wanted_pb2.ConnectorSpec.DESCRIPTOR)
INTEGRATION = schema_of(wanted_pb2.IntegrationSpec.DESCRIPTOR)
BINDING = schema_of(wanted_pb2.RoleBindingSpec.DESCRIPTOR)
SUBJECT = {"kind": "user", "name": "ada"}
STEP = {"name": "a", "integration": "github"}


@pytest.mark.parametrize(
    ("fields", "value", "places"),
    [
        (INTEGRATION, {"provider": "github"}, []),
        (INTEGRATION, {}, ["spec.provider"]),
        (INTEGRATION, {"provider": ""}, ["spec.provider"]),
        (INTEGRATION, {"provider": "x", "environment": "prod"}, ["spec.environment"]),
        (INTEGRATION, {"provider": "x", "display_name": "ä" * 255}, []),
        (INTEGRATION, {"provider": "x", "display_name": "ä" * 256}, ["spec.display_name"]),
        (CONNECTOR, {"steps": []}, ["spec.steps"]),
        (CONNECTOR, {"steps": [STEP] * 50}, []),
        (CONNECTOR, {"steps": [STEP] * 51}, ["spec.steps"]),
        (CONNECTOR, {"steps": [STEP, {}]}, ["spec.steps[1].name", "spec.steps[1].integration"]),
        (CONNECTOR, {"steps": [STEP | {"name": "A"}]}, ["spec.steps[0].name"]),
        (CONNECTOR, {"steps": [STEP | {"method": "get"}]}, ["spec.steps[0].method"]),
        (
            CONNECTOR,
            {"steps": [STEP | {"headers": {str(n): "" for n in range(51)}}]},
            ["spec.steps[0].headers"],
        ),
    ],
)
def test_every_broken_constraint_has_its_place(
    fields: object, value: dict[str, object], places: list[str]
) -> None:
    assert [place for place, _ in faults(fields, value, "spec")] == places  # type: ignore[arg-type]


@given(st.text(min_size=4))
def test_a_fault_never_repeats_the_value(word: str) -> None:
    value = {"provider": "x", "environment": f"canary{word}", "display_name": f"canary{word}" * 99}
    assert "canary" not in str(list(faults(INTEGRATION, value, "spec")))


def test_absent_fields_are_spelt_out_at_every_depth() -> None:
    spec = filled(CONNECTOR, {"steps": [STEP | {"retry": {"max_attempts": 5}}, STEP]})
    assert spec["is_active"] is True
    assert spec["steps"][0]["retry"] == {"max_attempts": 5, "base": "0.500s", "cap": "60s"}
    assert spec["steps"][1]["retry"]["max_attempts"] == 3
    assert (spec["steps"][1]["timeout"], spec["steps"][1]["body"]) == ("30s", None)
    assert filled(CONNECTOR, spec) == spec


def test_references_are_found_at_every_depth() -> None:
    value = {"steps": [STEP, STEP | {"integration": "other"}, STEP | {"integration": ""}]}
    assert list(references(CONNECTOR, value, "spec")) == [
        ("spec.steps[0].integration", "Integration", "github"),
        ("spec.steps[1].integration", "Integration", "other"),
    ]


@pytest.mark.parametrize(
    ("role", "is_fault", "refers"),
    [("ADMIN", False, []), ("support", False, ["support"]), ("SUPER_ADMIN", True, [])],
)
def test_a_value_may_be_one_of_the_choices_or_else_a_name(
    role: str, is_fault: bool, refers: list[str]
) -> None:
    value = {"role": role, "subject": SUBJECT}
    assert [path for path, _ in faults(BINDING, value, "spec")] == ["spec.role"] * is_fault
    assert [name for _, _, name in references(BINDING, value, "spec")] == refers


def test_a_near_word_is_proposed_and_a_far_one_is_not() -> None:
    assert did_you_mean("githup", ["github", "http"]) == " (did you mean github?)"
    assert did_you_mean("zzz", ["github", "http"]) == ""
