"""Runs taken up again: after a crash, a lost claim, a change; and what is kept sealed for that."""

import asyncio
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.executor.engine.work import ClaimLost
from services.executor.store import executions as store
from services.sandbox.faults import Fault
from tests.integration.executor.execution_bench import (
    ExecutionBench,
    comment,
    step,
    until,
)

Admin = psycopg.AsyncConnection[Any]


async def test_a_change_of_the_connector_changes_no_run_that_has_begun(
    runs: ExecutionBench,
) -> None:
    execution_id = await runs.start(await runs.want(step("old")))
    await runs.want(step("new"), step("newer"))
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert [each.step for each in found.steps] == ["old"]


async def test_a_run_whose_state_does_not_open_fails(runs: ExecutionBench) -> None:
    execution_id = await runs.start(await runs.want(step()))
    runs.vault.key = type(runs.vault)().key
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert (found.state, found.failure_reason) == ("failed", "STATE_UNREADABLE")


async def _leave_in_flight(runs: ExecutionBench, *steps: dict[str, Any]) -> UUID:
    """A run whose worker died between the intent and the record of its first step."""
    execution_id = await runs.start(await runs.want(*steps))
    async with runs.database.tenant(runs.tenant_id) as tx:
        begun = store.Step(0, steps[0]["name"], "running", 1)
        await tx.pipeline([store.recording(runs.tenant_id, execution_id, begun)])
    return execution_id


async def test_after_a_crash_a_safe_call_is_made_again(runs: ExecutionBench) -> None:
    execution_id = await _leave_in_flight(runs, step(), step("next"))
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert found.state == "success"
    assert [each.attempts for each in found.steps] == [2, 1]


@pytest.mark.parametrize("unsafe", [comment(), step(idempotent=False)], ids=["POST", "said so"])
async def test_after_a_crash_an_unsafe_call_is_an_unknown_outcome(
    unsafe: Any, runs: ExecutionBench
) -> None:
    execution_id = await _leave_in_flight(runs, unsafe, step("next"))
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert (found.state, found.failure_reason) == ("failed", "OUTCOME_UNKNOWN")
    assert runs.box.calls == []


async def test_after_a_crash_an_unsafe_call_said_to_be_idempotent_is_made_again(
    runs: ExecutionBench,
) -> None:
    execution_id = await _leave_in_flight(runs, comment(idempotent=True))
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert (found.state, found.steps[0].attempts) == ("success", 2)


async def test_a_recorded_step_is_not_run_again(
    runs: ExecutionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = await runs.want(comment(), step("b", query={"id": "${steps.say.output.id}"}))
    execution_id = await runs.start(connector)
    calls = runs.running._intend

    async def dying(progress: Any, position: int, *rest: Any, **more: Any) -> None:
        if position == 1 and not died:
            died.append(position)
            raise RuntimeError("the worker dies here")
        await calls(progress, position, *rest, **more)

    died: list[int] = []
    monkeypatch.setattr(runs.running, "_intend", dying)
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert found.state == "success" and died == [1]
    assert (
        sum(each.query.get("id") == str(runs.box.comments[-1].id) for each in runs.box.calls) == 1
    )


async def test_a_worker_that_lost_its_claim_makes_no_call(
    runs: ExecutionBench, admin: Admin
) -> None:
    await runs.start(await runs.want(step()))
    claimed = await runs.claim()
    await admin.execute("UPDATE executor.work SET claim_id = gen_random_uuid()")
    with pytest.raises(ClaimLost):
        await runs.work(claimed)
    assert runs.box.calls == []


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE executor.execution_steps SET attempts = 2",
        "UPDATE executor.work SET claim_id = gen_random_uuid()",
    ],
    ids=["another try", "another claim"],
)
async def test_a_worker_that_lost_its_claim_records_nothing(
    meanwhile: str, runs: ExecutionBench, admin: Admin
) -> None:
    # The claim guards the end of a run, the try's number every step before it.
    more = [step("next")] if "attempts" in meanwhile else []
    execution_id = await runs.start(await runs.want(step(), *more))
    runs.box.faults.add(Fault(path="*", kind="slow", delay_s=0.3, times=1))
    running = asyncio.create_task(runs.work(await runs.claim()))
    await until(runs, execution_id, lambda each: runs.box.calls)
    await admin.execute(meanwhile)
    with pytest.raises(ClaimLost):
        await running
    found = await runs.executions.get(runs.tenant_id, execution_id)
    assert (found.state, found.steps[0].state) == ("running", "running")


async def test_state_is_sealed_while_it_runs_and_gone_at_the_end(
    runs: ExecutionBench, admin: Admin
) -> None:
    runs.box.faults.add(Fault(path="*/comments", kind="slow", delay_s=0.5))
    execution_id = await runs.start(await runs.want(step(), comment()), canary="in-the-payload")
    async with runs.working():
        await until(runs, execution_id, lambda each: len(each.steps) == 2)
        sealed = await (
            await admin.execute(
                "SELECT sealed_input, s.sealed_output FROM executor.executions JOIN executor.execution_steps s ON execution_id = id WHERE position = 0"
            )
        ).fetchone()
        assert sealed and sealed[0] and sealed[1]
        assert b"in-the-payload" not in sealed[0] and b"number" not in sealed[1]
        await runs.end_of(execution_id)
    left = await (
        await admin.execute(
            "SELECT count(sealed_input), count(s.sealed_output), count(*) FROM executor.executions JOIN executor.execution_steps s ON execution_id = id"
        )
    ).fetchone()
    assert left == (0, 0, 2)
    assert (await (await admin.execute("SELECT count(*) FROM executor.work")).fetchone()) == (0,)


async def test_a_condition_that_held_once_is_not_asked_again(runs: ExecutionBench) -> None:
    asks = step(condition="integration.config.owner == 'acme'")
    execution_id = await runs.start(await runs.want(asks, config={"owner": "acme"}))
    async with runs.database.tenant(runs.tenant_id) as tx:
        begun = store.Step(0, "read", "running", 1)
        await tx.pipeline([store.recording(runs.tenant_id, execution_id, begun)])
    await runs.want(asks, config={"owner": "other"})
    async with runs.working():
        found = await runs.end_of(execution_id)
    assert (found.state, found.steps[0].state) == ("success", "success")
