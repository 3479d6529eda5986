"""Dry runs: what would be sent, every fault at once, nothing called, kept or resolved."""

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound
from services.chassis.expressions import Json
from services.chassis.secret import MASK
from services.executor.executions.dry_runs import DryRun, DryRunRequest, DryStep, Example
from tests.integration.executor.execution_bench import ISSUE, TOKEN, ExecutionBench, comment, step

Admin = psycopg.AsyncConnection[Any]


async def tried(runs: ExecutionBench, **given: Any) -> DryRun:
    return await runs.dry_runs.run(DryRunRequest(runs.tenant_id, "c", **given))


def faults(found: DryStep) -> list[str]:
    return [each.reason for each in found.faults]


async def test_each_step_shows_what_it_would_send(runs: ExecutionBench) -> None:
    await runs.want(
        step(query={"n": "${input.n}"}, headers={"X-Kind": "${event.type}"}),
        comment(text="about ${steps.read.output.title}", condition="steps.read.status == 200"),
        active=False,
    )
    found = await tried(
        runs,
        input={"n": 7},
        event={"type": "issues.opened"},
        examples={"read": Example(output={"title": "A bug"})},
    )
    read, say = found.steps
    assert (read.name, read.outcome, say.outcome) == ("read", "sends", "sends")
    assert read.request is not None and say.request is not None
    assert (read.request.method, read.request.url) == ("GET", f"{runs.box.url}{ISSUE}?n=7")
    assert read.request.headers["x-kind"] == "issues.opened"
    assert json.loads(say.request.body or b"") == {"body": "about A bug"}


async def test_nothing_is_called_kept_or_resolved(runs: ExecutionBench, admin: Admin) -> None:
    await runs.want(step(), comment(), whole={"timeout": "60s"})
    found = await tried(runs)
    assert found.steps[0].request is not None
    assert found.steps[0].request.headers["authorization"] == f"Bearer {MASK}"
    assert runs.box.calls == [] and not runs.vault.asked.is_set() and TOKEN not in repr(found)
    for table in ("executions", "execution_steps", "work", "run_requests"):
        rows = await (await admin.execute(f"SELECT count(*) FROM executor.{table}")).fetchone()
        assert rows == (0,), table


async def test_every_fault_is_told_at_once(runs: ExecutionBench) -> None:
    await runs.want(
        step("a", path_params={"x": "${event.payload.nothing}"}),
        step("b", condition="1", headers={"Authorization": "x"}),
        step("c", integration="gone"),
        step("d", query={"t": "${steps.a.output.title}"}),
        step("e", condition="input.go"),
        step("f", condition="has(steps.e.output.title)"),
    )
    found = await tried(runs, input={"go": False})
    assert [(each.name, each.outcome, faults(each)) for each in found.steps] == [
        ("a", "fails", ["VALUE_MISSING"]),
        ("b", "fails", ["EXPRESSION_INVALID", "CALL_INVALID"]),
        ("c", "fails", ["INTEGRATION_UNKNOWN"]),
        ("d", "fails", ["VALUE_MISSING"]),
        ("e", "skipped", []),
        ("f", "skipped", []),
    ]


async def test_an_example_may_be_a_failure(runs: ExecutionBench) -> None:
    await runs.want(
        step("a", continue_on_error=True), step("b", query={"why": "${steps.a.error.reason}"})
    )
    error: Json = {"reason": "NOT_FOUND", "message": "gone"}
    found = await tried(runs, examples={"a": Example(status=404, error=error)})
    assert found.steps[1].request is not None
    assert found.steps[1].request.url.endswith("?why=NOT_FOUND")


async def test_the_output_is_tried_too(runs: ExecutionBench) -> None:
    output = [{"source": "steps.read.output.id", "target": "a.id", "required": True}]
    await runs.want(step(), whole={"output": output})
    assert (await tried(runs, examples={"read": Example(output={"id": 7})})).output == {
        "a": {"id": 7}
    }
    without = await tried(runs)
    assert without.output == {} and without.output_fault is not None
    assert without.output_fault.reason == "OUTPUT_INVALID"


async def test_an_example_of_no_step_is_refused(runs: ExecutionBench) -> None:
    await runs.want(step())
    with pytest.raises(InvalidArgument, match="did you mean read"):
        await tried(runs, examples={"raed": Example()})


async def test_what_is_not_there_cannot_be_tried(
    runs: ExecutionBench, tenant_ids: tuple[UUID, UUID], admin: Admin
) -> None:
    await runs.want(step())
    for tenant_id, name in ((runs.tenant_id, "x"), (tenant_ids[1], "c"), (uuid4(), "c")):
        with pytest.raises(NotFound):
            await runs.dry_runs.run(DryRunRequest(tenant_id, name))
    await admin.execute("UPDATE executor.tenants SET enabled = false")
    with pytest.raises(FailedPrecondition):
        await tried(runs)
