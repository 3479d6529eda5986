"""What a connector adds to the bare HTTP call: `make bench-connectors`.

A one-step connector is run with waiting at 20 a second, in turns with the same GET sent bare to the
same sandbox; the overhead is the difference of the medians.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
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
    """Measure, and print one line of JSON."""
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
    print(
        json.dumps(
            {
                "bench": "connectors",
                "figure": "overhead_p50",
                "value": round(overhead, 2),
                "unit": "ms",
                "baseline": f"bare GET, p50 {bare_p50:.2f} ms; limit {LIMIT_MS:.0f} ms",
                "ratio": round(overhead / LIMIT_MS, 3),
            }
        )
    )


async def _measure(stage: Stage) -> tuple[list[float], list[float]]:
    key = Secret(stage.owner_key.read_text())
    channel = open_channel(stage.where["executor"], key=key)
    stub = execution_service_pb2_grpc.ExecutionServiceStub(channel)
    request = pb2.RunConnectorRequest(
        name="tenants/bench/connectors/one", wait=Duration(seconds=10)
    )

    async def ours() -> None:
        answer = await stub.RunConnector(request, timeout=15)
        if answer.state != pb2.Execution.STATE_SUCCESS:
            raise RuntimeError(f"the execution ended {pb2.Execution.State.Name(answer.state)}")

    async with aiohttp.ClientSession() as session:

        async def bare() -> None:
            async with session.get(f"{stage.where['sandbox']}/echo") as answer:
                await answer.read()

        await _at_rate(bare, ours, WARM_UP)
        times = await _at_rate(bare, ours, PAIRS)
    await channel.close()
    return times


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
