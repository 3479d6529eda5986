"""How many webhooks one ingress process takes in, and how long each waits: `make bench-ingest`.

200 tenants with 1,000 endpoints; GitHub's signature is verified, two subscriptions an endpoint are
asked by CEL, and one event in ten starts a run. First as many as go with 64 connections, in turns
with the same aiohttp server doing nothing; then 2,500 a second, each at its own time: how long
until it was answered, counted from when it was to be sent. Generator, ingress and PostgreSQL share
the machine, and what they need of it is said.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from psycopg.conninfo import make_conninfo

from migrations import runner
from migrations.roles import Roles
from services import embedded
from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.evaluator import Evaluator
from services.chassis.ids import uuid7
from services.chassis.process import settle
from services.chassis.secret import Secret
from services.executor.engine import lanes
from services.executor.ingress import server
from services.executor.ingress.inbound import Inbound
from services.executor.ingress.streams import Counts, Streams
from services.executor.registry.connecting import RegistryConnecting
from services.executor.registry.credentials import LeasedKey, Resolved
from services.executor.registry.uses import Uses
from services.executor.store import projected, tenants
from services.executor.store.projected import ProjectedObject
from services.executor.store.tenants import ProjectedTenant
from services.providers.catalog import Catalog
from services.sandbox.sender import webhook_headers

TENANTS: Final = 200
ENDPOINTS_A_TENANT: Final = 5
CONNECTIONS: Final = 64
PACED: Final = 2_500
PACED_CONNECTIONS: Final = 256
LIMIT: Final = 5_000
LIMIT_MS: Final = 50.0
WARM_UP_S: Final = 2.0
ROUND_S: Final = 4.0
ROUNDS: Final = 3
PACED_S: Final = 8.0
ENVIRONMENT: Final = ("TENON_BENCH_DATABASE_URL", "TENON_BENCH_SYSTEM_DATABASE_URL")
ROLES: Final = Roles("bench")
SECRET: Final = Secret("the secret of every endpoint")
FILTERS: Final = ("event.payload.issue.number == 7", "event.payload.action == 'never'")
ID: Final = b"00000000-0000-0000-0000-000000000000"


def main() -> None:
    """Measure, and print a line of JSON for each figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["TENON_HOME"] = str(folder / "home")
        with embedded.start(folder / "state") as server:
            environment = _prepared(server)
            with _serving("serve", environment) as (pid, ours), _serving("bare", {}) as (_, bare):
                asyncio.run(_measured(pid, ours, bare))


async def _measured(pid: int, ours: int, bare: int) -> None:
    requests = _requests()
    await _rate(ours, requests, WARM_UP_S)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    cpu_us: list[float] = []
    # By turns, so that what else the machine does falls on both alike.
    for _ in range(ROUNDS):
        begun = _cpu_s(pid)
        rates["ours"].append(await _rate(ours, requests, ROUND_S))
        cpu_us.append((_cpu_s(pid) - begun) / (rates["ours"][-1] * ROUND_S) * 1e6)
        rates["bare"].append(await _rate(bare, requests, ROUND_S))
    rate, empty = (median(rates[name]) for name in ("ours", "bare"))
    _print("events", round(rate), "1/s", f"limit {LIMIT}/s; one process", rate / LIMIT)
    share = rate / empty
    _print("ratio", round(share, 3), "ratio", f"{empty:.0f}/s of an empty aiohttp server", share)
    _print("cpu", round(median(cpu_us)), "us", "of the ingress process, an event", 1)
    for figure, asked in (("p99", PACED), ("p99_at_half", int(rate / 2))):
        waits = await _waits(ours, requests, asked)
        late = quantiles(waits, n=100)
        told = f"limit {LIMIT_MS:.0f} ms at {asked}/s; {len(waits) / PACED_S:.0f}/s answered"
        _print(figure, round(late[98], 1), "ms", f"{told}, p50 {late[49]:.1f}", late[98] / LIMIT_MS)


def _print(figure: str, value: float, unit: str, baseline: str, ratio: float) -> None:
    line = {"bench": "ingest", "figure": figure, "value": value, "unit": unit}
    print(json.dumps({**line, "baseline": baseline, "ratio": round(ratio, 3)}), flush=True)


def _cpu_s(pid: int) -> float:
    """CPU time of all threads of a process: Linux makes a clock's number of its id."""
    return time.clock_gettime((~pid << 3) | 2)


class Connection:
    """One sender, who waits for each answer; requests are bytes, so that it costs little."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def send(self, request: bytes) -> None:
        """Send a delivery that nobody has seen yet, and wait until it is taken."""
        self._writer.write(request.replace(ID, str(uuid7()).encode(), 1))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
        await self._reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(f"a delivery was answered {head[:12]!r}")


async def _rate(port: int, requests: Sequence[bytes], duration_s: float) -> float:
    """Answers a second with every connection sending as soon as it may."""
    done, end = 0, time.perf_counter() + duration_s

    async def keep_sending(number: int) -> None:
        nonlocal done
        async with Connection(port) as connection:
            while time.perf_counter() < end:
                await connection.send(requests[number % len(requests)])
                number += CONNECTIONS
                done += 1

    begun = time.perf_counter()
    await asyncio.gather(*(keep_sending(number) for number in range(CONNECTIONS)))
    return done / (time.perf_counter() - begun)


async def _waits(port: int, requests: Sequence[bytes], asked: int) -> list[float]:
    """Milliseconds from when each was to be sent until it was answered, however late that was."""
    waits, begun = list[float](), time.perf_counter() + 0.2
    numbers = iter(range(int(asked * PACED_S)))

    async def keep_sending() -> None:
        async with Connection(port) as connection:
            for number in numbers:
                due = begun + number / asked
                await asyncio.sleep(due - time.perf_counter())
                if time.perf_counter() > begun + PACED_S:
                    # More was asked than it can do.
                    return
                await connection.send(requests[number % len(requests)])
                waits.append((time.perf_counter() - due) * 1e3)

    await asyncio.gather(*(keep_sending() for _ in range(PACED_CONNECTIONS)))
    return waits


def _requests() -> list[bytes]:
    """A delivery for each endpoint in turn, tenants mixed; the number in it is 7 in one of ten."""
    made = []
    for number in range(TENANTS * ENDPOINTS_A_TENANT * 10):
        path = f"/v1/t{number % TENANTS}/e{number // TENANTS % ENDPOINTS_A_TENANT}"
        issue = {"number": 7 if secrets.randbelow(10) == 0 else 8, "title": "x" * 500}
        body = json.dumps({"action": "opened", "issue": issue}).encode()
        headers = webhook_headers("issues", body, SECRET, ID.decode())
        head = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
        lines = [*head, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        made.append("\r\n".join(lines).encode() + body)
    return made


def _prepared(server: embedded.Embedded) -> Mapping[str, str]:
    """A migrated database with the tenants; where its logins are, for the environment."""
    admin = server.conninfo().reveal_text()
    passwords = {login: secrets.token_urlsafe(16) for login in ROLES.logins()}
    runner.upgrade(admin, ROLES, passwords)
    logins = (ROLES.app("executor"), ROLES.system("executor"))
    conninfos = [make_conninfo(admin, user=each, password=passwords[each]) for each in logins]
    asyncio.run(_project(conninfos))
    return dict(zip(ENVIRONMENT, conninfos, strict=True))


async def _project(conninfos: Sequence[str]) -> None:
    async with Database(*map(Secret, conninfos)) as database:
        for number in range(TENANTS):
            tenant = ProjectedTenant(uuid7(), f"t{number}", enabled=True, revision=1)
            async with database.tenant(tenant.tenant_id) as tx:
                await tenants.write(tx, tenant, seen=None)
                await projected.replace(tx, tenant.tenant_id, _wanted())


def _wanted() -> list[ProjectedObject]:
    step = {"name": "who", "integration": "github", "operation": "get_authenticated_user"}
    found: dict[tuple[str, str], dict[str, Any]] = {
        ("Integration", "github"): {"provider": "github", "credential": "", "is_active": True},
        ("Credential", "hook"): {"type": "webhook_secret"},
        ("Connector", "triage"): {"steps": [step], "is_active": True},
    }
    for number in range(ENDPOINTS_A_TENANT):
        name = f"e{number}"
        found["WebhookEndpoint", name] = {
            "integration": "github", "secret": "hook", "is_active": True, "auth": "SIGNATURE",
        }  # fmt: skip
        for index, text in enumerate(FILTERS):
            found["Subscription", f"{name}-{index}"] = {
                "endpoint": name, "event_types": ["issues.*"], "filter": text,
                "connector": "triage", "is_active": True,
            }  # fmt: skip
    return [ProjectedObject(kind, uuid7(), name, 1, spec) for (kind, name), spec in found.items()]


@contextmanager
def _serving(what: str, environment: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its id and its port."""
    command = [sys.executable, "-m", "bench.ingest", what]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.pid, int(server.stdout.readline())
        finally:
            server.terminate()


class Known:
    """The secrets as the registry's client has them once it has asked: in memory."""

    def __init__(self) -> None:
        self._key = LeasedKey(UUID(int=1), Secret(secrets.token_bytes(32)))
        self._resolved = Resolved(UUID(int=2), "webhook_secret", 1, {"secret": SECRET})

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
        """The one key."""
        return self._key

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The one secret."""
        return self._resolved

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        """Nothing is newer."""


async def serve() -> None:
    """The ingress, until it is stopped."""
    conninfos = [Secret(os.environ[name]) for name in ENVIRONMENT]
    async with (
        Database(*conninfos, constraints=lanes.CONSTRAINTS) as database,
        Evaluator() as evaluator,
        open_channel("127.0.0.1:1") as nowhere,
    ):
        inbound = Inbound(database, Known(), Catalog.load(), evaluator, Uses())
        streams = Streams(inbound, database, Counts())
        connecting = RegistryConnecting(nowhere)
        async with server.serving(inbound, streams, connecting, "127.0.0.1", 0) as port:
            await _until_stopped(port)


async def bare() -> None:
    """A server of the same kind that reads the body and answers."""

    async def receive(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"event": ID.decode()}, status=202)

    application = web.Application()
    application.router.add_post("/v1/{tenant}/{endpoint}", receive)
    async with _running(application) as port:
        await _until_stopped(port)


@asynccontextmanager
async def _running(application: web.Application) -> Any:
    runner_ = web.AppRunner(application, access_log=None)
    await runner_.setup()
    await web.TCPSite(runner_, "127.0.0.1", 0).start()
    yield int(runner_.addresses[0][1])
    await runner_.cleanup()


async def _until_stopped(port: int) -> None:
    settle()
    print(port, flush=True)
    await asyncio.Event().wait()


SERVERS: Final = {"serve": serve, "bare": bare}

if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(SERVERS[sys.argv[1]]())
    else:
        main()
