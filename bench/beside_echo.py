"""Calls in turns with a bare grpc.aio echo, which is what a figure is held against.

The echo's server is a process of its own on the same machine. Rounds take turns, and a ratio is the
median of pairs of one moment, so that what else the machine does falls on both alike; 32 calls are
in flight.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from operator import truediv
from typing import Any, Final

import grpc
from tenon.registry.v1 import integration_service_pb2 as integration

from services.chassis.channel import open_channel

IN_FLIGHT: Final = 32
ROUNDS: Final = 12
ROUND_S: Final = 0.4
WARM_UP_S: Final = 0.7
ECHO: Final = "/bench.Echo/Echo"
BASELINE: Final = "bare grpc.aio echo"

# By itself, an echo returns the name that others look for.
Message = integration.GetIntegrationRequest
Metadata = Sequence[tuple[str, str]]
Call = Callable[[], Awaitable[Any]]


async def measured(
    bench: str, calls: Mapping[str, Call], name: str, metadata: Metadata
) -> Sequence[Mapping[str, Any]]:
    """A bench's line for each call by figure; the echo says `name` with the same metadata."""
    with _echo_server() as target:
        async with _echo(target, name, metadata) as echo:
            found = await _in_turns({"": echo, **calls})
    bare = found.pop("")
    return [
        {
            "bench": bench,
            "figure": figure,
            "value": round(statistics.median(rates)),
            "unit": "1/s",
            "baseline": BASELINE,
            "ratio": round(statistics.median(map(truediv, rates, bare)), 3),
        }
        for figure, rates in found.items()
    ]


@asynccontextmanager
async def _echo(target: str, name: str, metadata: Metadata) -> AsyncIterator[Call]:
    async with open_channel(target) as channel:
        bare = channel.unary_unary(
            ECHO,
            request_serializer=Message.SerializeToString,
            response_deserializer=Message.FromString,
        )
        asked = Message(name=name)
        yield lambda: bare(asked, metadata=metadata)


async def _in_turns(calls: Mapping[str, Call]) -> dict[str, list[float]]:
    for call in calls.values():
        await _rate(call, WARM_UP_S)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(await _rate(call, ROUND_S))
    return found


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
    command = [sys.executable, "-m", "bench.beside_echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


async def _serve() -> None:
    async def echo(request: Any, context: Any) -> Any:
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=Message.FromString,
        response_serializer=Message.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
