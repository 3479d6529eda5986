"""How many events a work process delivers, signed and on record: `make bench-delivery`.

Deliveries of 200 tenants to 1,000 endpoints, whose receiver is a process of its own, in turns with
bare POSTs of the same bodies by the same process. The same with more and more deliveries stored
that have ended.
"""

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from operator import truediv
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import aiohttp
import psycopg
from aiohttp import web
from psycopg.conninfo import make_conninfo

from migrations import runner
from migrations.roles import Roles
from services import embedded
from services.chassis.database import Database
from services.chassis.egress import Egress, parse_allow
from services.chassis.ids import uuid7
from services.chassis.process import background, ready_until_told
from services.chassis.secret import Secret
from services.executor.deliveries.messages import message
from services.executor.deliveries.policies import KIND, policy_of
from services.executor.deliveries.sending import Sending
from services.executor.deliveries.webhooks import webhooks
from services.executor.engine import lanes, steering
from services.executor.engine.recorder import Recorder
from services.executor.engine.worker import Worker, WorkerLimits
from services.executor.events import accepting
from services.executor.events.accepting import PUBLISHED
from services.executor.registry.credentials import LeasedKey, Resolved
from services.executor.sealing import Row, sealed_bytes
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject

TENANTS: Final = 200
ENDPOINTS_A_TENANT: Final = 5
STORED: Final = (10_000, 100_000, 1_000_000)
DUE: Final = 40_000
ROUNDS: Final = 6
ROUND_S: Final = 2.0
BARE_S: Final = 1.0
AIM: Final = 2_000
# Most of them wait for their receiver.
LIMITS: Final = WorkerLimits(items=512)
DUE_AT: Final = "2026-01-01T00:00:00Z"
TYPE: Final = "invoice.paid"
DATA: Final = json.dumps({"total": 7.5, "lines": [{"what": "a thing", "count": 3}] * 10}).encode()
ENVIRONMENT: Final = ("TENON_BENCH_DATABASE_URL", "TENON_BENCH_SYSTEM_DATABASE_URL")
ROLES: Final = Roles("bench")
COPY: Final = {
    "events": "tenant_id, id, endpoint_id, type, delivery_key, headers, body, data_key_id,"
    " sealed_headers",
    "deliveries": "tenant_id, id, event_id, event_type, endpoint_id, endpoint, subscription, state,"
    " payload_hash",
    "work": "tenant_id, work_id, kind, lane_id, target_id, blocked, due_at, priority, attempt",
}
NEW_TENANT: Final = (
    "INSERT INTO executor.tenants (tenant_id, slug, enabled, revision) VALUES (%s, %s, true, 1)"
)
# Ids of one millisecond.
ENDED_ID: Final = (
    "(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008'"
    " || lpad(to_hex(nth), 15, '0'))::uuid"
)
END_MORE: Final = (
    (
        "CREATE TEMPORARY TABLE ended AS"
        f" SELECT tenant_id, object_id, name, {ENDED_ID} AS id FROM"
        " (SELECT *, row_number() OVER () - 1 AS place FROM executor.projected_objects"
        "  WHERE kind = 'WebhookEndpoint') AS endpoint JOIN generate_series({first}, {last}) AS nth"
        f" ON nth % {TENANTS * ENDPOINTS_A_TENANT} = place"
    ),
    (
        "INSERT INTO executor.deliveries (tenant_id, id, event_id, event_type, endpoint_id,"
        " endpoint, subscription, state, attempts, response_status, payload_hash, ended_at)"
        f" SELECT tenant_id, id, id, '{TYPE}', object_id, name, 'all', 'success', 1, 200,"
        " sha256(''), now() FROM ended"
    ),
    (
        "INSERT INTO executor.delivery_attempts (tenant_id, delivery_id, number, started_at,"
        " duration_ms, response_status, failure_reason, response_head)"
        " SELECT tenant_id, id, 1, now(), 12, 200, '', 'thanks' FROM ended"
    ),
    "DROP TABLE ended",
)
WAKE: Final = (
    "UPDATE executor.lanes SET next_at = now()",
    "UPDATE executor.tenant_lanes SET next_at = now()",
    # Else it is done while deliveries are measured.
    (
        "VACUUM ANALYZE executor.work, executor.lanes, executor.tenant_lanes, executor.deliveries,"
        " executor.delivery_attempts, executor.events"
    ),
    "CHECKPOINT",
)


class Keys:
    """The registry's answers, which an executor has in memory: a key and a secret for all."""

    _key = LeasedKey(UUID(int=1), Secret(bytes(32)))
    _signing = Resolved(
        UUID(int=2), "webhook_secret", 1, {"secret": Secret("whsec_" + "c2VjcmV0" * 4)}
    )

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
        """The key."""
        return self._key

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The secret."""
        return self._signing

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        """Never called."""

    def seal(self, row: Row, column: str, plaintext: bytes) -> bytes:
        """As events are kept."""
        return sealed_bytes(self._key, row, column, plaintext)

    @property
    def id(self) -> UUID:
        """The key's."""
        return self._key.data_key_id


def main() -> None:
    """Measure, and print a line of JSON for each figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["TENON_HOME"] = str(folder / "home")
        with embedded.start(folder / "state") as server, _process("--receive") as receiver:
            bench = DeliveriesBench(server, json.loads(_line(receiver))["port"])
            few, bare, beside = bench.rates(STORED[0])
            _print("deliveries", few, f"aim {AIM}/s; {STORED[0]} stored", few / AIM)
            _print("beside_bare", few, f"{bare:.0f}/s bare POSTs of the same bodies", beside)
            for stored in STORED[1:]:
                rate, _, ratio = bench.rates(stored)
                told = f"{few:.0f}/s with {STORED[0]} stored; ratio of what both are to bare POSTs"
                _print(f"deliveries_stored_{stored}", rate, told, ratio / beside)


class DeliveriesBench:
    """A migrated database, endpoints at a port, and a process that delivers to them."""

    def __init__(self, server: embedded.Embedded, port: int) -> None:
        self._admin, self._port = server.conninfo().reveal_text(), port
        passwords = {login: secrets.token_urlsafe(16) for login in ROLES.logins()}
        runner.upgrade(self._admin, ROLES, passwords)
        logins = (ROLES.app("executor"), ROLES.system("executor"))
        self._conninfos = [
            make_conninfo(self._admin, user=login, password=passwords[login]) for login in logins
        ]
        self._ended = 0
        self._places = asyncio.run(self._made())

    def rates(self, stored: int) -> tuple[float, float, float]:
        """Deliveries and bare POSTs a second, and their ratio, with so many stored."""
        self._store(stored)
        environment = dict(zip(ENVIRONMENT, self._conninfos, strict=True))
        with _process("--work", self._url, **environment) as worker:
            rounds = [json.loads(_line(worker)) for _ in range(ROUNDS)]
        with psycopg.connect(self._admin) as admin:
            if not admin.execute("SELECT FROM executor.work LIMIT 1").fetchall():
                raise RuntimeError("what was due did not last for all rounds")
        ours, bare = zip(*rounds, strict=True)
        ratio = statistics.median(map(truediv, ours, bare))
        return statistics.median(ours), statistics.median(bare), ratio

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    async def _made(self) -> list[tuple[UUID, ProjectedObject]]:
        """Tenants with endpoints and their lanes."""
        made: list[tuple[UUID, ProjectedObject]] = []
        secret = ProjectedObject("Credential", uuid4(), "signing", 1, {"type": "webhook_secret"})
        with psycopg.connect(self._admin, autocommit=True) as admin:
            async with Database(*map(Secret, self._conninfos)) as database:
                for number in range(TENANTS):
                    tenant_id = uuid4()
                    admin.execute(NEW_TENANT, [tenant_id, f"t{number}"])
                    endpoints = [_endpoint(self._url, at) for at in range(ENDPOINTS_A_TENANT)]
                    policies = {each.object_id: policy_of(each.spec) for each in endpoints}
                    async with database.tenant(tenant_id) as tx:
                        await projected.replace(tx, tenant_id, [secret, *endpoints])
                    async with database.tenant(tenant_id) as tx:
                        await steering.shape(tx, tenant_id, KIND, policies)
                    made += [(tenant_id, each) for each in endpoints]
        return made

    def _store(self, stored: int) -> None:
        """End as many more as are wanted, and have new ones due."""
        with psycopg.connect(self._admin, autocommit=True) as admin:
            admin.execute("TRUNCATE executor.work")
            for statement in END_MORE:
                admin.execute(statement.format(first=self._ended, last=stored - 1).encode())
            self._ended = stored
            due = [_rows(*self._places[at % len(self._places)]) for at in range(DUE)]
            for at, (table, columns) in enumerate(COPY.items()):
                command = f"COPY executor.{table} ({columns}) FROM STDIN"
                with admin.cursor().copy(command.encode()) as copy:
                    for rows in due:
                        copy.write_row(rows[at])
            for statement in WAKE:
                admin.execute(statement.encode())


def _endpoint(url: str, number: int) -> ProjectedObject:
    """As the registry tells it, with what it fills in."""
    delivery = {
        "timeout": "30s",
        "retries": ["5s"],
        "concurrency": 16,
        "rate_per_minute": 0,
        "ordering": "none",
        "key": "",
    }
    spec = {
        "direction": "OUTBOUND",
        "integration": None,
        "secret": "signing",
        "is_active": True,
        "auth": "SIGNATURE",
        "credential": None,
        "auth_header": "",
        "url": url,
        "headers": {},
        "delivery": delivery,
    }
    return ProjectedObject("WebhookEndpoint", uuid4(), f"out{number}", 0, spec)


def _rows(tenant_id: UUID, endpoint: ProjectedObject) -> tuple[tuple[Any, ...], ...]:
    """A delivery that is due, in the order of COPY."""
    event_id, delivery_id, keys = uuid7(), uuid7(), Keys()
    row = Row(accepting.TABLE, tenant_id, event_id)
    sealed = (
        keys.seal(row, accepting.BODY, DATA),
        keys.id,
        keys.seal(row, accepting.HEADERS, b"{}"),
    )
    return (
        (tenant_id, event_id, PUBLISHED, TYPE, str(event_id), "{}", *sealed),
        (
            *(tenant_id, delivery_id, event_id, TYPE, endpoint.object_id, endpoint.name, "all"),
            *("queued", sha256(message(event_id, TYPE, DATA)).digest()),
        ),
        (tenant_id, uuid7(), KIND, endpoint.object_id, delivery_id, False, DUE_AT, 0, 0),
    )


@contextmanager
def _process(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "bench.deliveries", *arguments]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _print(figure: str, value: float, baseline: str, ratio: float) -> None:
    line = {"bench": "deliveries", "figure": figure, "value": round(value), "unit": "1/s"}
    print(json.dumps({**line, "baseline": baseline, "ratio": round(ratio, 3)}), flush=True)


async def work(url: str) -> None:
    """One work process: rounds of deliveries and of bare POSTs, each pair printed; one warms up."""
    conninfos = [Secret(os.environ[name]) for name in ENVIRONMENT]
    async with (
        Database(*conninfos, constraints=lanes.CONSTRAINTS) as database,
        Egress(parse_allow("127.0.0.1/32:*")) as egress,
        aiohttp.ClientSession() as session,
    ):
        recorder = Recorder(database)
        sending = Sending(database, Keys(), webhooks(egress), recorder)
        for number in range(ROUNDS + 1):
            worker = Worker(database, {KIND: sending}, recorder, LIMITS)
            pair = (await _delivered(worker), await _posted(session, url))
            if number:
                print(json.dumps(pair), flush=True)


async def _delivered(worker: Worker) -> float:
    """Deliveries a second that were recorded."""
    begun, outcomes = time.perf_counter(), worker.meters[KIND].outcomes
    async with background(worker.run()):
        await asyncio.sleep(ROUND_S)
        rate = outcomes["done"] / (time.perf_counter() - begun)
    if outcomes["failed"]:
        raise RuntimeError(f"{outcomes['failed']} deliveries failed")
    return rate


async def _posted(session: aiohttp.ClientSession, url: str) -> float:
    """Bare POSTs a second that were answered."""
    begun, body = time.perf_counter(), message(uuid7(), TYPE, DATA)
    count = 0

    async def keep_posting() -> None:
        nonlocal count
        while time.perf_counter() < begun + BARE_S:
            async with session.post(url, data=body) as answer:
                answer.raise_for_status()
                await answer.read()
            count += 1

    await asyncio.gather(*(keep_posting() for _ in range(LIMITS.items)))
    return count / (time.perf_counter() - begun)


async def receive() -> None:
    """The receiver's process: takes everything."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="thanks")

    application = web.Application()
    application.router.add_post("/", take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await ready_until_told(port=runner.addresses[0][1])
    await runner.cleanup()


if __name__ == "__main__":
    if sys.argv[1:] == ["--receive"]:
        asyncio.run(receive())
    elif sys.argv[1:2] == ["--work"]:
        asyncio.run(work(sys.argv[2]))
    else:
        main()
