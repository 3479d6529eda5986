"""`tenon run` and `tenon executions` against a real service."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tenon.executor.v1 import execution_service_pb2 as pb

from services.chassis.interceptors import Call
from services.chassis.server import Listen, Service, serving
from services.chassis.tenancy import Principal
from services.command import main
from services.executor.executions.runs import Query
from tests.integration.executor.execution_bench import ExecutionBench, step

Tenon = Callable[..., Coroutine[Any, Any, int]]


@pytest.fixture
async def tenon(runs: ExecutionBench, tmp_path: Path) -> AsyncIterator[Tenon]:
    """The command, asking this bench; its exit code."""

    async def enter(call: Call) -> None:
        call.principal = Principal(runs.principal_id, "user", "the caller")
        call.tenant, call.tenant_id = "acme", runs.tenant_id

    key = tmp_path / "key"
    key.write_text("any-key")
    service = Service(pb.DESCRIPTOR.services_by_name["ExecutionService"], runs.servicer())
    async with serving([service], [enter], Listen("127.0.0.1:0"), grace_s=0.1) as port:

        async def tenon(*words: str) -> int:
            where = ["--executor", f"127.0.0.1:{port}", "--key-file", str(key)]
            return await asyncio.to_thread(main, [*words, *where])

        yield tenon


async def test_a_run_is_waited_for_and_shown(
    runs: ExecutionBench, tenon: Tenon, capsys: pytest.CaptureFixture[str]
) -> None:
    await runs.want(step(), whole={"output": [{"source": "input.n", "target": "n"}]})
    words = ("run", "acme", "c", "--wait", "--input", '{"n": 7}', "--link", "contact_id=4=2")
    async with runs.working():
        assert await tenon(*words, "--output", "json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["output"] == {"n": 7} and told["links"] == {"contact_id": "4=2"}


async def test_a_run_is_followed_to_its_bad_end(
    runs: ExecutionBench, tenon: Tenon, capsys: pytest.CaptureFixture[str]
) -> None:
    await runs.want(step(path="/repos/acme/shop/issues/999"))
    following = asyncio.create_task(tenon("run", "acme", "c", "--follow"))
    async with asyncio.timeout(20):
        while not runs.changes.waiters():
            await asyncio.sleep(0.01)
        async with runs.working():
            assert await following == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "c: pending" and "c: failed" in told
    assert "read: failed, NOT_FOUND" in told


async def test_an_execution_is_cancelled_and_followed(
    runs: ExecutionBench, tenon: Tenon, capsys: pytest.CaptureFixture[str]
) -> None:
    execution_id = await runs.start(await runs.want(step()))
    assert await tenon("executions", "acme", str(execution_id), "--cancel") == 0
    (found,) = (await runs.executions.list(Query(runs.tenant_id))).executions
    assert found.state == "cancelled" and "CANCELLED" in capsys.readouterr().out
    assert await tenon("executions", "acme", "last", "--follow") == 0
    assert "c: cancelled" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("run", "acme", "c", "--input", "[1]"),
        ("run", "acme", "c", "--input", "{"),
        ("run", "acme", "c", "--link", "contact_id"),
        ("run", "acme", "c", "--link", "a=1", "--link", "a=2"),
        ("run", "acme", "absent"),
        ("executions", "acme", "--follow"),
    ],
    ids=" ".join,
)
async def test_wrong_words_are_told_in_a_line(
    words: tuple[str, ...],
    runs: ExecutionBench,
    tenon: Tenon,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await runs.want(step())
    assert await tenon(*words) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("tenon: ") and told.err.count("\n") == 1
