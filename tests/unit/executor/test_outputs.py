"""Outputs: where each field comes from, what it is where nothing is there, every fault at once."""

from typing import Any

import pytest

from services.chassis.evaluator import Evaluator
from services.chassis.expressions import Json
from services.executor.executions.outputs import (
    DEEPEST,
    LARGEST_OUTPUT,
    FieldMapping,
    OutputInvalid,
    mapped,
)

SEEN: dict[str, Any] = {
    "event": {"type": "issues.opened"},
    "input": {"name": " Ada ", "none": None, "zero": 0, "half": "\ud800"},
    "steps": {"read": {"output": {"id": 7}, "status": 200}},
}


def mapping(source: str, target: str = "a", **spec: Any) -> FieldMapping:
    return FieldMapping.from_spec({"source": source, "target": target, **spec})


async def made(*mappings: FieldMapping, **seen: Any) -> dict[str, Json]:
    return await mapped(mappings, {**SEEN, **seen}, Evaluator())


async def test_fields_come_from_all_a_run_has_seen_and_go_where_they_are_told() -> None:
    assert await made(
        mapping("event.type", "kind"),
        mapping("input.name", "contact.name"),
        mapping("steps.read.output.id + 1", "contact.number.next"),
        mapping("steps.read.output", "whole"),
    ) == {
        "kind": "issues.opened",
        "contact": {"name": " Ada ", "number": {"next": 8}},
        "whole": {"id": 7},
    }


async def test_a_transform_sees_the_value_and_a_default_stands_as_it_is() -> None:
    assert await made(
        mapping("input.zero", "a", transform="value + 1", default=9),
        mapping("input.none", "b", transform="value + 1", default=9),
        mapping("steps.gone.output.id", "c", default=["x"]),
    ) == {"a": 1, "b": 9, "c": ["x"]}


async def test_what_has_no_value_is_left_out() -> None:
    found = await made(
        mapping("input.none", "a"), mapping("input.absent", "b"), mapping("input.zero", "c")
    )
    assert found == {"c": 0}


async def test_every_fault_is_told_at_once_without_a_value() -> None:
    with pytest.raises(OutputInvalid) as told:
        await made(
            mapping("input.absent", "contact.email", required=True),
            mapping("input.zero", "fine", required=True),
            mapping("input.name + 1", "sum"),
            mapping("input.none", "none", required=True, transform="value"),
        )
    assert told.value.code == "OUTPUT_INVALID"
    faults = told.value.message.split("; ")
    assert [fault.partition(":")[0] for fault in faults if ": " in fault] == [
        "contact.email",
        "sum",
        "none",
    ]
    assert "Ada" not in told.value.message and "required" in faults[0]


@pytest.mark.parametrize(
    "value",
    ["x" * LARGEST_OUTPUT, "\ud800"],
    ids=["too long", "half a surrogate pair"],
)
async def test_what_no_answer_could_carry_is_refused(value: str) -> None:
    with pytest.raises(OutputInvalid):
        await mapped([FieldMapping("input.none", "a", default=value)], SEEN, Evaluator())


@pytest.mark.parametrize(("depth", "fits"), [(DEEPEST - 1, True), (DEEPEST, False)])
async def test_an_output_is_only_so_deep(depth: int, *, fits: bool) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    making = mapped([FieldMapping("input.none", "a", default=value)], SEEN, Evaluator())
    if fits:
        assert await making == {"a": value}
        return
    with pytest.raises(OutputInvalid, match="inside one another"):
        await making
