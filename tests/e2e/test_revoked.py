"""What is taken from a caller is gone in both services within a second, however busy they are."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc
import psycopg
import pytest
from tenon.executor.v1 import execution_service_pb2 as executions
from tenon.executor.v1 import execution_service_pb2_grpc as executions_grpc
from tenon.registry.v1 import config_service_pb2 as config
from tenon.registry.v1 import config_service_pb2_grpc as config_grpc
from tenon.registry.v1 import integration_service_pb2 as integrations
from tenon.registry.v1 import integration_service_pb2_grpc as integrations_grpc

from services.chassis.channel import open_channel
from services.chassis.database import Bound
from services.chassis.secret import Secret
from services.registry.access.key_text import key_id_of
from services.registry.store.invalidations import telling
from tests.family import Family

BUSY: int = 50
WITHIN_S = 1.0
CALL_S = 20.0
REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}

Call = Callable[[], Awaitable[Any]]
Change = Callable[["Victim"], tuple[str, Bound]]


@dataclass
class Victim:
    """Somebody who reads one tenant in both services, and will lose that."""

    key: Secret
    key_id: str
    principal_id: UUID
    tenant_id: UUID


def revoked(victim: Victim) -> tuple[str, Bound]:
    change = f"UPDATE registry.api_keys SET revoked_at = now() WHERE key_id = '{victim.key_id}'"
    return change, telling(key=victim.key_id)


def disabled(victim: Victim) -> tuple[str, Bound]:
    change = (
        "UPDATE registry.principals SET disabled_at = now()"
        f" WHERE principal_id = '{victim.principal_id}'"
    )
    return change, telling(principal=victim.principal_id)


def unbound(victim: Victim) -> tuple[str, Bound]:
    change = f"DELETE FROM registry.role_bindings WHERE subject = '{victim.principal_id}'"
    return change, telling(tenant=victim.tenant_id)


@pytest.mark.parametrize("change", [revoked, disabled, unbound])
async def test_it_takes_effect_in_both_services_while_fifty_others_call(
    family: Family, change: Change
) -> None:
    victim = await a_victim(family)
    async with busy(family), calls_of(family, victim.key) as calls:
        for call in calls.values():
            assert await refusal(call) is None
        await commit(family, *change(victim))
        at = time.monotonic()
        took = await asyncio.gather(*(until_refused(call, at) for call in calls.values()))
    # A second for both, counted from the commit.
    assert max(took) < WITHIN_S, dict(zip(calls, took, strict=True))


async def test_an_open_stream_ends_too(family: Family) -> None:
    victim = await a_victim(family, platform_role="EXECUTOR")
    async with busy(family), open_channel(family.registry, key=victim.key) as channel:
        stub: config_grpc.ConfigServiceAsyncStub = config_grpc.ConfigServiceStub(channel)
        stream = aiter(stub.WatchFeed(config.WatchFeedRequest(), timeout=60))
        await anext(stream)
        await commit(family, *revoked(victim))
        at = time.monotonic()
        assert await refusal(lambda: read_on(stream)) is grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - at < WITHIN_S


async def test_what_comes_back_counts_at_once_too(family: Family) -> None:
    victim = await a_victim(family)
    async with calls_of(family, victim.key) as calls:
        for call in calls.values():
            await refusal(call)
        await commit(family, *disabled(victim))
        at = time.monotonic()
        await asyncio.gather(*(until_refused(call, at) for call in calls.values()))
        again = f"UPDATE registry.principals SET disabled_at = NULL WHERE principal_id = '{victim.principal_id}'"
        await commit(family, again, telling(principal=victim.principal_id))
        at = time.monotonic()
        for call in calls.values():
            while await refusal(call) is not None:
                assert time.monotonic() - at < WITHIN_S
                await asyncio.sleep(0.01)


async def a_victim(family: Family, platform_role: str = "") -> Victim:
    tenant_id = family.tenant_id("acme")
    key = (
        await family.new_key(platform_role)
        if platform_role
        else await family.new_key("ADMIN", tenant_id)
    )
    key_id = key_id_of(key.reveal_text()) or ""
    ((principal_id,),) = family.rows(
        "SELECT principal_id FROM registry.api_keys WHERE key_id = %s", key_id
    )
    if platform_role:
        family.rows(
            "UPDATE registry.principals SET kind = 'service' WHERE principal_id = %s RETURNING 1",
            principal_id,
        )
    return Victim(key, key_id, UUID(str(principal_id)), tenant_id)


async def commit(family: Family, change: str, told: Bound) -> None:
    """A change and its notice in one transaction, as the registry makes it."""
    async with await psycopg.AsyncConnection.connect(
        family.admin.reveal_text(), cursor_factory=psycopg.AsyncRawCursor
    ) as connection:
        await connection.execute(change.encode())
        await connection.execute(told.statement.sql.encode(), told.statement.bind(told.parameters))


@asynccontextmanager
async def calls_of(family: Family, key: Secret) -> AsyncIterator[dict[str, Call]]:
    """A call of each service inside the tenant."""
    async with (
        open_channel(family.registry, key=key, reason="a test") as registry,
        open_channel(family.executor, key=key, reason="a test") as executor,
    ):
        wanted: integrations_grpc.IntegrationServiceAsyncStub = (
            integrations_grpc.IntegrationServiceStub(registry)
        )
        happened: executions_grpc.ExecutionServiceAsyncStub = executions_grpc.ExecutionServiceStub(
            executor
        )
        in_acme = integrations.ListIntegrationsRequest(parent="tenants/acme")
        of_acme = executions.ListExecutionsRequest(parent="tenants/acme", page_size=1)
        yield {
            "registry": lambda: wanted.ListIntegrations(in_acme, timeout=CALL_S),
            "executor": lambda: happened.ListExecutions(of_acme, timeout=CALL_S),
        }


@asynccontextmanager
async def busy(family: Family) -> AsyncIterator[None]:
    """Fifty callers that never rest, half of them at each service; they feel nothing of it."""
    keys = [await family.new_key("ADMIN", family.tenant_id("acme")) for _ in range(BUSY // 10)]
    failures: list[grpc.StatusCode] = []

    async def keep_calling(call: Call) -> None:
        while True:
            code = await refusal(call)
            if code is not None:
                failures.append(code)

    async with AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(calls_of(family, key)) for key in keys]
        tasks = [
            asyncio.create_task(keep_calling(call))
            for number in range(BUSY // 2)
            for call in calls[number % len(calls)].values()
        ]
        await asyncio.sleep(0.5)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert failures == []


async def until_refused(call: Call, since: float) -> float:
    """How long after `since` the first call is refused."""
    while await refusal(call) is None:
        assert time.monotonic() - since < CALL_S, "it is not refused at all"
    return time.monotonic() - since


async def refusal(call: Call) -> grpc.StatusCode | None:
    try:
        await call()
    except grpc.aio.AioRpcError as error:
        if error.code() not in REFUSED:
            raise
        return error.code()
    return None


async def read_on(stream: AsyncIterator[Any]) -> None:
    """Read a stream until it ends."""
    async for _ in stream:
        pass
