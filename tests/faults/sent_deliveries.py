"""Deliveries by workers that are killed, to receivers that fail: what was published, got and logged."""

import asyncio
import json
import secrets
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from services.chassis.child import bound
from services.chassis.evaluator import Evaluator
from services.chassis.secret import Secret
from services.executor.events.publishing import MOST, NewEvent, Publishing
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from tests.family import ROOT, plain_environment
from tests.faults.faulty_receiver import TIMEOUT_S, Got
from tests.faults.fixed_keys import SEED, FixedKeys
from tests.faults.killed_workers import KilledWorkers
from tests.faults.points import ALL
from tests.integration.executor.delivery_bench import endpoint, subscription

TENANTS: Final = 50 if ALL else 10
ENDPOINTS: Final = 4
"""Of each tenant; each takes a sort of events of its own, and all take the first one's."""
ORDERED: Final = "endpoint3"
DEAD: Final = "dead"
"""The endpoint that nobody listens for, of the first tenant, which takes all."""
AT_ONCE: Final = 8
"""Tenants whose events are published together; each takes one of the pool's connections."""
RETRIES: Final = ["0.1s"] * 100
LOGGED: Final = """
    SELECT d.id, d.tenant_id, d.endpoint, d.state, d.attempts, d.response_status,
        d.ended_at IS NOT NULL, array_remove(array_agg(a.number ORDER BY a.number), NULL),
        array_remove(array_agg(a.response_status ORDER BY a.number), NULL)
    FROM executor.deliveries d LEFT JOIN executor.delivery_attempts a
        ON (a.tenant_id, a.delivery_id) = (d.tenant_id, d.id)
    GROUP BY d.tenant_id, d.id
"""

Place = tuple[str, str]
"""A tenant's id, and the name of its endpoint."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A delivery and its attempts, as the log has them."""

    id: UUID
    tenant_id: UUID
    endpoint: str
    state: str
    attempts: int
    status: int
    ended: bool
    numbers: list[int]
    statuses: list[int]

    @property
    def message_id(self) -> str:
        """What its receiver knows it by."""
        return f"evt_{self.id}"


@dataclass
class SentDeliveries:
    """The workers, the receiver, and for each place the events that it should get, in order."""

    workers: KilledWorkers
    keys: FixedKeys
    wanted: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))
    published: int = 0

    def prepare(self, url: str, dead: str) -> None:
        """Tenants with endpoints at `url`, one at `dead`, and workers that send."""
        self._tenants = [uuid4() for _ in range(TENANTS)]
        self.workers.rows(
            "INSERT INTO executor.tenants (tenant_id, slug, enabled, revision) VALUES "
            + ", ".join(f"('{each}', 't{each}', true, 1)" for each in self._tenants)
        )
        asyncio.run(self._project(url, dead))
        self.workers.begin()

    def publish(self, count: int = TENANTS) -> None:
        """So many more events, spread over all tenants."""
        asyncio.run(self._publish(count))

    def end(self, within_s: float) -> None:
        """Wait until all but the dead endpoint have theirs."""
        left = f"SELECT count(*) FROM executor.work WHERE lane_id <> '{self._dead_id}'"
        self.workers.end(within_s, left)

    def got(self) -> list[Got]:
        """All requests, in their order."""
        return [Got(**json.loads(line)) for line in self._log.read_text().splitlines()]

    def logged(self) -> list[Logged]:
        """All deliveries."""
        return [Logged(*row) for row in self.workers.rows(LOGGED)]

    @property
    def _log(self) -> Path:
        return self.workers.folder / "got"

    @contextmanager
    def receiving(self) -> Iterator[str]:
        """The receiver's process; answers with its url."""
        process = subprocess.Popen(
            bound([sys.executable, "-m", "tests.faults.faulty_receiver", str(self._log)]),
            env=plain_environment() | self.workers.settings,
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process.stdout as told:
            try:
                yield f"http://127.0.0.1:{json.loads(told.readline())['port']}"
            finally:
                process.kill()
                process.wait()

    async def _project(self, url: str, dead: str) -> None:
        async with self.workers.database() as database:
            for tenant_id in self._tenants:
                objects = [each for at in range(ENDPOINTS) for each in _sort(url, tenant_id, at)]
                if tenant_id == self._tenants[0]:
                    objects += (gone := _out(DEAD, dead, subscription(DEAD, deliver_to=DEAD)))
                    self._dead_id = gone[0].object_id
                async with database.tenant(tenant_id) as tx:
                    await projected.replace(tx, tenant_id, objects)

    async def _publish(self, count: int) -> None:
        async with self.workers.database() as database, Evaluator() as evaluator:
            publishing = Publishing(database, self.keys, evaluator)
            each, gate = count // TENANTS, asyncio.Semaphore(AT_ONCE)

            async def of(tenant_id: UUID) -> None:
                async with gate:
                    new = iter([self._event(tenant_id) for _ in range(each)])
                    while batch := list(islice(new, MOST)):
                        await publishing.publish(tenant_id, batch)

            await asyncio.gather(*map(of, self._tenants))

    def _event(self, tenant_id: UUID) -> NewEvent:
        sort = self.workers.random.randrange(ENDPOINTS)
        self.published += 1
        for at in [sort] if sort else range(ENDPOINTS):
            self.wanted[str(tenant_id), f"endpoint{at}"].append(self.published)
        if tenant_id == self._tenants[0]:
            self.wanted[str(tenant_id), DEAD].append(self.published)
        text = "€ " * self.workers.random.randrange(200)
        return NewEvent(f"sort{sort}.made", {"number": self.published, "text": text})


def _sort(url: str, tenant_id: UUID, at: int) -> list[ProjectedObject]:
    """An endpoint of a tenant, which takes the events of its sort and of the first."""
    name = f"endpoint{at}"
    taking = subscription(name, deliver_to=name, event_types=[f"sort{at}.*", "sort0.made"])
    return _out(name, f"{url}/{tenant_id}/{name}", taking)


def _out(name: str, url: str, taking: ProjectedObject) -> list[ProjectedObject]:
    made = endpoint(url)
    delivery: dict[str, Any] = {
        **made.spec["delivery"],
        "timeout": f"{TIMEOUT_S}s",
        "retries": RETRIES,
        "ordering": "endpoint" if name == ORDERED else "none",
    }
    spec = {**made.spec, "delivery": delivery, "secret": name}
    secret = ProjectedObject("Credential", uuid4(), name, 1, {"type": "webhook_secret"})
    return [replace(made, name=name, spec=spec), secret, taking]


@contextmanager
def sent_deliveries(workers: KilledWorkers) -> Iterator[SentDeliveries]:
    """All of it, on workers of `tests.faults.delivery_worker` that do not run yet."""
    seed = Secret(secrets.token_hex(32))
    workers.settings = {SEED: seed.reveal_text()}
    made = SentDeliveries(workers, FixedKeys(seed))
    with made.receiving() as url, socket.socket() as nobody:
        # Bound and never listening: it refuses, and nobody else is given its port.
        nobody.bind(("127.0.0.1", 0))
        made.prepare(url, f"http://127.0.0.1:{nobody.getsockname()[1]}/")
        yield made
