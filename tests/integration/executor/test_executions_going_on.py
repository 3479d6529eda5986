"""Runs that go on: past a step that failed, or again at it; and what they come to."""

import json
from typing import Any

import psycopg
import pytest

from services.chassis.errors import FailedPrecondition
from services.chassis.secret import MASK
from services.executor.executions import running
from services.executor.executions.runs import RunRequest
from services.executor.store import projected, tenants
from services.executor.store.tenants import ProjectedTenant
from services.sandbox.faults import Fault
from tests.integration.executor.execution_bench import (
    ISSUE,
    TOKEN,
    ExecutionBench,
    comment,
    step,
    until,
)
from tests.integration.executor.running_registry import RunningRegistry, document

Admin = psycopg.AsyncConnection[Any]
ONCE = {"max_attempts": 1, "base": "0.01s", "cap": "0.05s"}
GONE = "/repos/acme/shop/issues/999"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is taken up again at once."""
    monkeypatch.setattr(running, "AGAIN_S", (0.01,))


def tell(**body: Any) -> dict[str, Any]:
    """A step that sends what it sees to the sandbox's echo."""
    return step("tell", integration="plain", method="POST", path="/echo", extract={}, body=body)


async def test_a_run_goes_on_past_a_step_that_may_fail(runs: ExecutionBench) -> None:
    found = await runs.run(
        step(path=GONE, continue_on_error=True),
        step("unless", condition="!has(steps.read.error)"),
        tell(
            why="${steps.read.error.reason}",
            said="${steps.read.error.message}",
            status="${steps.read.status}",
            output="${steps.read.output}",
            fine="${has(steps.unless.error)}",
        ),
    )
    assert (found.state, found.failure_reason, found.failed_steps) == ("success", "", 1)
    assert [each.state for each in found.steps] == ["failed", "skipped", "success"]
    assert found.steps[0].failure_reason == "NOT_FOUND"
    told = json.loads(runs.box.calls[-1].body)
    assert (told["why"], told["status"], told["output"]) == ("NOT_FOUND", 404, {})
    assert "404" in told["said"] and told["fine"] is False


async def test_also_the_last_step_may_fail(runs: ExecutionBench) -> None:
    found = await runs.run(step(path=GONE, continue_on_error=True))
    assert (found.state, found.failed_steps) == ("success", 1)
    assert found.steps[0].failure_reason == "NOT_FOUND"


async def test_a_step_that_failed_is_past_for_the_next_worker_too(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path="/echo", kind="status", status=503, times=1, retry_after=0))
    found = await runs.run(
        step(path=GONE, continue_on_error=True), tell(why="${steps.read.error.reason}")
    )
    assert found.state == "success" and found.steps[1].attempts == 2
    assert [call.path for call in runs.box.calls].count(GONE) == 1
    assert json.loads(runs.box.calls[-1].body) == {"why": "NOT_FOUND"}


async def test_what_is_switched_off_stops_a_run_that_goes_on_past_errors(
    runs: ExecutionBench, admin: Admin
) -> None:
    careless = [step(name, continue_on_error=True) for name in ("read", "next")]
    execution_id = await runs.start(await runs.want(*careless))
    await admin.execute("UPDATE executor.tenants SET enabled = false")
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert (found.state, found.failure_reason) == ("failed", "TENANT_DISABLED")


@pytest.mark.usefixtures("soon")
async def test_a_run_is_taken_up_again_at_the_failed_step(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path=ISSUE, kind="status", status=500, times=5))
    found = await runs.run(
        step("first", path="/repos/acme/shop/issues"),
        step(retry={**ONCE, "max_attempts": 2}),
        whole={"max_retries": 3},
    )
    assert (found.state, found.retries, found.failed_steps) == ("success", 2, 0)
    assert [(each.attempts, each.retries) for each in found.steps] == [(1, 0), (6, 2)]
    assert len(runs.box.calls) == 7


@pytest.mark.usefixtures("soon")
async def test_a_run_is_taken_up_only_so_often(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path=ISSUE, kind="status", status=500, times=99))
    found = await runs.run(step(retry={**ONCE, "max_attempts": 2}), whole={"max_retries": 2})
    assert (found.state, found.failure_reason) == ("failed", "TRANSIENT")
    assert (found.retries, found.steps[0].attempts, len(runs.box.calls)) == (2, 6, 6)


@pytest.mark.usefixtures("soon")
async def test_retries_come_before_going_on(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path=ISSUE, kind="status", status=500, times=2))
    found = await runs.run(
        step(retry=ONCE, continue_on_error=True),
        tell(gone_on="${has(steps.read.error)}"),
        whole={"max_retries": 1},
    )
    assert (found.state, found.retries, found.failed_steps) == ("success", 1, 1)
    assert json.loads(runs.box.calls[-1].body) == {"gone_on": True}


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (comment(), Fault(path="*", kind="status", status=500)),
        (comment(), Fault(path="*", kind="reset")),
        (step(path=GONE), None),
    ],
    ids=["an unsafe call", "an unknown outcome", "a refusal"],
)
@pytest.mark.usefixtures("soon")
async def test_what_may_do_harm_or_cannot_help_is_not_taken_up_again(
    wrong: dict[str, Any], fault: Fault | None, runs: ExecutionBench
) -> None:
    if fault is not None:
        runs.box.faults.add(fault)
    found = await runs.run(wrong, whole={"max_retries": 3})
    assert (found.state, found.retries, len(runs.box.calls)) == ("failed", 0, 1)


async def test_while_a_run_waits_to_be_taken_up_it_says_why(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "AGAIN_S", (600.0,))
    runs.box.faults.add(Fault(path=ISSUE, kind="status", status=500))
    execution_id = await runs.start(await runs.want(step(retry=ONCE), whole={"max_retries": 1}))
    async with runs.working():
        found = await until(runs, execution_id, lambda each: each.retries)
    assert (found.state, found.steps[0].failure_reason) == ("running", "TRANSIENT")


OUTPUT = [
    {"source": "steps.read.output.title", "target": "issue.title", "transform": "value + '!'"},
    {"source": "input.words", "target": "words"},
    {"source": "steps.maybe.output.title", "target": "maybe", "default": "nothing"},
]


async def test_a_run_comes_to_its_output_in_full_for_its_caller_and_masked_for_others(
    runs: ExecutionBench, admin: Admin
) -> None:
    words = "w" * 100
    await runs.want(step(), step("maybe", condition="false"), whole={"output": OUTPUT})
    request = runs.request(input={"words": words}, wait_s=10, request_id=runs.principal_id)
    async with runs.working():
        found = await runs.executions.run(request)
    title = found.steps[0].masked_output["title"]
    assert found.output == {
        "issue": {"title": f"{title}!"},
        "words": words,
        "maybe": "nothing",
    }
    assert (await runs.executions.run(request)).output == found.output
    shown = await runs.executions.get(runs.tenant_id, found.id)
    assert shown.output == {**found.output, "words": "w" * 64 + "…"}
    rows = await (await admin.execute("SELECT e::text FROM executor.executions e")).fetchall()
    assert words not in repr(rows)


async def test_a_caller_gets_the_output_of_a_run_in_another_process(runs: ExecutionBench) -> None:
    runs.running._changes = type(runs.changes)(runs.database)
    await runs.want(step(), whole={"output": OUTPUT[1:2]})
    async with runs.working():
        found = await runs.executions.run(runs.request(input={"words": "w" * 99}, wait_s=10))
    assert found.output == {"words": "w" * 99}


async def test_an_output_that_does_not_open_any_more_is_said_so(runs: ExecutionBench) -> None:
    await runs.want(step(), whole={"output": OUTPUT[1:2]})
    request = runs.request(input={"words": "w"}, wait_s=10, request_id=runs.principal_id)
    async with runs.working():
        await runs.executions.run(request)
    runs.vault.key = type(runs.vault)().key
    with pytest.raises(FailedPrecondition) as told:
        await runs.executions.run(request)
    assert told.value.code == "OUTPUT_UNREADABLE"


async def test_an_output_without_what_it_requires_fails_the_run(runs: ExecutionBench) -> None:
    wanted = [{"source": "input.absent", "target": "a.b", "required": True}, *OUTPUT[:1]]
    found = await runs.run(comment(), step(), whole={"output": wanted})
    assert (found.state, found.failure_reason) == ("failed", "OUTPUT_INVALID")
    assert "a.b" in found.failure_message and found.output == {}
    assert [each.state for each in found.steps] == ["success", "success"]


@pytest.mark.parametrize("changed", [False, True], ids=["one worker", "two"])
async def test_no_credential_comes_out(changed: bool, runs: ExecutionBench, admin: Admin) -> None:
    echo = step(
        "echo",
        method="POST",
        path="/echo",
        body={"a": f"x{TOKEN}y", "n": 3},
        extract={"body": "$.body", "path": "$.path"},
        idempotent=True,
    )
    if changed:
        # The worker that used the credential is not the one that ends the run.
        runs.box.faults.add(
            Fault(path="/echo", method="PUT", kind="status", status=503, retry_after=0)
        )
    plain = {**tell(), "method": "PUT"}
    wanted = [
        {"source": "steps.echo.output.body", "target": "body"},
        {"source": "steps.echo.output.path", "target": "path"},
    ]
    await runs.want(echo, plain, whole={"output": wanted})
    async with runs.working():
        found = await runs.executions.run(runs.request(wait_s=10))
    assert found.state == "success" and found.output == {"body": MASK, "path": "/echo"}
    assert found.steps[1].attempts == 1 + changed
    rows = await (await admin.execute("SELECT e::text FROM executor.executions e")).fetchall()
    assert TOKEN not in repr(rows)


async def test_what_the_registry_keeps_of_a_connector_reaches_its_runs(
    runs: ExecutionBench, registry_service: RunningRegistry, registry: Any
) -> None:
    await registry_service.apply(
        "acme",
        document("Tenant", "acme", display_name="Acme"),
        document("Integration", "plain", provider="http", base_url=runs.box.url),
        document(
            "Connector",
            "whole",
            timeout="90s",
            max_retries=2,
            output=[{"source": "steps.a.error.reason", "target": "why", "required": True}],
            steps=[
                {
                    "name": "a",
                    "integration": "plain",
                    "method": "GET",
                    "path": GONE,
                    "continue_on_error": True,
                }
            ],
        ),
    )
    snapshot = await registry.snapshot(await registry_service.tenant_id("acme"))
    (connector,) = [each for each in snapshot.objects if each.kind == "Connector"]
    spec = connector.spec
    assert (spec["timeout"], spec["max_retries"]) == ("90s", 2)
    assert spec["output"][0]["required"] is True and spec["steps"][0]["continue_on_error"] is True
    async with runs.database.tenant(snapshot.tenant_id) as tx:
        await tenants.write(tx, ProjectedTenant(snapshot.tenant_id, "again", True, 1), seen=None)
        await projected.replace(tx, snapshot.tenant_id, snapshot.objects)
    request = RunRequest(snapshot.tenant_id, runs.principal_id, "whole", {}, wait_s=10)
    async with runs.working():
        found = await runs.executions.run(request)
    assert found.state == "success" and found.output["why"] in {"NOT_FOUND", "AUTH"}
