"""Metrics as a scraper reads them, after real work."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.chassis import metrics
from services.chassis.database import Database
from services.chassis.errors import InvalidArgument, Unavailable
from services.executor.audit.shipping import Shipping
from services.executor.engine.doctor import Doctor
from services.executor.engine.recorder import Recorder
from services.executor.engine.work import Claimed, Done, Failed, Outcome
from services.executor.engine.worker import Worker
from services.executor.executions.scheduler import Scheduler
from services.executor.ingress.streams import Counted, Counts
from services.executor.metrics import Metrics
from services.executor.store.audit_outbox import Told
from tests.integration.executor.execution_bench import Vault
from tests.integration.executor.lane_bench import LaneBench
from tests.integration.executor.test_worker import Recorded

Admin = psycopg.AsyncConnection[Any]
KIND = {"kind": LaneBench.KIND}


class Refusing:
    """A registry that refuses every event."""

    async def record(self, tenant_id: UUID | None, told: Sequence[Told]) -> None:
        raise InvalidArgument("no")


class Scraped:
    """One process's parts, and what a scraper finds of them."""

    def __init__(self, database: Database, kind: Recorded) -> None:
        self.worker = Worker(database, {kind.name: kind}, Recorder(database))
        self.doctor = Doctor(database)
        self.shipping = Shipping(database, Refusing())
        scheduler = Scheduler(database, Vault())
        self.app_items = Counts()
        self.collector = Metrics(
            database, self.worker.meters, self.doctor, scheduler, self.shipping, self.app_items
        )
        self.port = 0

    async def read(self) -> dict[tuple[str, frozenset[Any]], float]:
        url = f"http://127.0.0.1:{self.port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.content_type == "text/plain"
            text = await answer.text()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def value(self, name: str, **labels: str) -> float | None:
        return (await self.read()).get((name, frozenset(labels.items())))


class Half(Recorded):
    """Every second item fails at first."""

    async def call(self, claimed: Claimed, prepared: None) -> Outcome:
        done = await super().call(claimed, prepared)
        fails = claimed.attempt == 1 and self.ran_so_far() % 2
        return Failed() if fails else Done(told=done.told)

    def ran_so_far(self) -> int:
        return len(self.attempts)


@pytest.fixture
async def scraped(executor_database: Database) -> AsyncIterator[Scraped]:
    found = Scraped(executor_database, Half())
    async with metrics.serving(found.collector, "127.0.0.1", 0) as found.port:
        yield found


async def test_what_is_done_and_what_there_is_to_do_is_told_by_kind(
    bench: LaneBench, scraped: Scraped, admin: Admin
) -> None:
    await bench.enqueue(*(bench.item(retry_s=(600.0,)) for _ in range(10)))
    await bench.enqueue(bench.item(uuid4(), delay_s=600))
    await admin.execute("UPDATE executor.work SET due_at = due_at - interval '7 s'")
    assert await scraped.value("tenon_work_due", **KIND) is None
    await scraped.doctor.round()
    assert await scraped.value("tenon_work_due", **KIND) == 10
    assert await scraped.value("tenon_work_waiting", **KIND) == 11
    oldest = await scraped.value("tenon_work_oldest_age_seconds", **KIND)
    assert oldest is not None and 7 <= oldest < 60
    worker = asyncio.create_task(scraped.worker.run())
    done: dict[str, str] = {**KIND, "outcome": "done"}
    async with asyncio.timeout(20):
        while await scraped.value("tenon_work_outcomes_total", **done) != 5:
            await asyncio.sleep(0.02)
        while await scraped.value("tenon_work_running", **KIND) != 0:
            await asyncio.sleep(0.02)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert await scraped.value("tenon_work_claims_total", **KIND) == 10
    assert await scraped.value("tenon_work_outcomes_total", **KIND, outcome="failed") == 5
    for quantile in ("0.5", "0.99"):
        lag = await scraped.value("tenon_work_lag_seconds", **KIND, quantile=quantile)
        assert lag is not None and 7 <= lag < 60
    await scraped.doctor.round()
    assert await scraped.value("tenon_work_due", **KIND) == 0
    assert await scraped.value("tenon_work_claimed", **KIND) == 0
    assert await scraped.value("tenon_work_waiting", **KIND) == 6


async def test_the_pools_the_doctors_repairs_and_items_of_streams_are_told(
    bench: LaneBench, scraped: Scraped, admin: Admin
) -> None:
    await bench.enqueue(bench.item())
    scraped.app_items[Counted("slack", "main", known=True)] += 3
    stream = {"provider": "slack", "app": "main"}
    assert await scraped.value("tenon_app_items_total", **stream, known="true") == 3
    assert await scraped.value("tenon_app_items_total", **stream, known="false") is None
    for login in ("tenant", "system"):
        most = await scraped.value("tenon_database_pool_max", login=login)
        assert most == {"tenant": 8, "system": 4}[login]
    asked = await scraped.value("tenon_database_pool_requests_total", login="tenant")
    assert asked is not None and asked >= 1
    assert await scraped.value("tenon_doctor_repairs_total", level="lane") == 0
    await admin.execute("UPDATE executor.lanes SET next_at = 'infinity'")
    await scraped.doctor.round()
    assert await scraped.value("tenon_doctor_repairs_total", level="lane") == 1


async def test_nothing_of_a_tenant_is_in_the_metrics(bench: LaneBench, scraped: Scraped) -> None:
    await bench.enqueue(bench.item(key="a-customers-name", ordering="key"))
    await scraped.doctor.round()
    told = str(await scraped.read())
    for word in ("a-customers-name", str(bench.tenant_id), str(bench.lane_id)):
        assert word not in told


async def test_a_process_that_leads_no_more_tells_nothing_of_what_there_is_to_do(
    bench: LaneBench, scraped: Scraped
) -> None:
    await bench.enqueue(bench.item())
    leading = asyncio.create_task(scraped.doctor.follow())
    async with asyncio.timeout(10):
        while await scraped.value("tenon_work_due", **KIND) != 1:
            await asyncio.sleep(0.02)
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    assert await scraped.value("tenon_work_due", **KIND) is None


async def test_a_port_that_is_taken_is_refused_in_words(scraped: Scraped) -> None:
    with pytest.raises(Unavailable, match="cannot serve metrics"):
        async with metrics.serving(scraped.collector, "127.0.0.1", scraped.port):
            pass


async def test_audit_events_that_are_refused_are_counted(scraped: Scraped, admin: Admin) -> None:
    assert await scraped.value("tenon_audit_events_set_aside") == 0
    await admin.execute(
        "INSERT INTO executor.platform_audit_outbox SELECT gen_random_uuid(), '{}'"
        " FROM generate_series(1, 3)"
    )
    await scraped.shipping.ship()
    assert await scraped.value("tenon_audit_events_set_aside") == 3
