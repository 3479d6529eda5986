"""One tenant with a GitHub and a plain integration, a sandbox to call, and a worker that runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID, uuid4

from services.chassis import envelope
from services.chassis.database import Database
from services.chassis.egress import Egress, Limits, parse_allow
from services.chassis.envelope import Unsealable
from services.chassis.errors import TenonError
from services.chassis.evaluator import Evaluator
from services.chassis.secret import Secret
from services.executor.calling import Calling
from services.executor.engine import turns
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Claimed
from services.executor.executions import runs
from services.executor.executions.activity import Activities
from services.executor.executions.dry_runs import DryRuns
from services.executor.executions.progress import Progress
from services.executor.executions.running import Running
from services.executor.executions.runs import KIND, Executions, Run, RunRequest
from services.executor.executions.watching import Changes, Watches
from services.executor.registry.credentials import LeasedKey, Resolved
from services.executor.registry.uses import Uses
from services.executor.servicers.execution import ExecutionServicer
from services.executor.store import projected
from services.executor.store.executions import Execution
from services.executor.store.projected import ProjectedObject
from services.providers.catalog import Catalog
from services.providers.client import ProviderClient
from services.sandbox.server import Box, sandbox
from tests.integration.executor.workers import at_work

TOKEN = "correct-horse-battery-staple"
CATALOG = Catalog.load()
ISSUE = "/repos/acme/shop/issues/7"
QUICK = {"max_attempts": 3, "base": "0.01s", "cap": "0.05s"}


class Vault:
    """Credentials and keys by hand, or the registry's answer when it cannot give them."""

    def __init__(self) -> None:
        self.key = LeasedKey(uuid4(), envelope.new_key())
        self.retired: dict[UUID, LeasedKey] = {}
        self.fault: TenonError | None = None
        self.asked = asyncio.Event()
        self.token = TOKEN
        self.credential_id = uuid4()

    def replace_key(self) -> None:
        """Give the tenant another key; the one before still opens what it sealed."""
        self.retired[self.key.data_key_id] = self.key
        self.key = LeasedKey(uuid4(), envelope.new_key())

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
        if data_key_id in {None, self.key.data_key_id}:
            return self.key
        if data_key_id not in self.retired:
            raise Unsealable
        return self.retired[data_key_id]

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        self.asked.set()
        if self.fault is not None:
            raise self.fault
        values = {"token": Secret(self.token)}
        return Resolved(self.credential_id, "bearer", version, values)

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        raise AssertionError("a bearer token is not to be had anew")


def step(name: str = "read", **spec: Any) -> dict[str, Any]:
    """A step as the projection has it: reading an issue, unless said otherwise."""
    return {
        "name": name,
        "integration": "github",
        "operation": "",
        "method": "GET",
        "path": ISSUE,
        "path_params": {},
        "query": {},
        "headers": {},
        "condition": "",
        "extract": {"title": "$.title"},
        "timeout": "5s",
        "retry": QUICK,
        **spec,
    }


def comment(name: str = "say", text: str = "hello", **spec: Any) -> dict[str, Any]:
    """A step that is not safe to repeat: it writes a comment on the issue."""
    path = f"{ISSUE}/comments"
    body = {"body": text}
    return step(name, method="POST", path=path, body=body, extract={"id": "$.id"}, **spec)


class NoRoom:
    """A worker that is always full, so that all work waits for its turn."""

    has_room, lease_s = False, 30.0

    async def start(self, claimed: Claimed, prepared: Progress) -> None:
        """Never called."""
        raise AssertionError(claimed)


@dataclass
class ExecutionBench:
    """The tenant, and what can be done in it."""

    database: Database
    tenant_id: UUID
    box: Box
    client: ProviderClient
    evaluator: Evaluator
    vault: Vault = field(default_factory=Vault)
    uses: Uses = field(default_factory=Uses)
    principal_id: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        self.changes = Changes(self.database)
        self.executions = Executions(self.database, self.vault, self.changes, NoRoom())
        self.recorder = Recorder(self.database)
        self.running = Running(
            self.database,
            self.vault,
            Calling(self.vault, self.client, self.uses),
            CATALOG,
            self.recorder,
            self.changes,
            self.evaluator,
            rng=Random(1),
        )
        self.watches = Watches(self.database, self.changes)
        self.dry_runs = DryRuns(self.database, CATALOG, self.evaluator)
        self.activities = Activities(self.database)
        self.ids = {name: uuid4() for name in ("github", "plain", "token", "c")}

    async def want(
        self,
        *steps: dict[str, Any],
        active: bool = True,
        whole: Mapping[str, Any] | None = None,
        **github: Any,
    ) -> ProjectedObject:
        """Project the tenant anew: a connector `c` of these steps and what it needs.

        `whole` is what its spec says beside the steps.
        """
        shared = {"is_active": True, "base_url": self.box.url, "config": {}}
        objects = [
            self._object(
                "Integration",
                "github",
                {**shared, "provider": "github", "credential": "token", **github},
            ),
            self._object("Integration", "plain", {**shared, "provider": "http", "credential": ""}),
            self._object("Credential", "token", {"type": "bearer"}, version=1),
            self._object(
                "Connector", "c", {"is_active": active, "steps": list(steps), **(whole or {})}
            ),
        ]
        async with self.database.tenant(self.tenant_id) as tx:
            await projected.replace(tx, self.tenant_id, objects)
        return objects[-1]

    async def start(self, connector: ProjectedObject, **values: Any) -> UUID:
        """Start a run as an event would; nothing works on it yet."""
        run = Run(
            tenant_id=self.tenant_id,
            connector=connector,
            trigger_kind="event",
            trigger_id=uuid4(),
            event_type="issues.opened",
            subscription="opened",
            input={"event": {"type": "issues.opened", "payload": values}, "input": {}},
        )
        async with self.database.tenant(self.tenant_id) as tx:
            return await runs.start(tx, run, self.vault.key)

    async def run(
        self, *steps: dict[str, Any], whole: Mapping[str, Any] | None = None, **values: Any
    ) -> Execution:
        """Want a connector of these steps, run it as an event with these values would."""
        execution_id = await self.start(await self.want(*steps, whole=whole), **values)
        async with self.working():
            return await self.end_of(execution_id)

    async def claim(self) -> Claimed:
        """Claim the one run that is due, as a worker would."""
        (turn,) = (await turns.claim_tenants(self.database, 1)).turns
        taken = await turns.claim_work(self.database, {turn: 1}, [KIND], 30)
        (claimed,) = taken[turn].items
        return claimed

    async def work(self, claimed: Claimed) -> None:
        """Do claimed work as a worker would."""
        prepared = await self.running.prepare(claimed)
        await self.recorder.record(claimed, await self.running.call(claimed, prepared))

    async def end_of(self, execution_id: UUID) -> Execution:
        """The execution once it has ended."""
        found = await self.executions.wait(self.tenant_id, execution_id, 20)
        assert found.ended, f"still {found.state}: {found.steps}"
        return found

    def servicer(self) -> ExecutionServicer:
        """The service on this bench."""
        return ExecutionServicer(self.executions, self.watches, self.dry_runs, self.activities)

    def request(self, **given: Any) -> RunRequest:
        """An RPC's wish to run the connector."""
        given = {"connector": "c", "input": {}, **given}
        return RunRequest(tenant_id=self.tenant_id, principal_id=self.principal_id, **given)

    def _object(
        self, kind: str, name: str, spec: dict[str, Any], version: int = 0
    ) -> ProjectedObject:
        return ProjectedObject(kind, self.ids[name], name, version, spec)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker runs inside the block."""
        async with at_work(self.database, self.running, self.recorder):
            yield


@asynccontextmanager
async def execution_bench(database: Database, tenant_id: UUID) -> AsyncIterator[ExecutionBench]:
    """The bench with its sandbox and its way out."""
    async with (
        sandbox(TOKEN) as box,
        Egress(parse_allow("127.0.0.1/32:*"), Limits(total_s=30)) as egress,
        Evaluator() as evaluator,
    ):
        client = ProviderClient(egress, CATALOG)
        yield ExecutionBench(database, tenant_id, box, client, evaluator)


async def until(
    bench: ExecutionBench, execution_id: UUID, holds: Callable[[Execution], object]
) -> Execution:
    """The execution once something holds of it."""
    async with asyncio.timeout(10):
        while True:
            found = await bench.executions.get(bench.tenant_id, execution_id)
            if holds(found):
                return found
            await asyncio.sleep(0.01)
