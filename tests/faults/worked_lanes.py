"""Lanes under worker processes that are killed, on a server that is restarted: what was enqueued, and became of it."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from psycopg.conninfo import make_conninfo

from migrations import runner
from migrations.roles import Roles
from services import embedded
from services.chassis.child import bound
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.executor import lanes
from services.executor.work import LanePolicy, WorkItem
from tests.family import ROOT, plain_environment, until
from tests.faults.lane_worker import ENVIRONMENT, KIND, LEASE_S, LEDGER

ROLES: Final = Roles("faults")
TENANTS: Final = 20
RETRY_S: Final = (0.1,) * 100
POLICIES: Final = (
    *[LanePolicy(concurrency=32, retry_s=RETRY_S)] * 3,
    LanePolicy(ordering="key", retry_s=RETRY_S),
    LanePolicy(ordering="lane", retry_s=RETRY_S),
)
SHARES: Final = (30, 30, 30, 8, 2)
KEYS: Final = 10
KILLED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call, from its beginning to its end, or to the end of its process."""

    target_id: UUID
    claim_id: UUID
    began: float
    ended: float


@dataclass
class WorkedLanes:
    """The server, two workers, and all that was enqueued."""

    folder: Path
    state: Path
    random: Random
    server: embedded.Embedded
    conninfos: list[str] = field(default_factory=list)
    items: dict[UUID, WorkItem] = field(default_factory=dict)
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    deaths: dict[int, float] = field(default_factory=dict)
    outages: list[tuple[float, float]] = field(default_factory=list)

    def prepare(self) -> None:
        """The schema, the table that the workers record in, the lanes."""
        passwords = {login: secrets.token_urlsafe(16) for login in ROLES.logins()}
        runner.upgrade(self._admin, ROLES, passwords)
        logins = (ROLES.app("executor"), ROLES.system("executor"))
        self.conninfos = [
            make_conninfo(self._admin, user=login, password=passwords[login]) for login in logins
        ]
        self.rows(f"CREATE TABLE {LEDGER} (target_id uuid NOT NULL, how text NOT NULL)")
        self.rows(f"GRANT INSERT ON {LEDGER} TO {logins[0]}")
        self._lanes = {uuid4(): [uuid4() for _ in POLICIES] for _ in range(TENANTS)}

    def enqueue(self, count: int) -> None:
        """So many more, spread over all tenants, each in a transaction of its own."""
        asyncio.run(self._enqueue(count))

    def start(self, at: int, points: str = "") -> None:
        """Start a worker in this place, and wait until it listens."""
        environment = plain_environment() | dict(zip(ENVIRONMENT, self.conninfos, strict=True))
        environment["TENON_FAILPOINTS"] = points
        with (self.folder / f"worker{at}.err").open("ab") as words:
            worker = subprocess.Popen(
                bound([sys.executable, "-m", "tests.faults.lane_worker", str(self._calls)]),
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
            )
        self.workers[at : at + 1] = [worker]
        if not points:
            assert worker.stdout is not None
            assert worker.stdout.readline(), "the worker did not start"

    def kill(self, at: int) -> None:
        """SIGKILL in the middle of whatever it does, then another in its place."""
        self.workers[at].kill()
        self._note_death(at)
        self.start(at)

    def kill_at(self, at: int, point: str) -> None:
        """Die at a failpoint, at some hit of it, and another in its place."""
        self.workers[at].kill()
        self._note_death(at)
        self.start(at, f"{point}=kill@{self.random.randint(1, 8)}")
        deadline = time.monotonic() + KILLED_S
        while self.workers[at].poll() is None:
            assert time.monotonic() < deadline, f"nothing came to {point}"
            self.enqueue(TENANTS)
        assert self._note_death(at) == -signal.SIGKILL
        self.start(at)

    def restart_server(self, *, crash: bool) -> None:
        """Stop it in order, or kill it so that it recovers; then start it where it was."""
        began = time.monotonic()
        if crash:
            os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()
        self.server = embedded.start(self.state)
        # Claims that could not be renewed meanwhile, or were lost, may be others' by now.
        self.outages.append((began, time.monotonic() + LEASE_S))

    def end(self, within_s: float) -> None:
        """Wait until no work is left, then ask the workers to stop, which they must do well."""
        until(lambda: self.left() == 0, within_s, "the end of all work")
        for worker in self.workers:
            worker.terminate()
        assert [worker.wait(20) for worker in self.workers] == [0, 0]

    def stop(self) -> None:
        """Leave nobody behind, however the test ended."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
        self.server.stop()

    def left(self) -> int:
        """How much work there is."""
        ((count,),) = self.rows("SELECT count(*) FROM executor.work")
        return int(count)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows as the superuser sees them."""
        with psycopg.connect(self._admin, autocommit=True) as connection:
            found = connection.execute(query.encode())
            return found.fetchall() if found.description else []

    def calls(self) -> list[Call]:
        """All calls that were begun, in their order."""
        begun: dict[tuple[str, str, int], float] = {}
        found = []
        for line in self._calls.read_text().splitlines():
            what, at, pid, target, claim = line.split()
            key = (target, claim, int(pid))
            if what == "begin":
                begun[key] = float(at)
            else:
                found.append(Call(UUID(target), UUID(claim), begun.pop(key), float(at)))
        found += [
            Call(UUID(target), UUID(claim), at, self.deaths[pid])
            for (target, claim, pid), at in begun.items()
        ]
        return sorted(found, key=lambda call: call.began)

    def overlaps(self, calls: list[Call]) -> list[tuple[Call, Call]]:
        """Calls of one item, or of one key that goes in order, that were under way together."""
        together: dict[Any, list[Call]] = defaultdict(list)
        for call in calls:
            together[self.sequence(call.target_id) or call.target_id].append(call)
        return [
            (one, next_)
            for of in together.values()
            for one, next_ in pairwise(of)
            if next_.began < one.ended and not self._was_out(next_.began)
        ]

    def sequence(self, target_id: UUID) -> tuple[UUID, str] | None:
        """The lane and key within which an item goes in order."""
        item = self.items[target_id]
        return None if item.policy.ordering == "none" else (item.lane_id, item.key)

    @property
    def _admin(self) -> str:
        # Each start makes a new directory for the socket; this link leads there.
        return make_conninfo(
            self.server.conninfo().reveal_text(), host=str(self.server.home / "socket")
        )

    @property
    def _calls(self) -> Path:
        return self.folder / "calls"

    def _note_death(self, at: int) -> int:
        status = self.workers[at].wait()
        self.deaths[self.workers[at].pid] = time.monotonic()
        stdout = self.workers[at].stdout
        assert stdout is not None
        stdout.close()
        return status

    def _was_out(self, moment: float) -> bool:
        return any(began <= moment <= ended for began, ended in self.outages)

    async def _enqueue(self, count: int) -> None:
        async with Database(*map(Secret, self.conninfos)) as database:
            for tenant_id, lane_ids in self._lanes.items():
                items = [self._item(lane_ids) for _ in range(count // TENANTS)]
                async with database.tenant(tenant_id) as tx:
                    await lanes.enqueue(tx, tenant_id, items)
                self.items |= {item.target_id: item for item in items}

    def _item(self, lane_ids: list[UUID]) -> WorkItem:
        (at,) = self.random.choices(range(len(POLICIES)), SHARES)
        key = str(self.random.randrange(KEYS)) if POLICIES[at].ordering == "key" else ""
        return WorkItem(KIND, lane_ids[at], uuid4(), key=key, policy=POLICIES[at])
