"""What it costs to know who calls and what they may: `make bench-access`.

CPU time of a server process for each call, all its threads together, as the kernel counts it. One
process serves the same RPC three times: bare, within the frame but without gates, and with the
gates that ask the registry's own tables; rounds take turns. Callers have keys of their own, and
call one after the other.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
from tenon.registry.v1 import tenant_service_pb2 as pb2

from services import embedded
from services.chassis.database import Database
from services.chassis.interceptors import Gate, Gates
from services.chassis.process import background
from services.chassis.secret import Secret
from services.chassis.server import Listen, Service, serving
from services.chassis.usage import Counter
from services.deployment import DATABASE, Deployment, create_database
from services.registry.access import key_text as keys
from services.registry.access.control import AccessControl
from services.registry.store.tenants import Tenants

FEW: Final = 10
MANY: Final = int(os.environ.get("TENON_BENCH_KEYS", "100000"))
CALLING: Final = 1000
"""At most so many keys call; the others are in the table."""
IN_FLIGHT: Final = 32
ROUNDS: Final = 15
ROUND_S: Final = 0.4
OVERHEAD_US: Final = 100
INTERCEPTORS_US: Final = 300

SERVICE: Final = pb2.DESCRIPTOR.services_by_name["TenantService"]
RPC: Final = f"/{SERVICE.full_name}/GetTenant"
ASKED: Final = pb2.GetTenantRequest(name="tenants/bench")
ANSWER: Final = pb2.Tenant(name="tenants/bench", display_name="Bench")

SEED: Final = """
    INSERT INTO registry.tenants
        (tenant_id, slug, display_name, state, enabled, limits, labels, annotations, revision)
    VALUES (gen_random_uuid(), 'bench', 'Bench', 'active', true, '{}', '{}', '{}', 1)
    ON CONFLICT DO NOTHING
"""
CALLERS: Final = """
    WITH made AS (
        INSERT INTO registry.principals (principal_id, kind, issuer, subject, display_name)
        SELECT id, 'service', '', id::text, 'caller'
        FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, %(count)s)) AS new
        RETURNING principal_id
    ), bound AS (
        INSERT INTO registry.role_bindings
            (tenant_id, binding_id, name, labels, annotations, revision, role, principal_kind,
             issuer, subject, kinds, sources)
        SELECT tenant_id, gen_random_uuid(), 'of-' || principal_id, '{}', '{}', 1, 'ADMIN',
               'service', '', principal_id::text, '{}', '{*}'
        FROM made, registry.tenants WHERE slug = 'bench'
    )
    INSERT INTO registry.api_keys
        (key_id, environment, principal_id, name, digest, scopes, address_ranges, last4, metadata,
         created_by, created_by_id)
    SELECT substr(md5(principal_id::text), 1, 12), 'bench', principal_id, 'bench',
           sha256(principal_id::text::bytea), '{*}', '{}', 'last', '{}', '', principal_id
    FROM made RETURNING key_id
"""


def main() -> None:
    """Measure with few and with many keys, and print one line of JSON a figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["TENON_HOME"] = str(folder / "home")
        deployment = Deployment(folder / "state")
        with embedded.start(folder / "server") as server:
            create_database(server.conninfo())
            admin = server.conninfo(DATABASE)
            deployment.prepare(admin)
            few = _measured(deployment, admin, FEW)
            many = _measured(deployment, admin, MANY - FEW)
    for count, found in ((FEW, few), (MANY, many)):
        _print("overhead", found["frame"], OVERHEAD_US, count, "without gates")
        _print("interceptors", found["bare"], INTERCEPTORS_US, count, "bare echo")
    ratio = many["frame"] / few["frame"]
    flat = {"bench": "access", "figure": "flat", "value": round(ratio, 2), "unit": "ratio"}
    print(json.dumps(flat | {"baseline": f"overhead with {FEW} keys", "keys": MANY}))


def _print(figure: str, value: float, limit: int, count: int, baseline: str) -> None:
    line = {"bench": "access", "figure": figure, "value": round(value, 1), "unit": "us"}
    rest = {"baseline": baseline, "limit": limit, "ratio": round(value / limit, 3), "keys": count}
    print(json.dumps(line | rest))


def _measured(deployment: Deployment, admin: Secret, more: int) -> Mapping[str, float]:
    """What a call costs more than of the servers without, once there are so many keys more."""
    callers = _add_keys(deployment, admin, more)
    with _servers(deployment) as (pid, ports):
        return asyncio.run(_in_turns(pid, ports, callers))


def _add_keys(deployment: Deployment, admin: Secret, count: int) -> Sequence[str]:
    """Add principals with a role and a key each; answers with the keys of those that will call."""
    pepper = Secret(bytes.fromhex(_setting(deployment, "PEPPER")))
    callers = [keys.new_key("bench", pepper) for _ in range(min(count, CALLING))]
    with psycopg.connect(admin.reveal_text()) as connection:
        connection.execute(SEED)
        made = connection.execute(CALLERS, {"count": count}).fetchall()
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE registry.api_keys SET key_id = %s, digest = %s WHERE key_id = %s",
                [
                    (each.key_id, each.digest, old)
                    for each, (old,) in zip(callers, made, strict=False)
                ],
            )
        connection.execute("ANALYZE")
    return [each.text.reveal_text() for each in callers]


def _setting(deployment: Deployment, name: str) -> str:
    return Path(deployment.environment("registry")[f"TENON_REGISTRY_{name}_FILE"]).read_text()


async def _in_turns(
    pid: int, ports: Mapping[str, int], callers: Sequence[str]
) -> Mapping[str, float]:
    channels = {name: grpc.aio.insecure_channel(f"127.0.0.1:{ports[name]}") for name in ports}
    costs: dict[str, list[float]] = {name: [] for name in ports}
    try:
        calls = {
            name: channel.unary_unary(
                RPC,
                request_serializer=pb2.GetTenantRequest.SerializeToString,
                response_deserializer=pb2.Tenant.FromString,
            )
            for name, channel in channels.items()
        }
        said = [(("authorization", f"Bearer {key}"),) for key in callers]
        for call in calls.values():
            # The first sight of a key is no part of what a call costs.
            for metadata in said:
                await call(ASKED, metadata=metadata)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                costs[name].append(await _cost(pid, call, said))
    finally:
        for channel in channels.values():
            await channel.close()
    gates = costs.pop("gates")
    # Pairs of one moment: a busy machine slows both.
    return {
        name: statistics.median(whole - part for whole, part in zip(gates, found, strict=True))
        for name, found in costs.items()
    }


async def _cost(pid: int, call: Any, said: Sequence[Any]) -> float:
    """CPU microseconds of the process for each call of one round."""
    until = time.perf_counter() + ROUND_S
    begun, count = _cpu_s(pid), 0

    async def keep_calling(first: int) -> None:
        nonlocal count
        number = first
        while time.perf_counter() < until:
            await call(ASKED, metadata=said[number % len(said)])
            number += IN_FLIGHT
            count += 1

    await asyncio.gather(*(keep_calling(first) for first in range(IN_FLIGHT)))
    return (_cpu_s(pid) - begun) / count * 1e6


def _cpu_s(pid: int) -> float:
    """CPU time of all threads of a process: Linux makes a clock's number of its id."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def _servers(deployment: Deployment) -> Iterator[tuple[int, Mapping[str, int]]]:
    command = [sys.executable, "-m", "bench.access", "serve", str(deployment.state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.pid, json.loads(server.stdout.readline())
        finally:
            server.terminate()


class _Echo:
    """Answers every RPC of the contract at once."""

    def __getattr__(self, name: str) -> Any:
        async def answer(request: Any, call: Any) -> pb2.Tenant:
            return ANSWER

        return answer


async def _serve(state: Path) -> None:
    deployment = Deployment(state)
    tenant, system = (
        Secret(_setting(deployment, name)) for name in ("DATABASE_URL", "SYSTEM_DATABASE_URL")
    )
    pepper = Secret(bytes.fromhex(_setting(deployment, "PEPPER")))
    async with Database(tenant, system) as database:
        access = AccessControl(database, pepper)
        counter = Counter()
        gates = Gates(access, Tenants(database), observe=counter.observe).in_order()
        async with (
            background(access.invalidations.listen()),
            _framed([]) as frame,
            _framed([*gates, counter.follow]) as gated,
        ):
            bare = grpc.aio.server()
            bare.add_generic_rpc_handlers((_bare(),))
            ports = {"bare": bare.add_insecure_port("127.0.0.1:0"), "frame": frame, "gates": gated}
            await bare.start()
            print(json.dumps(ports), flush=True)
            await bare.wait_for_termination()


def _framed(gates: Sequence[Gate]) -> Any:
    return serving([Service(SERVICE, _Echo())], gates, Listen("127.0.0.1:0"))


def _bare() -> grpc.GenericRpcHandler:
    async def answer(request: Any, context: Any) -> pb2.Tenant:
        return ANSWER

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=pb2.GetTenantRequest.FromString,
        response_serializer=pb2.Tenant.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE.full_name, {"GetTenant": handler})


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(Path(sys.argv[2])))
    else:
        main()
