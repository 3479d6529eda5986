"""What the tests of the executor share: a superuser's look, lanes driven by hand, the registry."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.executor.registry.client import Registry
from services.registry import opening
from tests.integration.executor.delivery_bench import DeliveryBench, delivery_bench
from tests.integration.executor.execution_bench import ExecutionBench, execution_bench
from tests.integration.executor.ingress_house import House, ingress_house
from tests.integration.executor.lane_bench import LaneBench
from tests.integration.executor.running_registry import RunningRegistry


@pytest.fixture
async def admin(superuser: Secret) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """The superuser in this test's database; every statement is a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(
        superuser.reveal_text(), autocommit=True
    ) as connection:
        yield connection


@pytest.fixture
def bench(executor_database: Database) -> LaneBench:
    """A tenant with nothing to do yet."""
    return LaneBench(executor_database)


@pytest.fixture
async def registry_database(
    registry_conninfos: tuple[Secret, Secret],
) -> AsyncIterator[Database]:
    """The registry's pools on this test's database, with what its constraints mean."""
    async with Database(*registry_conninfos, constraints=opening.CONSTRAINTS) as database:
        yield database


@pytest.fixture
async def registry_service(registry_database: Database) -> AsyncIterator[RunningRegistry]:
    """A running registry that knows no tenant yet."""
    service = RunningRegistry(registry_database)
    await service.prepare()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def registry(registry_service: RunningRegistry) -> AsyncIterator[Registry]:
    """The executor's client of it."""
    async with open_channel(registry_service.target, key=registry_service.service_key) as channel:
        yield Registry(channel)


@pytest.fixture
async def runs(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> AsyncIterator[ExecutionBench]:
    """A tenant with connectors to run, and a sandbox they call."""
    async with execution_bench(executor_database, tenant_ids[0]) as made:
        yield made


@pytest.fixture
async def out(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> AsyncIterator[DeliveryBench]:
    """A tenant whose events go out, and the endpoint that they go to."""
    async with delivery_bench(executor_database, tenant_ids[0]) as made:
        yield made


@pytest.fixture
async def house(
    registry_service: RunningRegistry,
    registry: Registry,
    executor_database: Database,
    admin: psycopg.AsyncConnection[Any],
) -> AsyncIterator[House]:
    """A running ingress of one tenant."""
    async with ingress_house(registry_service, registry, executor_database, admin) as made:
        yield made
