"""A tenant whose GitHub issues are transferred: the sandbox to ask, and a worker that transfers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID, uuid4

from services.chassis.database import Database
from services.chassis.egress import Egress, Limits, parse_allow
from services.executor.calling import Calling
from services.executor.engine.governing import govern
from services.executor.engine.recorder import Recorder
from services.executor.engine.steering import Limits as TenantLimits
from services.executor.registry.uses import Uses
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from services.executor.store.sync_pages import StreamState, SyncRun
from services.executor.syncs.reading import Record, RecordQuery, Records
from services.executor.syncs.runs import SyncQuery, SyncRequest, Syncs
from services.executor.syncs.streams import with_streams
from services.executor.syncs.syncing import Syncing
from services.providers.client import ProviderClient
from services.sandbox.server import Box, sandbox
from tests.integration.executor.execution_bench import CATALOG, TOKEN, Vault
from tests.integration.executor.workers import at_work

REPO = "acme/shop"
ISSUES = "/repos/acme/shop/issues"
STREAM = ("github", "issues")
NOT_SCHEDULED = {"every": None, "cron": "", "timezone": "UTC", "jitter": "0s", "input": None}


@dataclass
class SyncBench:
    """The tenant, and what can be done in it."""

    database: Database
    tenant_id: UUID
    box: Box
    client: ProviderClient
    vault: Vault = field(default_factory=Vault)
    uses: Uses = field(default_factory=Uses)
    principal_id: UUID = field(default_factory=uuid4)
    turn_s: float = 20.0

    def __post_init__(self) -> None:
        self.syncs = Syncs(self.database)
        self.records = Records(self.database, self.vault)
        self.recorder = Recorder(self.database)
        self.ids = {name: uuid4() for name in ("github", "token")}

    @property
    def syncing(self) -> Syncing:
        calling = Calling(self.vault, self.client, self.uses)
        return Syncing(
            *(self.database, self.vault, calling, CATALOG, self.recorder),
            rng=Random(1),
            turn_s=self.turn_s,
        )

    async def want(self, *streams: str, active: bool = True, **github: Any) -> None:
        """Project the tenant anew: an integration with these streams, and its credential."""
        said = [{"name": name, "schedule": NOT_SCHEDULED, "is_active": active} for name in streams]
        spec = {
            "provider": "github",
            "credential": "token",
            "is_active": True,
            "base_url": self.box.url,
            "config": {"owner": "acme", "repo": "shop"},
            "sync": {"streams": said},
            **github,
        }
        objects = [
            ProjectedObject("Integration", self.ids["github"], "github", 0, spec),
            ProjectedObject("Credential", self.ids["token"], "token", 1, {"type": "bearer"}),
        ]
        await self.project(with_streams(objects))

    async def project(self, objects: list[ProjectedObject]) -> None:
        async with self.database.tenant(self.tenant_id) as tx:
            await projected.replace(tx, self.tenant_id, objects)
            await govern(tx, self.tenant_id, TenantLimits(), objects)

    async def trigger(self, *, whole: bool = False, request_id: UUID | None = None) -> SyncRun:
        asked = SyncRequest(self.tenant_id, self.principal_id, STREAM, whole, request_id)
        return await self.syncs.trigger(asked)

    async def transferred(self, *, whole: bool = False) -> SyncRun:
        """A transfer, once it has ended."""
        run = await self.trigger(whole=whole)
        async with self.working():
            return await self.until(run.id, lambda found: found.ended)

    async def until(self, run_id: UUID, holds: Callable[[SyncRun], object]) -> SyncRun:
        """The transfer once something holds of it."""
        async with asyncio.timeout(20):
            while True:
                found = await self.syncs.get(self.tenant_id, run_id)
                if holds(found):
                    return found
                await asyncio.sleep(0.02)

    async def stream(self) -> StreamState:
        (found,) = await self.syncs.streams(self.tenant_id, "github")
        return found

    async def kept(self, *, gone: bool = False) -> dict[str, Record]:
        """All records by title; of one that is gone by its key."""
        found: dict[str, Record] = {}
        token = ""
        while True:
            query = RecordQuery(self.tenant_id, STREAM, gone, 500, token)
            page = await self.records.page(query)
            for each in page.records:
                found[json.loads(each.data)["title"] if each.data else each.key] = each
            token = page.next_page_token
            if not token:
                return found

    async def runs(self) -> list[SyncRun]:
        """All transfers, the newest first."""
        return list((await self.syncs.page(SyncQuery(self.tenant_id))).runs)

    def calls(self) -> list[dict[str, str]]:
        """What was asked of the list, query by query."""
        return [dict(one.query) for one in self.box.calls if one.path == ISSUES]

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker runs inside the block."""
        async with at_work(self.database, self.syncing, self.recorder):
            yield


@asynccontextmanager
async def sync_bench(database: Database, tenant_id: UUID) -> AsyncIterator[SyncBench]:
    """The bench with its sandbox and its way out."""
    async with (
        sandbox(TOKEN, repos={REPO: 250}) as box,
        Egress(parse_allow("127.0.0.1/32:*"), Limits(total_s=30)) as egress,
    ):
        yield SyncBench(database, tenant_id, box, ProviderClient(egress, CATALOG))
