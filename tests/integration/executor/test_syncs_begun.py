"""What begins transfers: a subscription, a schedule; with the registry, from its YAML on."""

from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.evaluator import Evaluator
from services.executor.audit.outbox import Doer
from services.executor.events.log import EventLog
from services.executor.events.publishing import NewEvent, Publishing
from services.executor.events.replaying import SETTLED, Replay, Replaying
from services.executor.events.traces import EventTraces
from services.executor.executions.scheduler import Scheduler
from services.executor.registry.client import Registry
from services.executor.registry.projection import Projection
from services.executor.registry.uses import Uses
from services.executor.store import lane_states
from tests.integration.executor.execution_bench import TOKEN
from tests.integration.executor.running_registry import Document, RunningRegistry, document
from tests.integration.executor.sync_bench import SyncBench, sync_bench

Admin = psycopg.AsyncConnection[Any]
HOURLY = {"every": "3600s"}


@dataclass
class Acme:
    """A tenant of a running registry, and all that its events and schedules begin."""

    service: RunningRegistry
    registry: Registry
    projection: Projection
    publishing: Publishing
    traces: EventTraces
    replaying: Replaying
    syncs: SyncBench

    async def want(self, *documents: Document) -> None:
        """Apply documents, and project them."""
        await self.service.apply("acme", *documents)
        await self.projection.project(self.syncs.tenant_id)

    async def publish(self, count: int = 1) -> list[UUID]:
        new = [NewEvent("issues.opened", {"number": number}) for number in range(count)]
        return await self.publishing.publish(self.syncs.tenant_id, new)

    async def lanes(self) -> dict[str, tuple[str, str]]:
        """Kind and owner's state of each lane, by whose it is."""
        found = await lane_states.page(
            self.syncs.database, self.syncs.tenant_id, "", UUID(int=0), 100
        )
        return {each.owner: (each.kind, each.owner_state) for each in found}


def github(acme: Acme, *streams: dict[str, Any], **spec: Any) -> Document:
    said = {
        "provider": "github",
        "credential": "token",
        "base_url": acme.syncs.box.url,
        "config": {"owner": "acme", "repo": "shop"},
        **spec,
    }
    return document("Integration", "github", sync={"streams": list(streams)}, **said)


def refreshing(**spec: Any) -> Document:
    target = {"integration": "github", "stream": "issues"}
    return document("Subscription", "fresh", event_types=["issues.*"], sync=target, **spec)


@pytest.fixture
async def acme(registry_database: Database, executor_database: Database) -> AsyncIterator[Acme]:
    service = RunningRegistry(registry_database, egress_allow="127.0.0.1/32:*")
    await service.prepare()
    await service.start()
    secret = {"token": {"plain": b64encode(TOKEN.encode()).decode()}}
    await service.apply(
        "acme",
        document("Tenant", "acme", display_name="Acme"),
        document("Credential", "token", type="bearer", values=secret),
    )
    async with (
        sync_bench(executor_database, await service.tenant_id("acme")) as syncs,
        open_channel(service.target, key=service.service_key) as channel,
        Evaluator() as evaluator,
    ):
        registry = Registry(channel, Uses())
        syncs.vault = registry  # type: ignore[assignment]
        database, log = syncs.database, EventLog(syncs.database, registry)
        later = lambda: datetime.now(UTC) + SETTLED  # noqa: E731
        yield Acme(
            service,
            registry,
            Projection(database, registry),
            Publishing(database, registry, evaluator),
            EventTraces(database, log, evaluator),
            Replaying(database, registry, evaluator, later),
            syncs,
        )
    await service.stop()


async def test_an_event_has_the_stream_transferred_that_a_subscription_names(acme: Acme) -> None:
    await acme.want(github(acme, {"name": "issues"}), refreshing())
    (event_id,) = await acme.publish()
    trace = await acme.traces.of(acme.syncs.tenant_id, event_id)
    assert [(each.subscription, each.takes) for each in trace.answers] == [("fresh", True)]
    (run_id,) = trace.sync_runs
    async with acme.syncs.working():
        run = await acme.syncs.until(run_id, lambda found: found.ended)
    assert (run.state, run.trigger_kind, run.trigger_id) == ("success", "event", event_id)
    assert run.created == 250


async def test_many_events_cost_the_provider_one_transfer(acme: Acme) -> None:
    await acme.want(github(acme, {"name": "issues"}), refreshing())
    await acme.publish(50)
    async with acme.syncs.working():
        runs = await acme.syncs.runs()
        assert len(runs) == 50
        ended = [await acme.syncs.until(run.id, lambda found: found.ended) for run in runs]
    asked = [run for run in ended if run.covered_by is None]
    assert all(run.state == "success" for run in ended)
    assert len(asked) == 1


async def test_a_stream_that_is_inactive_or_gone_is_told_in_the_trace(acme: Acme) -> None:
    await acme.want(github(acme, {"name": "issues", "is_active": False}), refreshing())
    (event_id,) = await acme.publish()
    trace = await acme.traces.of(acme.syncs.tenant_id, event_id)
    assert [(each.takes, each.reason) for each in trace.answers] == [(False, "TARGET_INACTIVE")]
    assert trace.sync_runs == ()
    assert await acme.syncs.runs() == []


async def test_an_inactive_integration_has_no_active_stream(acme: Acme) -> None:
    await acme.want(github(acme, {"name": "issues"}, is_active=False), refreshing())
    await acme.publish()
    assert await acme.syncs.runs() == []
    assert await acme.lanes() == {"github/issues": ("sync", "inactive")}


async def test_a_replay_has_it_transferred_once_more_and_counts_that(acme: Acme) -> None:
    await acme.want(github(acme, {"name": "issues"}))
    await acme.publish(3)
    await acme.want(refreshing())
    since = datetime.now(UTC) - timedelta(hours=1)
    what = Replay(acme.syncs.tenant_id, since, request_id=UUID(int=7))
    done = await acme.replaying.replay(what, Doer(UUID(int=1), "user", "Ada"))
    progress = done.progress
    assert (progress.events, progress.sync_runs, progress.executions) == (3, 3, 0)
    assert len(await acme.syncs.runs()) == 3


async def test_a_schedule_has_it_transferred_when_it_is_due(acme: Acme, admin: Admin) -> None:
    await acme.want(github(acme, {"name": "issues", "schedule": HOURLY}))
    scheduler = Scheduler(acme.syncs.database, acme.registry)
    await scheduler.tick()
    assert await acme.syncs.runs() == []
    await admin.execute("UPDATE executor.schedules SET next_at = now() - interval '1 s'")
    await scheduler.tick()
    (run,) = await acme.syncs.runs()
    assert (run.state, run.trigger_kind, run.stream) == ("queued", "schedule", "github/issues")
    await scheduler.tick()
    assert len(await acme.syncs.runs()) == 1

    await acme.want(github(acme, {"name": "issues"}))
    found = await admin.execute("SELECT count(*) FROM executor.schedules")
    assert await found.fetchone() == (0,)


async def test_a_stream_that_is_wanted_again_goes_on_where_it_was(acme: Acme) -> None:
    await acme.want(github(acme, {"name": "issues"}))
    assert (await acme.syncs.transferred()).created == 250
    await acme.want(github(acme))
    assert await acme.syncs.syncs.streams(acme.syncs.tenant_id) == []
    await acme.want(github(acme, {"name": "issues"}))
    run = await acme.syncs.transferred()
    assert (run.whole, run.created, run.updated) == (False, 0, 0)
