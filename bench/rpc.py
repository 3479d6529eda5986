"""What our RPCs reach of a bare grpc.aio echo: `make bench-rpc`.

Servers and client are processes of their own on one machine. Each figure is the median of rounds
that take turns with the echo's, 32 calls in flight.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import access_service_pb2_grpc as access_grpc
from tenon.registry.v1 import integration_service_pb2 as integration
from tenon.registry.v1 import integration_service_pb2_grpc as integration_grpc

from services.chassis.channel import open_channel
from services.stage import Stage

IN_FLIGHT: Final = 32
ROUNDS: Final = 4
ROUND_S: Final = 1.0
WARM_UP_S: Final = 0.7
ECHO: Final = "/bench.Echo/Echo"
NAME: Final = "tenants/bench/integrations/github"

WANTED: Final = """\
apiVersion: tenon/v1
kind: Tenant
metadata: {name: bench}
spec: {display_name: Bench}
---
apiVersion: tenon/v1
kind: Credential
metadata: {name: token, tenant: bench}
spec: {type: bearer, values: {token: {file: token}}}
---
apiVersion: tenon/v1
kind: Integration
metadata: {name: github, tenant: bench}
spec: {provider: github, credential: token, config: {owner: bench}}
"""

Call = Callable[[], Awaitable[Any]]


def main() -> None:
    """Measure, and print one line of JSON a figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "token").write_text("bench-token")
        (folder / "bench.yaml").write_text(WANTED)
        with Stage(folder) as stage, _echo_server() as echo:
            stage.run("apply", str(folder / "bench.yaml"), shown=False)
            rates = asyncio.run(_measure(stage, echo))
    baseline = statistics.median(rates.pop("echo"))
    for figure, found in rates.items():
        value = statistics.median(found)
        line = {
            "bench": "rpc",
            "figure": figure,
            "value": round(value),
            "unit": "1/s",
            "baseline": "bare grpc.aio echo",
            "ratio": round(value / baseline, 3),
        }
        print(json.dumps(line))


async def _measure(stage: Stage, echo: str) -> dict[str, list[float]]:
    key = stage.owner_key.read_text().strip()
    # The key by hand: a client's interceptors would cost more than what is measured.
    metadata = (("authorization", f"Bearer {key}"),)
    async with open_channel(stage.where["registry"]) as ours, open_channel(echo) as theirs:
        integrations = integration_grpc.IntegrationServiceStub(ours)
        permissions = access_grpc.AccessServiceStub(ours)
        asked = integration.GetIntegrationRequest(name=NAME)
        may = access.CheckPermissionRequest(tenant="tenants/bench", permission="config.apply")
        bare = theirs.unary_unary(
            ECHO,
            request_serializer=integration.GetIntegrationRequest.SerializeToString,
            response_deserializer=integration.GetIntegrationRequest.FromString,
        )
        calls: dict[str, Call] = {
            "echo": lambda: bare(asked, metadata=metadata),
            "get_integration": lambda: integrations.GetIntegration(asked, metadata=metadata),
            "check_permission": lambda: permissions.CheckPermission(may, metadata=metadata),
        }
        return await _in_turns(calls)


async def _in_turns(calls: Mapping[str, Call]) -> dict[str, list[float]]:
    for call in calls.values():
        await _rate(call, WARM_UP_S)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rates[name].append(await _rate(call, ROUND_S))
    return rates


async def _rate(call: Call, duration_s: float) -> float:
    """Calls a second that were answered."""
    begun = time.perf_counter()
    until = begun + duration_s

    async def keep_calling() -> int:
        count = 0
        while time.perf_counter() < until:
            await call()
            count += 1
        return count

    counts = await asyncio.gather(*(keep_calling() for _ in range(IN_FLIGHT)))
    return sum(counts) / (time.perf_counter() - begun)


@contextmanager
def _echo_server() -> Iterator[str]:
    command = [sys.executable, "-m", "bench.rpc", "echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


async def _serve_echo() -> None:
    async def echo(request: Any, context: Any) -> Any:
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=integration.GetIntegrationRequest.FromString,
        response_serializer=integration.GetIntegrationRequest.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:] == ["echo"]:
        asyncio.run(_serve_echo())
    else:
        main()
