"""What keys were used for, as processes report it and people see it."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import key_service_pb2 as keys
from tenon.registry.v1 import principal_service_pb2 as principals

from services.chassis import errors
from services.chassis.channel import open_channel
from services.chassis.usage import BUCKET_S, Counted, Stay, Use
from services.executor.registry.client import Registry as RegistryClient
from services.registry.access.usage import Usage
from services.registry.store import retention
from tests.grants import grant
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.documents import acme

ACME = "tenants/acme"


@pytest.fixture
async def key(owner: Caller) -> keys.CreateKeyResponse:
    """A key of a service of acme."""
    await owner.apply("acme", acme())
    made = await owner.principals.CreatePrincipal(
        principals.CreatePrincipalRequest(parent=ACME, kind="service", display_name="billing")
    )
    request = keys.CreateKeyRequest(parent=ACME, principal=made.name, display_name="ledger")
    return await owner.keys.CreateKey(request)


def use(key_id: str, ago: timedelta = timedelta(0), count: int = 1, **where: str) -> Use:
    then = time.time() - ago.total_seconds()
    place = {"method": "/a.Service/Get", "address": "10.0.0.1", "user_agent": ""} | where
    return Use(key_id, bucket=int(then) // BUCKET_S * BUCKET_S, count=count, last=then, **place)


async def windows(caller: Caller, name: str) -> dict[timedelta, keys.UsageWindow]:
    answer = await caller.keys.GetKeyUsage(keys.GetKeyUsageRequest(name=name))
    return {window.period.ToTimedelta(): window for window in answer.windows}


async def test_calls_are_counted_by_what_and_from_where_in_rolling_windows(
    registry: Registry, owner: Caller, key: keys.CreateKeyResponse
) -> None:
    key_id = key.key.name.rpartition("/")[2]
    usage = Usage(registry.database)
    await usage.keep(
        Counted(
            (
                use(key_id, count=3),
                use(key_id, address="10.0.0.2", count=4),
                use(key_id, timedelta(hours=5), method="/a.Service/List", count=10),
                use(key_id, timedelta(days=6), count=100),
            ),
            (),
        )
    )
    # The same bucket once more, from another process.
    await usage.keep(Counted((use(key_id, count=2),), ()))
    found = await windows(owner, key.key.name)
    counts = [
        found[timedelta(**p)].count for p in ({"hours": 1}, {"days": 1}, {"days": 7}, {"days": 30})
    ]
    assert counts == [9, 19, 119, 119]
    day = found[timedelta(days=1)]
    assert [(one.name, one.count) for one in day.by_method] == [
        ("/a.Service/List", 10), ("/a.Service/Get", 9),
    ]  # fmt: skip
    assert [(one.name, one.count) for one in day.by_address] == [("10.0.0.1", 15), ("10.0.0.2", 4)]
    shown = await owner.keys.GetKey(keys.GetKeyRequest(name=key.key.name))
    assert datetime.now(UTC) - shown.last_use_time.ToDatetime(UTC) < timedelta(minutes=1)


async def test_many_processes_report_at_once_and_every_call_is_counted(
    registry: Registry, owner: Caller, key: keys.CreateKeyResponse
) -> None:
    key_id = key.key.name.rpartition("/")[2]
    usage = Usage(registry.database)
    uses = tuple(use(key_id, address=f"10.0.0.{n}") for n in range(20))
    orders = (uses, uses[::-1])
    await asyncio.gather(*(usage.keep(Counted(orders[n % 2], ())) for n in range(20)))
    assert (await windows(owner, key.key.name))[timedelta(hours=1)].count == 400


async def test_the_executor_reports_through_the_contract(
    registry: Registry, owner: Caller, key: keys.CreateKeyResponse
) -> None:
    key_id = key.key.name.rpartition("/")[2]
    service = await registry.key("EXECUTOR", kind="service")
    async with open_channel(registry.target, key=service) as channel:
        client = RegistryClient(channel)
        await client.report_usage(Counted((use(key_id, count=7), use("unknown")), ()))
        with pytest.raises(errors.InvalidArgument):
            await client.report_usage(Counted((use(key_id, timedelta(days=40)),), ()))
    assert (await windows(owner, key.key.name))[timedelta(hours=1)].count == 7


async def test_the_last_switch_of_tenant_is_known_and_only_that(
    registry: Registry, owner: Caller
) -> None:
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug))
    async with registry.caller(await registry.staff_key("owner")) as boss:
        made = await boss.principals.CreatePrincipal(
            principals.CreatePrincipalRequest(kind="user", display_name="alice")
        )
    key = await owner.keys.CreateKey(
        keys.CreateKeyRequest(principal=made.name, display_name="laptop", scopes=["*"])
    )
    acme_id, globex_id = [await registry.tenant_id(slug) for slug in ("acme", "globex")]
    alice = UUID(made.uid)
    for tenant_id in (acme_id, globex_id):
        await grant(registry.database, tenant_id, "user", alice, "VIEWER")
    usage = Usage(registry.database)
    begin = time.time() - 1000

    async def works(*stays: tuple[UUID, float]) -> dict[str, float]:
        for tenant_id, after in stays:
            await usage.keep(Counted((), (Stay(alice, tenant_id, begin + after),)))
        async with registry.caller(key.text) as itself:
            who = await itself.access.WhoAmI(access.WhoAmIRequest())
        return {
            one.tenant: one.switch_time.ToNanoseconds() / 1e9 - begin
            for one in who.grants
            if one.HasField("switch_time")
        }

    assert await works((acme_id, 0)) == {"acme": pytest.approx(0, abs=0.01)}
    # Still there; then to the other one, which an old report does not undo.
    assert await works((acme_id, 10)) == {"acme": pytest.approx(0, abs=0.01)}
    found = await works((globex_id, 20), (acme_id, 15))
    assert found == {"acme": pytest.approx(0, abs=0.01), "globex": pytest.approx(20, abs=0.01)}
    found = await works((acme_id, 30))
    assert found == {"acme": pytest.approx(30, abs=0.01), "globex": pytest.approx(20, abs=0.01)}


async def test_answers_of_idle_tenants_are_forgotten_after_a_day(
    registry: Registry, owner: Caller, key: keys.CreateKeyResponse
) -> None:
    request_id = "0190a1b2-0000-7000-8000-000000000001"
    for parent in (ACME, ""):
        await owner.principals.CreatePrincipal(
            principals.CreatePrincipalRequest(
                parent=parent, kind="service", display_name="x", request_id=request_id
            )
        )
    now = datetime.now(UTC)
    others = {"credential_uses": 0, "oauth_flows": 0, "connect_links": 0}
    assert await retention.forget(registry.database, now) == {
        "request_answers": 0, "platform_answers": 0, **others,
    }  # fmt: skip
    assert await retention.forget(registry.database, now + timedelta(hours=25)) == {
        "request_answers": 1, "platform_answers": 1, **others,
    }  # fmt: skip


async def test_only_services_report(owner: Caller, key: keys.CreateKeyResponse) -> None:
    with refused(errors.PermissionDenied):
        await owner.access.ReportUsage(access.ReportUsageRequest())
