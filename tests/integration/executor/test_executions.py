"""Runs of connectors: what steps hand on, every state and reason, tries and waits."""

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from services.chassis.errors import (
    FailedPrecondition,
    Unavailable,
)
from services.executor.calling import Calling
from services.executor.executions.running import Running
from services.executor.executions.runs import Executions, RunRequest
from services.executor.registry.client import Registry
from services.executor.store import projected, tenants
from services.executor.store.tenants import ProjectedTenant
from services.sandbox.faults import Fault
from tests.integration.executor.execution_bench import (
    CATALOG,
    ISSUE,
    TOKEN,
    ExecutionBench,
    NoRoom,
    comment,
    step,
    until,
)
from tests.integration.executor.running_registry import RunningRegistry, document

Admin = psycopg.AsyncConnection[Any]


async def test_three_steps_hand_on_what_they_kept(runs: ExecutionBench) -> None:
    found = await runs.run(
        step(
            "issue",
            path="/repos/{owner}/shop/issues/{number}",
            path_params={"owner": "acme", "number": "${event.payload.number}"},
        ),
        comment(text="about ${steps.issue.output.title}", condition="steps.issue.status == 200"),
        step(
            "tell",
            integration="plain",
            method="POST",
            path="/echo",
            extract={},
            query={"n": "${event.payload.number}", "none": "${null}"},
            headers={"X-Kind": "${event.type}", "X-None": "${null}"},
            body={"id": "${steps.say.output.id}", "all": ["${steps.issue.body.number}"]},
        ),
        number=7,
    )
    assert (found.state, found.failure_reason) == ("success", "")
    assert [each.state for each in found.steps] == ["success"] * 3
    assert [each.attempts for each in found.steps] == [1, 1, 1]
    assert [each.response_status for each in found.steps] == [200, 201, 200]
    title = found.steps[0].masked_output["title"]
    assert runs.box.comments[0].body == f"about {title}"
    told = runs.box.calls[-1]
    assert json.loads(told.body) == {"id": 1, "all": [7]}
    assert told.query == {"n": "7"} and told.headers["x-kind"] == "issues.opened"
    assert "x-none" not in told.headers
    assert found.started_at and found.ended_at and found.ended_at >= found.started_at


async def test_an_operation_takes_typed_values_from_text(runs: ExecutionBench) -> None:
    found = await runs.run(
        step(
            "list",
            operation="list_issues",
            method="",
            path="",
            path_params={"owner": "acme", "repo": "shop"},
            query={"per_page": "2"},
            extract={"n": "$[*].number"},
        ),
        step(
            "say",
            operation="create_issue_comment",
            method="",
            path="",
            path_params={"owner": "acme", "repo": "shop", "issue_number": "7"},
            body={"body": "x"},
            extract={},
        ),
    )
    assert found.state == "success"
    assert found.steps[0].masked_output == {"n": [45, 44]}
    assert runs.box.comments[0].number == 7


async def test_a_false_condition_skips_the_step_and_makes_no_call(runs: ExecutionBench) -> None:
    found = await runs.run(
        step("first", condition="event.payload.go"),
        step("second", condition="!has(steps.first.output.title)"),
        step("third", condition="false"),
        go=False,
    )
    assert [each.state for each in found.steps] == ["skipped", "success", "skipped"]
    assert found.state == "success" and len(runs.box.calls) == 1


async def test_expressions_go_through_lists_and_large_answers(runs: ExecutionBench) -> None:
    found = await runs.run(
        step("first", condition="event.payload.labels.exists(x, x.name == 'bug')"),
        step("second", condition="event.payload.labels.all(x, x.name == 'bug')"),
        comment(text="labelled ${event.payload.labels.filter(x, has(x.by)).map(x, x.name)}"),
        labels=[{"name": "bug", "by": 1}, {"name": "p1"}],
        large="x" * 100_000,
    )
    assert [each.state for each in found.steps] == ["success", "skipped", "success"]
    assert [each.body for each in runs.box.comments] == ['labelled ["bug"]']


ENDLESS = "event.payload.l.map(x, event.payload.l.map(y, x * y + size(event.payload.l)))"
REFUSALS = {
    "a wrong path": (step(path="/repos/acme/shop/issues/999"), "NOT_FOUND", 404),
    "a wrong body": (comment(text=""), "INVALID", 422),
    "an expression without a value": (
        step(path_params={"x": "${event.payload.nothing}"}),
        "VALUE_MISSING",
        0,
    ),
    "a condition of another kind": (step(condition="1"), "EXPRESSION_INVALID", 0),
    "an expression without end": (
        step(path_params={"x": f"${{{ENDLESS}}}"}),
        "EXPRESSION_TOO_MUCH",
        0,
    ),
    "a path that climbs": (step(path="/repos/{x}", path_params={"x": ".."}), "UNSAFE_PATH", 0),
    "a header of ours": (step(headers={"Authorization": "x"}), "CALL_INVALID", 0),
    "an operation there is not": (step(operation="dance"), "CALL_INVALID", 0),
    "a header that breaks": (step(headers={"X-A": "${'a\\nb'}"}), "CALL_INVALID", 0),
    "no integration of that name": (step(integration="gone"), "INTEGRATION_UNKNOWN", 0),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_cannot_succeed_fails_at_once_with_its_reason(
    case: str, runs: ExecutionBench
) -> None:
    wrong, reason, status = REFUSALS[case]
    found = await runs.run(wrong, l=list(range(400)))
    assert (found.state, found.failure_reason) == ("failed", reason)
    (only,) = found.steps
    assert (only.state, only.failure_reason, only.response_status) == ("failed", reason, status)
    assert len(runs.box.calls) == (1 if status else 0)
    assert found.failure_message.startswith(f"step {wrong['name']}: ")
    assert TOKEN not in repr(found)


async def test_a_failed_step_ends_the_run(runs: ExecutionBench) -> None:
    found = await runs.run(step(path="/repos/acme/shop/issues/999"), step("never"))
    assert [each.step for each in found.steps] == ["read"]
    assert "404" in found.failure_message


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_safe_call_is_tried_again_and_succeeds(status: int, runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path=ISSUE, kind="status", status=status, times=2))
    found = await runs.run(step())
    assert (found.state, found.steps[0].attempts) == ("success", 3)
    assert found.steps[0].failure_reason == ""


async def test_tries_are_bounded(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path=ISSUE, kind="status", status=500, times=9))
    found = await runs.run(step())
    assert (found.state, found.failure_reason) == ("failed", "TRANSIENT")
    assert (found.steps[0].attempts, len(runs.box.calls)) == (3, 3)


async def test_an_unsafe_call_is_not_repeated_after_a_server_error(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path="*", kind="status", status=500, times=1))
    found = await runs.run(comment())
    assert (found.failure_reason, found.steps[0].attempts) == ("TRANSIENT", 1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="*", kind="rate_limit", times=1),
        Fault(path="*", kind="rate_limit", times=1, retry_after=0),
        Fault(path="*", kind="status", status=503, times=1, retry_after=0),
    ],
    ids=["429", "429 with a wait", "503 with a wait"],
)
async def test_an_unsafe_call_is_repeated_when_the_provider_did_nothing(
    fault: Fault, runs: ExecutionBench
) -> None:
    runs.box.faults.add(fault)
    found = await runs.run(comment())
    assert (found.state, found.steps[0].attempts) == ("success", 2)
    assert len(runs.box.comments) == 1


async def test_retry_after_is_honoured_up_to_the_cap(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path="*", kind="rate_limit", times=1, retry_after=3600))
    retry = {"max_attempts": 2, "base": "0.001s", "cap": "0.7s"}
    found = await runs.run(step(retry=retry))
    first, second = runs.box.calls
    assert found.state == "success" and 0.65 < second.at - first.at < 5


async def test_while_it_waits_a_step_says_why(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path="*", kind="status", status=500, times=1))
    execution_id = await runs.start(
        await runs.want(step(retry={"max_attempts": 2, "base": "600s", "cap": "600s"}))
    )
    async with runs.working():
        found = await until(
            runs, execution_id, lambda each: each.steps and each.steps[0].failure_reason
        )
    assert (found.state, found.steps[0].state) == ("running", "running")
    assert found.steps[0].failure_reason == "TRANSIENT" and not found.steps[0].in_flight


@pytest.mark.parametrize("kind", ["truncate", "reset"])
async def test_a_lost_answer_to_an_unsafe_call_is_an_unknown_outcome(
    kind: Any, runs: ExecutionBench
) -> None:
    runs.box.faults.add(Fault(path="*", kind=kind, times=1))
    found = await runs.run(comment())
    assert (found.state, found.failure_reason) == ("failed", "OUTCOME_UNKNOWN")
    assert found.steps[0].failure_reason == "OUTCOME_UNKNOWN"
    assert len(runs.box.comments) == 1


@pytest.mark.parametrize("kind", ["truncate", "reset", "hang"])
async def test_a_lost_answer_to_a_safe_call_is_asked_for_again(
    kind: Any, runs: ExecutionBench
) -> None:
    runs.box.faults.add(Fault(path="*", kind=kind, times=1))
    found = await runs.run(step(timeout="0.3s"))
    assert (found.state, found.steps[0].attempts) == ("success", 2)


async def test_answers_lost_too_often_fail(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path="*", kind="reset", times=9))
    found = await runs.run(step())
    assert (found.state, found.failure_reason) == ("failed", "RESPONSE_LOST")


async def test_a_step_whose_last_try_is_late_times_out(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path="*", kind="hang", times=9))
    found = await runs.run(step(timeout="0.2s"))
    assert (found.state, found.failure_reason) == ("timeout", "TIMEOUT")
    assert (found.steps[0].state, found.steps[0].attempts) == ("timeout", 3)


async def test_a_late_unsafe_call_is_an_unknown_outcome(runs: ExecutionBench) -> None:
    runs.box.faults.add(Fault(path="*", kind="hang", times=1))
    found = await runs.run(comment(timeout="0.2s"))
    assert (found.state, found.failure_reason) == ("failed", "OUTCOME_UNKNOWN")


async def test_what_was_never_sent_is_tried_again_by_every_method(runs: ExecutionBench) -> None:
    runs.box = replace(runs.box, url="http://127.0.0.1:1")
    found = await runs.run(comment())
    assert (found.state, found.failure_reason) == ("failed", "CONNECT_FAILED")
    assert found.steps[0].attempts == 3


async def test_an_internal_address_is_refused(runs: ExecutionBench) -> None:
    connector = await runs.want(step(), base_url="https://10.1.2.3")
    execution_id = await runs.start(connector)
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert (found.failure_reason, found.steps[0].attempts) == ("EGRESS_REFUSED", 1)


async def test_an_empty_answer_extracts_to_null(runs: ExecutionBench) -> None:
    found = await runs.run(step(method="HEAD", extract={"a": "$.a"}))
    assert found.state == "success" and found.steps[0].masked_output == {"a": None}


STOPS = {
    "TENANT_DISABLED": "UPDATE executor.tenants SET enabled = false",
    "CONNECTOR_INACTIVE": "UPDATE executor.projected_objects SET spec = jsonb_set(spec, '{is_active}', 'false') WHERE kind = 'Connector'",
    "INTEGRATION_INACTIVE": "UPDATE executor.projected_objects SET spec = jsonb_set(spec, '{is_active}', 'false') WHERE kind = 'Integration'",
    "INTEGRATION_UNKNOWN": "DELETE FROM executor.projected_objects WHERE kind = 'Integration'",
    "CREDENTIAL_UNKNOWN": "DELETE FROM executor.projected_objects WHERE kind = 'Credential'",
}


@pytest.mark.parametrize("reason", STOPS)
async def test_what_is_switched_off_stops_runs_before_their_next_call(
    reason: str, runs: ExecutionBench, admin: Admin
) -> None:
    execution_id = await runs.start(await runs.want(step()))
    await admin.execute(STOPS[reason])
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert (found.state, found.failure_reason) == ("failed", reason)
    assert runs.box.calls == []


async def test_a_credential_that_cannot_be_had_fails_the_run(runs: ExecutionBench) -> None:
    runs.vault.fault = FailedPrecondition("revoked")
    found = await runs.run(step())
    assert (found.state, found.failure_reason) == ("failed", "CREDENTIAL_UNAVAILABLE")


async def test_with_the_registry_down_a_run_waits(runs: ExecutionBench) -> None:
    runs.vault.fault = Unavailable("down")
    execution_id = await runs.start(await runs.want(step()))
    async with runs.working():
        await asyncio.wait_for(runs.vault.asked.wait(), 10)
        assert (await runs.executions.get(runs.tenant_id, execution_id)).state == "pending"
        runs.vault.fault = None
        assert (await runs.end_of(execution_id)).state == "success"


async def test_a_secret_that_comes_back_is_not_shown(runs: ExecutionBench, admin: Admin) -> None:
    echo = step(
        "echo",
        integration="github",
        method="POST",
        path="/echo",
        body={"a": f"x{TOKEN}y", "n": 3},
        extract={"body": "$.body", "token": "$.path", "path": "$.path"},
    )
    found = await runs.run(echo)
    assert found.steps[0].masked_output == {"body": "•••", "token": "•••", "path": "/echo"}
    rows = await (
        await admin.execute(
            "SELECT e::text, s::text FROM executor.executions e JOIN executor.execution_steps s ON execution_id = id"
        )
    ).fetchall()
    assert TOKEN not in repr(rows)


async def test_a_secret_in_a_message_is_not_shown(runs: ExecutionBench) -> None:
    runs.vault.token = "127.0.0.1"
    execution_id = await runs.start(await runs.want(step(), base_url="http://127.0.0.1:1"))
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert found.failure_reason == "CONNECT_FAILED"
    assert "127.0.0.1" not in found.failure_message + found.steps[0].failure_message


async def test_what_the_registry_projects_runs(
    runs: ExecutionBench, registry_service: RunningRegistry, registry: Registry
) -> None:
    token = {"plain": base64.b64encode(TOKEN.encode()).decode()}
    await registry_service.apply(
        "acme",
        document("Tenant", "acme", display_name="Acme"),
        document("Credential", "token", type="bearer", values={"token": token}),
        document(
            "Integration",
            "github",
            provider="github",
            credential="token",
            base_url=runs.box.url,
            config={"owner": "acme", "repo": "shop"},
        ),
        document(
            "Connector",
            "triage",
            steps=[
                {
                    "name": "list",
                    "integration": "github",
                    "operation": "list_issues",
                    "extract": {"first": "$[0].number"},
                },
                {
                    "name": "say",
                    "integration": "github",
                    "method": "POST",
                    "path": "/repos/{owner}/{repo}/issues/{number}/comments",
                    "path_params": {"number": "${steps.list.output.first}"},
                    "body": {
                        "body": "number ${steps.list.output.first} of ${integration.config.repo}"
                    },
                    "condition": "steps.list.output.first > 1",
                    "timeout": "2.5s",
                },
            ],
        ),
    )
    snapshot = await registry.snapshot(await registry_service.tenant_id("acme"))
    async with runs.database.tenant(snapshot.tenant_id) as tx:
        await tenants.write(
            tx, ProjectedTenant(snapshot.tenant_id, "acme-again", True, 1), seen=None
        )
        await projected.replace(tx, snapshot.tenant_id, snapshot.objects)
    executions = Executions(runs.database, registry, runs.changes, NoRoom())
    runs.running = Running(
        runs.database,
        registry,
        Calling(registry, runs.client, runs.uses),
        CATALOG,
        runs.recorder,
        runs.changes,
        runs.evaluator,
    )
    async with runs.working():
        found = await executions.run(
            RunRequest(snapshot.tenant_id, uuid4(), "triage", {}, wait_s=20)
        )
    assert (found.state, found.failure_message) == ("success", "")
    assert [each.body for each in runs.box.comments] == ["number 45 of shop"]
