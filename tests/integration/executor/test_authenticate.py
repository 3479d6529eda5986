"""What the executor asks the registry, how long it remembers, and what holds with it down."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from services.chassis import errors
from services.chassis.channel import open_channel
from services.chassis.secret import Secret
from services.executor.registry.client import Registry
from tests.integration.executor.running_registry import Document, RunningRegistry, document

Admin = psycopg.AsyncConnection[Any]


@dataclass
class Client:
    """The executor's client, with clocks that a test turns."""

    registry: Registry
    seconds: float = 0.0
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def wait(self, seconds: float) -> None:
        self.seconds += seconds
        self.now += timedelta(seconds=seconds)


def client_of(channel: Any) -> Client:
    made = Client(Registry(channel, clock=lambda: made.seconds, now=lambda: made.now))
    return made


@pytest.fixture
async def client(registry_service: RunningRegistry) -> AsyncIterator[Client]:
    async with open_channel(registry_service.target, key=registry_service.service_key) as channel:
        yield client_of(channel)


def token(value: bytes) -> Document:
    values = {"token": {"plain": b64encode(value).decode()}}
    return document("Credential", "token", type="bearer", values=values)


TENANT = document("Tenant", "acme", display_name="Acme")


async def test_a_key_is_whoever_it_belongs_to(
    registry_service: RunningRegistry, client: Client
) -> None:
    found = await client.registry.authenticate(registry_service.owner_key.reveal_text())
    assert (found.kind, found.display_name) == ("user", "the user")
    assert found.may("connectors.run", "acme")
    nobody = await registry_service.key("user", None)
    assert (await client.registry.authenticate(nobody.reveal_text())).accesses == {}


async def test_a_credential_of_nobody_is_refused(client: Client) -> None:
    for text in ("", "tnk_test_x", "tnk_test_0_0_0", "\N{DUCK}"):
        with pytest.raises(errors.Unauthenticated):
            await client.registry.authenticate(text)


async def test_our_own_bad_key_is_not_the_callers_fault(registry_service: RunningRegistry) -> None:
    key = registry_service.owner_key.reveal_text()
    async with open_channel(registry_service.target, key=Secret("tnk_test_wrong")) as channel:
        with pytest.raises(errors.Unavailable):
            await client_of(channel).registry.authenticate(key)


async def test_a_hundred_callers_at_once_make_one_call_and_a_known_one_none(
    registry_service: RunningRegistry, client: Client
) -> None:
    key = registry_service.owner_key.reveal_text()
    await asyncio.gather(*(client.registry.authenticate(key) for _ in range(100)))
    client.wait(29)
    await client.registry.authenticate(key)
    assert registry_service.calls["Authenticate"] == 1
    client.wait(2)
    await client.registry.authenticate(key)
    assert registry_service.calls["Authenticate"] == 2


async def test_with_the_registry_down_known_callers_serve_five_minutes_and_others_never(
    registry_service: RunningRegistry, client: Client
) -> None:
    key = registry_service.owner_key.reveal_text()
    await client.registry.authenticate(key)
    await registry_service.stop()
    client.wait(299)
    assert (await client.registry.authenticate(key)).kind == "user"
    with pytest.raises(errors.Unavailable):
        await client.registry.authenticate("tnk_test_unknown")
    client.wait(2)
    with pytest.raises(errors.Unavailable):
        await client.registry.authenticate(key)


async def test_a_registry_that_fails_is_no_refusal(
    registry_service: RunningRegistry, client: Client
) -> None:
    key = registry_service.owner_key.reveal_text()
    await client.registry.authenticate(key)
    registry_service.fault = errors.Internal("broken")
    client.wait(60)
    assert (await client.registry.authenticate(key)).kind == "user"
    with pytest.raises(errors.Unavailable):
        await client.registry.authenticate("tnk_test_unknown")


async def test_a_revoked_key_is_refused_within_thirty_seconds(
    registry_service: RunningRegistry, client: Client, admin: Admin
) -> None:
    key = await registry_service.key("user", "SUPER_ADMIN")
    await client.registry.authenticate(key.reveal_text())
    await registry_service.stop()
    await admin.execute(
        "UPDATE registry.api_keys SET revoked_at = now() WHERE key_id ="
        " (SELECT key_id FROM registry.api_keys ORDER BY created_at DESC LIMIT 1)"
    )
    await registry_service.start()
    client.wait(31)
    # Until the channel has found the registry again, the key still serves.
    async with asyncio.timeout(20):
        while not await refused(client, key):
            await asyncio.sleep(0.05)


async def test_among_many_wrong_ones_a_revoked_key_is_no_longer_served(
    registry_service: RunningRegistry, client: Client, admin: Admin
) -> None:
    key, here = await registry_service.key("user", "SUPER_ADMIN"), "192.0.2.1"
    await client.registry.authenticate(key.reveal_text(), here)
    await registry_service.stop()
    await admin.execute(
        "UPDATE registry.api_keys SET revoked_at = now() WHERE key_id ="
        " (SELECT key_id FROM registry.api_keys ORDER BY created_at DESC LIMIT 1)"
    )
    await registry_service.start()
    wrong = 0
    told: errors.TenonError = errors.Unavailable("not yet asked")
    async with asyncio.timeout(20):
        while told.code != "TOO_MANY_WRONG_CREDENTIALS":
            wrong += 1
            with pytest.raises((errors.Unauthenticated, errors.Unavailable)) as held:
                await client.registry.authenticate(f"tnk_test_wrong{wrong}", here)
            told = held.value
    assert isinstance(told, errors.Unauthenticated)
    assert told.retry_after_s
    client.wait(31)
    with pytest.raises(errors.Unauthenticated):
        await client.registry.authenticate(key.reveal_text(), here)


async def refused(client: Client, key: Secret) -> bool:
    try:
        await client.registry.authenticate(key.reveal_text())
    except errors.Unauthenticated:
        return True
    return False


async def test_an_expired_key_is_refused_at_its_second_though_it_is_remembered(
    registry_service: RunningRegistry, client: Client
) -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)
    key = (await registry_service.key("user", "SUPER_ADMIN", ends)).reveal_text()
    client.now = ends - timedelta(seconds=1)
    assert (await client.registry.authenticate(key)).expires_at == ends
    client.now = ends
    with pytest.raises(errors.Unauthenticated):
        await client.registry.authenticate(key)


async def test_a_secret_is_asked_once_a_version_and_shown_nowhere(
    registry_service: RunningRegistry, client: Client
) -> None:
    await registry_service.apply("acme", TENANT, token(b"canary-one"))
    tenant_id = await registry_service.tenant_id("acme")
    for _ in range(3):
        first = await client.registry.resolve(tenant_id, "token", 1)
    assert (first.type, first.version) == ("bearer", 1)
    assert first.values["token"].reveal() == b"canary-one"
    assert "canary" not in repr(first)
    await registry_service.apply("acme", token(b"canary-two"))
    second = await client.registry.resolve(tenant_id, "token", 2)
    assert second.values["token"].reveal() == b"canary-two"
    assert registry_service.calls["ResolveCredential"] == 2


async def test_with_the_registry_down_secrets_and_keys_serve_fifteen_minutes(
    registry_service: RunningRegistry, client: Client
) -> None:
    await registry_service.apply("acme", TENANT, token(b"canary"))
    tenant_id = await registry_service.tenant_id("acme")
    leased = await client.registry.lease_key(tenant_id)
    await client.registry.resolve(tenant_id, "token", 1)
    assert len(leased.key.reveal()) == 32
    await registry_service.stop()
    client.wait(899)
    assert await client.registry.lease_key(tenant_id) == leased
    assert (await client.registry.resolve(tenant_id, "token", 1)).version == 1
    with pytest.raises(errors.Unavailable):
        await client.registry.resolve(tenant_id, "other", 1)
    client.wait(2)
    with pytest.raises(errors.Unavailable):
        await client.registry.lease_key(tenant_id)
    with pytest.raises(errors.Unavailable):
        await client.registry.resolve(tenant_id, "token", 1)


async def test_a_credential_that_is_not_there_is_not_found(
    registry_service: RunningRegistry, client: Client
) -> None:
    await registry_service.apply("acme", TENANT)
    tenant_id = await registry_service.tenant_id("acme")
    with pytest.raises(errors.NotFound):
        await client.registry.resolve(tenant_id, "absent", 1)


async def test_a_fault_of_our_own_key_is_not_put_on_tenants_secrets(
    registry_service: RunningRegistry,
) -> None:
    await registry_service.apply("acme", TENANT, token(b"canary"))
    tenant_id = await registry_service.tenant_id("acme")
    for key in (Secret("tnk_test_wrong"), await registry_service.key("user", None)):
        async with open_channel(registry_service.target, key=key) as channel:
            registry = Registry(channel)
            with pytest.raises(errors.Unavailable):
                await registry.resolve(tenant_id, "token", 1)
            with pytest.raises(errors.Unavailable):
                await registry.lease_key(tenant_id)
