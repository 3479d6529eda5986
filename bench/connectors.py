"""What a connector adds to the bare HTTP call, and how many run: `make bench-connectors`.

A one-step connector is run with waiting at 20 a second, in turns with the same GET sent bare to the
same sandbox; the overhead is the difference of the medians. Then as many are run as an executor on
one core ends, each with its step's row, inside row-level security.
"""

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
from google.protobuf.duration_pb2 import Duration
from tenon.executor.v1 import execution_service_pb2 as pb2
from tenon.executor.v1 import execution_service_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.secret import Secret
from services.stage import Stage

RATE: Final = 20.0
WARM_UP: Final = 40
PAIRS: Final = 200
LIMIT_MS: Final = 10.0
CALLERS: Final = 16
MEASURED_S: Final = 8.0
LIMIT: Final = 200.0
EXECUTOR: Final = b"services.executor.main"

WANTED: Final = """\
apiVersion: tenon/v1
kind: Tenant
metadata: {{name: bench}}
spec: {{display_name: Bench}}
---
apiVersion: tenon/v1
kind: Integration
metadata: {{name: echo, tenant: bench}}
spec: {{provider: http, environment: sandbox, base_url: "{url}"}}
---
apiVersion: tenon/v1
kind: Connector
metadata: {{name: one, tenant: bench}}
spec:
  steps:
    - {{name: get, integration: echo, method: GET, path: /echo}}
"""


def main() -> None:
    """Measure, and print a line of JSON for each figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with Stage(folder) as stage:
            wanted = folder / "bench.yaml"
            wanted.write_text(WANTED.format(url=stage.where["sandbox"]))
            stage.run("apply", "--wait", str(wanted), shown=False)
            bare, ours = asyncio.run(_measure(stage))
            bare_p50 = statistics.median(bare)
            overhead = statistics.median(ours) - bare_p50
            told = f"bare GET, p50 {bare_p50:.2f} ms; limit {LIMIT_MS:.0f} ms"
            _print("overhead_p50", round(overhead, 2), "ms", told, overhead / LIMIT_MS)
            _pin(_executor_of(stage.where["pid"]))
            rate = asyncio.run(_ended(stage))
            told = f"limit {LIMIT:.0f}/s; executor on one core, {CALLERS} callers that wait"
            _print("executions", round(rate), "1/s", told, rate / LIMIT)


def _print(figure: str, value: float, unit: str, baseline: str, ratio: float) -> None:
    line = {"bench": "connectors", "figure": figure, "value": value, "unit": unit}
    print(json.dumps({**line, "baseline": baseline, "ratio": round(ratio, 3)}))


def _executor_of(supervisor: int) -> int:
    """The executor's process, of those that the supervisor has started."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next(pid for pid in map(int, children) if EXECUTOR in _command(pid))


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _pin(pid: int) -> None:
    """Let a process, with all its threads, run on one core only."""
    core = {min(os.sched_getaffinity(0))}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), core)


@asynccontextmanager
async def _runs(stage: Stage) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Runs the connector once, to its good end."""
    key = Secret(stage.owner_key.read_text())
    request = pb2.RunConnectorRequest(
        name="tenants/bench/connectors/one", wait=Duration(seconds=10)
    )
    async with open_channel(stage.where["executor"], key=key, reason="a benchmark") as channel:
        stub = execution_service_pb2_grpc.ExecutionServiceStub(channel)

        async def run() -> None:
            answer = await stub.RunConnector(request, timeout=15)
            if answer.state != pb2.Execution.STATE_SUCCESS:
                raise RuntimeError(f"the execution ended {pb2.Execution.State.Name(answer.state)}")

        yield run


async def _measure(stage: Stage) -> tuple[list[float], list[float]]:
    async with _runs(stage) as ours, aiohttp.ClientSession() as session:

        async def bare() -> None:
            async with session.get(f"{stage.where['sandbox']}/echo") as answer:
                await answer.read()

        await _at_rate(bare, ours, WARM_UP)
        return await _at_rate(bare, ours, PAIRS)


async def _ended(stage: Stage) -> float:
    """Executions a second, by callers that each start the next when the last has ended."""
    async with _runs(stage) as run:
        begun, count = time.perf_counter(), 0
        until = begun + MEASURED_S

        async def call() -> None:
            nonlocal count
            while time.perf_counter() < until:
                await run()
                count += 1

        await asyncio.gather(*(call() for _ in range(CALLERS)))
        return count / (time.perf_counter() - begun)


async def _at_rate(
    bare: Callable[[], Awaitable[None]], ours: Callable[[], Awaitable[None]], pairs: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of both, a pair every 1/RATE s whether or not the last one has ended."""
    begun = time.perf_counter()
    tasks = []
    for index in range(pairs):
        await asyncio.sleep(max(0.0, begun + index / RATE - time.perf_counter()))
        tasks.append(asyncio.create_task(_pair(bare, ours)))
    found = await asyncio.gather(*tasks)
    return [pair[0] for pair in found], [pair[1] for pair in found]


async def _pair(
    bare: Callable[[], Awaitable[None]], ours: Callable[[], Awaitable[None]]
) -> tuple[float, float]:
    return await _timed(bare), await _timed(ours)


async def _timed(call: Callable[[], Awaitable[None]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    main()
