"""How much work a worker moves, and what of others' work it feels: `make bench-lanes`.

No-op items of 200 tenants in 1,000 lanes are claimed, run and recorded by worker processes of their
own, each tenant inside its row-level security. The same at 10,000 and at 1,000,000 stored items,
with two processes, and beside a lane that is dead. Then how long a tenant's single item waits while
another tenant enqueues 100,000 at once.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final
from uuid import UUID, uuid4

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import text

from migrations import runner
from migrations.roles import Roles
from services import embedded
from services.chassis.database import Database, Statement
from services.chassis.ids import uuid7
from services.chassis.process import background
from services.chassis.secret import Secret
from services.executor.engine import lanes, steering
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Claimed, Done, LanePolicy, Why, WorkItem
from services.executor.engine.worker import Worker, WorkerLimits

TENANTS: Final = 200
LANES_A_TENANT: Final = 5
FEW, MANY = 10_000, 1_000_000
BLOCKED: Final = 200_000
FLOOD: Final = 100_000
LIMIT: Final = 5_000
DELAY_LIMIT_S: Final = 1.0
WARM_UP_S: Final = 1.0
MEASURED_S: Final = 6.0
ROUNDS: Final = 3
REPORT_S: Final = 0.25
GLANCE_S: Final = 0.005
ENVIRONMENT: Final = ("TENON_BENCH_DATABASE_URL", "TENON_BENCH_SYSTEM_DATABASE_URL")
ROLES: Final = Roles("bench")
COPY_WORK: Final = (
    "COPY executor.work (tenant_id, work_id, kind, lane_id, target_id, blocked, due_at, priority,"
    " attempt, claim_id, lease_until) FROM STDIN"
)
WAKE: Final = (
    "UPDATE executor.lanes SET next_at = now()",
    "UPDATE executor.tenant_lanes SET next_at = now()",
    # Else it is done while others are measured.
    "VACUUM ANALYZE executor.work, executor.lanes, executor.tenant_lanes",
    "CHECKPOINT",
)
REVIVE: Final = "UPDATE executor.lanes SET breaker = 'CLOSED', concurrency = 16"
DEAD: Final = {
    "open": "UPDATE executor.lanes SET breaker = 'OPEN', open_until = now() + interval '1 day'"
    " WHERE lane_id = %s",
    "full": "UPDATE executor.lanes SET concurrency = 1 WHERE lane_id = %s",
}
"""What makes a lane begin nothing: its breaker is open, or what runs takes all its places."""

LEFT: Final = Statement(text("SELECT FROM executor.work WHERE target_id = :target_id"))

Lanes = list[tuple[UUID, UUID]]


class Nothing:
    """The kind of work that is nothing but work."""

    name = "nothing"

    async def prepare(self, claimed: Claimed) -> None:
        """Nothing."""

    async def call(self, claimed: Claimed, prepared: None) -> Done:
        """Nothing."""
        return Done()

    def give_up(self, claimed: Claimed, why: Why) -> Done:
        """Nothing."""
        return Done()


def main() -> None:
    """Measure, and print a line of JSON for each figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["TENON_HOME"] = str(folder / "home")
        with embedded.start(folder / "state") as server:
            bench = LanesBench(server)
            _measure_rates(bench)
            _measure_delay(bench)


def _measure_rates(bench: "LanesBench") -> None:
    few, beside = [], {dead: list[float]() for dead in DEAD}
    # By turns, so that what else the machine does falls on all alike.
    for _ in range(ROUNDS):
        few.append(bench.rate(FEW * 6))
        for dead, rates in beside.items():
            rates.append(bench.rate(FEW * 6, dead=dead))
    alone = median(few)
    _print("items", alone, f"limit {LIMIT}/s; one process, {FEW * 6} stored", alone / LIMIT)
    for dead, rates in beside.items():
        baseline = f"{alone:.0f}/s without {BLOCKED} items in a dead lane"
        _print(f"items_beside_{dead}_lane", median(rates), baseline, median(rates) / alone)
    many, two = bench.rate(MANY), bench.rate(FEW * 12, processes=2)
    _print("items_stored_1m", many, f"{alone:.0f}/s with {FEW * 6} stored", many / alone)
    _print("items_two_processes", two, f"{alone:.0f}/s with one process", two / alone)


def _measure_delay(bench: "LanesBench") -> None:
    idle, flooded = bench.delays(0), bench.delays(FLOOD)
    baseline = f"limit {DELAY_LIMIT_S} s; {max(idle):.3f} s without"
    worst = max(flooded)
    _print("single_item_delay_beside_flood", worst, baseline, worst / DELAY_LIMIT_S, "s")


class LanesBench:
    """A migrated database, lanes, and workers on them."""

    def __init__(self, server: embedded.Embedded) -> None:
        self._admin = server.conninfo()
        passwords = {login: secrets.token_urlsafe(16) for login in ROLES.logins()}
        runner.upgrade(self._admin.reveal_text(), ROLES, passwords)
        logins = (ROLES.app("executor"), ROLES.system("executor"))
        self._conninfos = [
            make_conninfo(self._admin.reveal_text(), user=login, password=passwords[login])
            for login in logins
        ]
        (self._dead, *self._lanes) = asyncio.run(self._made())

    def rate(self, stored: int, processes: int = 1, dead: str = "") -> float:
        """Items a second that so many processes move of so many stored, beside a dead lane."""
        self._store(stored, dead)
        with self._working(processes) as workers:
            time.sleep(WARM_UP_S + MEASURED_S)
        return sum(_rate_of(worker) for worker in workers)

    def delays(self, flood: int) -> list[float]:
        """How long single items of a tenant wait while another's flood comes and is worked off."""
        self._store(0)
        with self._working(1):
            return asyncio.run(self._delays(flood))

    async def _delays(self, flood: int) -> list[float]:
        delays, tenant_id = [], self._lanes[-1][0]
        async with Database(*map(Secret, self._conninfos)) as database:
            with self._process("--flood", str(flood), str(self._lanes[0][0])) as flooding:
                end = time.monotonic() + MEASURED_S
                while time.monotonic() < end or flooding.poll() is None:
                    delays.append(await self._delay(database, tenant_id))
        assert flooding.returncode == 0
        return delays

    async def _delay(self, database: Database, tenant_id: UUID) -> float:
        """Enqueue one, and wait until it is recorded."""
        item = WorkItem(Nothing.name, self._lanes[-1][1], uuid4())
        begun = time.monotonic()
        async with database.tenant(tenant_id) as tx:
            await lanes.enqueue(tx, tenant_id, [item])
        while await database.read(tenant_id, LEFT, target_id=item.target_id):
            await asyncio.sleep(GLANCE_S)
        return time.monotonic() - begun

    async def _made(self) -> Lanes:
        found = [uuid4() for _ in range(TENANTS)]
        made: Lanes = []
        async with Database(*map(Secret, self._conninfos)) as database:
            for tenant_id in found:
                # The first tenant has one more, to be dead.
                count = LANES_A_TENANT + (not made)
                policies = {uuid4(): LanePolicy() for _ in range(count)}
                async with database.tenant(tenant_id) as tx:
                    await steering.shape(tx, tenant_id, Nothing.name, policies)
                made += [(tenant_id, lane_id) for lane_id in policies]
        return made

    def _store(self, count: int, dead: str = "") -> None:
        with psycopg.connect(self._admin.reveal_text(), autocommit=True) as admin:
            admin.execute("TRUNCATE executor.work")
            admin.execute(REVIVE)
            with admin.cursor().copy(COPY_WORK) as copy:
                for number in range(BLOCKED if dead else 0):
                    copy.write_row(_row(self._dead, claimed=dead == "full" and number == 0))
                for number in range(count):
                    copy.write_row(_row(self._lanes[number % len(self._lanes)]))
            if dead:
                admin.execute(DEAD[dead], [self._dead[1]])
            for statement in WAKE:
                admin.execute(statement)

    @contextmanager
    def _working(self, processes: int) -> Iterator[list["subprocess.Popen[str]"]]:
        workers = [self._process("--work") for _ in range(processes)]
        try:
            for worker in workers:
                assert worker.stdout is not None
                worker.stdout.readline()
            yield workers
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait()

    def _process(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, **dict(zip(ENVIRONMENT, self._conninfos, strict=True))}
        command = [sys.executable, "-m", "bench.lanes", *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _row(lane: tuple[UUID, UUID], *, claimed: bool = False) -> tuple[object, ...]:
    tenant_id, lane_id = lane
    claim = (uuid7(), "2100-01-01T00:00:00Z") if claimed else (None, None)
    due = "2026-01-01T00:00:00Z"
    return (tenant_id, uuid7(), Nothing.name, lane_id, uuid7(), False, due, 0, 0, *claim)


def _rate_of(worker: "subprocess.Popen[str]") -> float:
    """Items a second, by what a worker has reported since it was warm and until all was done."""
    assert worker.stdout is not None
    with worker.stdout as lines:
        reports = [(float(at), int(done)) for at, done in map(str.split, lines)]
    warm = [(at, done) for at, done in reports if at >= reports[0][0] + WARM_UP_S]
    busy = [warm[0], *(later for before, later in pairwise(warm) if later[1] > before[1])]
    (begun, first), (ended, last) = busy[0], busy[-1]
    return (last - first) / (ended - begun)


def _print(figure: str, value: float, baseline: str, ratio: float, unit: str = "1/s") -> None:
    shown = round(value) if unit == "1/s" else round(value, 3)
    line = {"bench": "lanes", "figure": figure, "value": shown, "unit": unit}
    print(json.dumps({**line, "baseline": baseline, "ratio": round(ratio, 3)}), flush=True)


def _database() -> Database:
    conninfos = [Secret(os.environ[name]) for name in ENVIRONMENT]
    return Database(*conninfos, constraints=lanes.CONSTRAINTS)


async def flood(count: int, tenant_id: UUID) -> None:
    """Enqueue so many for one tenant, as fast as it goes."""
    lane_ids = [uuid4() for _ in range(LANES_A_TENANT)]
    items = [
        WorkItem(Nothing.name, lane_ids[number % len(lane_ids)], uuid4()) for number in range(count)
    ]
    async with _database() as database:
        for at in range(0, count, FEW):
            async with database.tenant(tenant_id) as tx:
                await lanes.enqueue(tx, tenant_id, items[at : at + FEW])


async def work() -> None:
    """One worker process, until it is stopped."""
    async with _database() as database:
        worker = Worker(
            database, {Nothing.name: Nothing()}, Recorder(database), WorkerLimits(items=1024)
        )
        async with background(worker.run()):
            while True:
                done = worker.meters[Nothing.name].outcomes["done"]
                print(time.monotonic(), done, flush=True)
                await asyncio.sleep(REPORT_S)


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        asyncio.run(work())
    elif sys.argv[1:2] == ["--flood"]:
        asyncio.run(flood(int(sys.argv[2]), UUID(sys.argv[3])))
    else:
        main()
