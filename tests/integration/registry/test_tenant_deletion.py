"""A tenant that is deleted: refused while in use, then draining, purged, and its proof kept."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from tenon.registry.v1 import (
    access_service_pb2,
    audit_service_pb2,
    config_service_pb2,
    integration_service_pb2,
    wanted_pb2,
)
from tenon.registry.v1 import key_service_pb2 as keys
from tenon.registry.v1 import principal_service_pb2 as principals
from tenon.registry.v1 import tenant_service_pb2 as pb2

from services.chassis import errors
from services.chassis.invalidation import EVERYTHING
from services.chassis.usage import Counted, Stay
from services.registry.access.usage import Usage
from services.registry.opening import open_log
from services.registry.store import tombstones
from services.registry.store.purge import KEPT, ROWS
from services.registry.tenants.purge import Purge
from tests.grants import grant
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme, resource, tenant

Rows = psycopg.AsyncConnection[tuple[Any, ...]]
NAME = "tenants/acme"


@pytest.fixture
async def executor(calling: Calls) -> Caller:
    """The executor's own key."""
    return await calling("EXECUTOR", kind="service")


@pytest.fixture
def purge(registry: Registry) -> Purge:
    """The leader's loop, driven by hand."""
    return Purge(registry.database, open_log(registry.vault))


@pytest.fixture(autouse=True)
async def _applied(owner: Caller) -> None:
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug), request_id=str(uuid4()))


async def delete(owner: Caller, **request: Any) -> pb2.Tenant:
    return await owner.tenants.DeleteTenant(
        pb2.DeleteTenantRequest(**{"name": NAME, "request_id": str(uuid4()), **request}), timeout=9
    )


async def get(caller: Caller) -> pb2.Tenant:
    return await caller.tenants.GetTenant(pb2.GetTenantRequest(name=NAME), timeout=9)


async def everything(rows: Rows, tenant_id: object) -> dict[str, list[str]]:
    """All rows of a tenant, by table."""
    found = {}
    for table in (*ROWS.tables, *KEPT):
        query = f"SELECT t::text FROM registry.{table} t WHERE tenant_id = %s ORDER BY 1"
        cursor = await rows.execute(query.encode(), [tenant_id])
        found[table] = [str(text) for (text,) in await cursor.fetchall()]
    return found


async def test_an_enabled_tenant_is_refused_with_what_is_in_use(
    owner: Caller, registry: Registry, rows: Rows
) -> None:
    before = await everything(rows, await registry.tenant_id("acme"))
    with refused(errors.FailedPrecondition, "TENANT_IN_USE") as held:
        await delete(owner)
    assert "is enabled, with 1 active connectors" in held[0].message
    assert await everything(rows, await registry.tenant_id("acme")) == before


async def test_what_others_must_approve_is_not_deleted_by_one_alone(
    owner: Caller, calling: Calls
) -> None:
    def policy(**spec: object) -> wanted_pb2.Resource:
        return resource("review_policy", "four-eyes", min_risk="CRITICAL", **spec)

    await owner.apply("acme", [policy()])
    with refused(errors.FailedPrecondition, "REVIEW_REQUIRED") as held:
        await delete(owner, force=True)
    assert "four-eyes" in held[0].message
    assert (await get(owner)).state == pb2.Tenant.STATE_ACTIVE
    answer = await owner.apply("acme", [policy(kinds=["Connector"])])
    approver = await calling("ADMIN", "acme")
    await approver.config.ApproveRevision(
        config_service_pb2.ApproveRevisionRequest(name=answer.pending.name)
    )
    assert (await delete(owner, force=True)).state == pb2.Tenant.STATE_DRAINING


async def test_another_etag_is_refused(owner: Caller) -> None:
    found = await get(owner)
    await owner.apply("acme", [tenant("acme", display_name="Other")])
    with refused(errors.Aborted, "ETAG_MISMATCH"):
        await delete(owner, force=True, etag=found.etag)
    assert (await get(owner)).state == pb2.Tenant.STATE_ACTIVE


async def test_only_who_may_delete_tenants_does(calling: Calls) -> None:
    admin = await calling("ADMIN", "acme")
    with refused(errors.PermissionDenied):
        await delete(admin, force=True)


async def test_a_disabled_tenant_drains_and_nothing_of_it_changes(
    owner: Caller, calling: Calls, registry: Registry, rows: Rows
) -> None:
    await owner.apply("acme", [tenant("acme", enabled=False)])
    answer = await delete(owner)
    assert answer.state == pb2.Tenant.STATE_DRAINING
    assert not answer.enabled
    assert (answer.deletion.reason, answer.deletion.forced) == ("a test", False)
    assert not answer.deletion.HasField("report_time")

    with refused(errors.FailedPrecondition, "TENANT_DRAINING"):
        await owner.apply("acme", [tenant("acme", enabled=True)])
    admin = await calling("ADMIN", "acme")
    assert (await get(admin)).state == pb2.Tenant.STATE_DRAINING
    with refused(errors.FailedPrecondition, "TENANT_DISABLED"):
        await admin.integrations.ListIntegrations(
            integration_service_pb2.ListIntegrationsRequest(parent=NAME)
        )
    logged = await rows.execute(
        "SELECT action, risk FROM registry.audit_events WHERE tenant_id = %s AND kind = 'Tenant'"
        " ORDER BY id DESC LIMIT 1",
        [await registry.tenant_id("acme")],
    )
    assert await logged.fetchone() == ("delete", 4)


async def test_who_comes_to_a_tenant_that_goes_leaves_no_row(
    owner: Caller, registry: Registry, purge: Purge, rows: Rows
) -> None:
    mine = await registry.tenant_id("acme")
    me = UUID((await owner.access.WhoAmI(access_service_pb2.WhoAmIRequest())).principal.uid)
    await delete(owner, force=True)
    await tombstones.report(registry.database, mine, {})
    await purge.purge(mine)
    stay = Stay(principal_id=me, tenant_id=mine, since=datetime.now(UTC).timestamp())
    await Usage(registry.database).keep(Counted(uses=(), stays=(stay,)))
    assert (await everything(rows, mine))["tenant_switches"] == []


async def test_a_repeated_deletion_answers_and_does_nothing(
    owner: Caller, registry: Registry, rows: Rows
) -> None:
    request_id = str(uuid4())
    first = await delete(owner, force=True, request_id=request_id)
    before = await everything(rows, await registry.tenant_id("acme"))
    assert await delete(owner, force=True, request_id=request_id) == first
    assert await delete(owner) == first
    assert await everything(rows, await registry.tenant_id("acme")) == before


async def test_the_feed_and_the_snapshot_tell_the_executor(
    owner: Caller, executor: Caller, registry: Registry
) -> None:
    await delete(owner, force=True)
    tenant_id = str(await registry.tenant_id("acme"))
    feed = executor.config.WatchFeed(config_service_pb2.WatchFeedRequest())
    kinds: list[str] = []
    while "tenant" not in kinds:
        entry = (await anext(aiter(feed))).entry
        kinds += [entry.kind] if entry.tenant_uid == tenant_id else []
    feed.cancel()
    assert kinds == ["revision", "tenant"]
    request = config_service_pb2.GetSnapshotRequest(name=f"tenants/{tenant_id}")
    head = (await anext(aiter(executor.config.GetSnapshot(request)))).head
    assert (head.draining, head.enabled) == (True, False)


async def test_nothing_is_purged_before_the_executor_has_reported(
    owner: Caller, executor: Caller, registry: Registry
) -> None:
    await delete(owner, force=True)
    assert await tombstones.due(registry.database) == []
    mine = await registry.tenant_id("acme")
    await executor.tenants.ReportPurge(pb2.ReportPurgeRequest(name=f"tenants/{mine}"))
    assert await tombstones.due(registry.database) == [mine]


async def test_a_purged_tenant_leaves_its_slug_and_the_proof(
    owner: Caller, executor: Caller, calling: Calls, registry: Registry, purge: Purge, rows: Rows
) -> None:
    await registry.key("ADMIN", "acme")
    mine, other = await registry.tenant_id("acme"), await registry.tenant_id("globex")
    await executor.config.ReportProjection(
        config_service_pb2.ReportProjectionRequest(name=f"tenants/{mine}", revision=1)
    )
    others, before = await everything(rows, other), await everything(rows, mine)
    await delete(owner, force=True)
    for count in (7, 0):
        report = pb2.ReportPurgeRequest(name=f"tenants/{mine}", rows={"events": count})
        await executor.tenants.ReportPurge(report)
    await purge.purge(mine)
    await purge.purge(mine)

    after = await everything(rows, mine)
    left = {table: rows for table, rows in after.items() if rows and table not in KEPT}
    # That it was purged is itself told, to people at once and to an executor that has it again.
    assert list(left) == ["feed"]
    kinds = await rows.execute(
        "SELECT kind FROM registry.feed WHERE tenant_id = %s ORDER BY 1", [mine]
    )
    assert await kinds.fetchall() == [("notice",), ("tenant",)]
    assert after["config_revisions"] == before["config_revisions"]
    assert set(before["audit_events"]) < set(after["audit_events"])
    assert len(after["audit_events"]) == len(before["audit_events"]) + 2
    assert await everything(rows, other) == others

    stone = await owner.tenants.GetTombstone(pb2.GetTombstoneRequest(name="tombstones/acme"))
    assert (dict(stone.executor_rows), stone.forced, stone.reason) == (
        {"events": 7},
        True,
        "a test",
    )
    gone = MessageToDict(stone)["registryRows"]
    assert gone["data_keys"] == gone["connectors"] == "1"
    assert {table for table in gone if before[table]} == {
        table for table in ROWS.tables if before[table]
    }
    cursor = await rows.execute(
        "SELECT state, display_name, labels, limits FROM registry.tenants WHERE tenant_id = %s",
        [mine],
    )
    assert await cursor.fetchone() == ("purged", "", {}, {})
    forget_found(registry)
    with refused(errors.NotFound):
        await get(owner)
    listed = await owner.tenants.ListTenants(pb2.ListTenantsRequest())
    assert [one.name for one in listed.tenants] == ["tenants/globex"]


def forget_found(registry: Registry) -> None:
    """Let the registry forget what it found a moment ago, as its invalidations do."""
    registry.tenants.forget(EVERYTHING)


async def test_the_log_of_a_purged_tenant_is_read_by_whoever_acts_for_the_platform(
    owner: Caller, calling: Calls, registry: Registry, purge: Purge
) -> None:
    stranger, mine = await calling("ADMIN", "globex"), await registry.tenant_id("acme")
    executor = await calling("EXECUTOR", kind="service")
    await delete(owner, force=True)
    await tombstones.report(registry.database, mine, {})
    await purge.purge(mine)
    for name in (NAME, f"tenants/{mine}"):
        listing = audit_service_pb2.ListAuditEventsRequest(parent=name)
        told = (await owner.audit.ListAuditEvents(listing)).audit_events
        assert [told[0].action, told[1].action] == ["purge", "delete"]
        walk = owner.audit.VerifyChain(audit_service_pb2.VerifyChainRequest(parent=name))
        assert [each async for each in walk][-1].verdict.intact
        with refused(errors.PermissionDenied):
            await stranger.audit.ListAuditEvents(listing)
        # Nothing else of it is there.
        with refused(errors.NotFound):
            await owner.tenants.GetTenant(pb2.GetTenantRequest(name=name))
        with refused(errors.NotFound):
            request = audit_service_pb2.RecordAuditEventsRequest(parent=name)
            await executor.audit.RecordAuditEvents(request)
    review = audit_service_pb2.ReviewAuditEventRequest(
        parent=NAME, uid=told[0].name.rpartition("/")[2], note="as asked"
    )
    assert (await owner.audit.ReviewAuditEvent(review)).review.note == "as asked"


async def test_a_slug_is_never_used_again(
    owner: Caller, executor: Caller, registry: Registry, purge: Purge
) -> None:
    mine = await registry.tenant_id("acme")
    await delete(owner, force=True)
    await executor.tenants.ReportPurge(pb2.ReportPurgeRequest(name=f"tenants/{mine}"))
    await purge.purge(mine)
    forget_found(registry)
    with refused(errors.AlreadyExists) as held:
        await owner.apply("acme", acme("acme"))
    assert "a slug is never used again" in held[0].message
    with refused(errors.AlreadyExists):
        await owner.plan("acme", acme("acme"))


async def test_the_disabled_are_not_read_until_they_are_enabled(
    owner: Caller, calling: Calls
) -> None:
    listing = integration_service_pb2.ListIntegrationsRequest(parent=NAME)
    viewer = await calling("VIEWER", "acme")
    assert (await viewer.integrations.ListIntegrations(listing)).integrations
    await owner.apply("acme", [tenant("acme", enabled=False)])
    late = await calling("VIEWER", "acme")
    with refused(errors.FailedPrecondition, "TENANT_DISABLED"):
        await late.integrations.ListIntegrations(listing)
    assert (await get(late)).state == pb2.Tenant.STATE_DISABLED
    await owner.apply("acme", [tenant("acme", enabled=True)])
    woken = await calling("VIEWER", "acme")
    assert (await woken.integrations.ListIntegrations(listing)).integrations


async def test_nobody_calls_any_more_who_was_the_tenants_own(
    owner: Caller, calling: Calls, registry: Registry, purge: Purge
) -> None:
    admin, tenant_id = await calling("ADMIN", "acme"), await registry.tenant_id("acme")
    billing = await admin.principals.CreatePrincipal(
        principals.CreatePrincipalRequest(parent=NAME, kind="service", display_name="billing")
    )
    globex = await registry.tenant_id("globex")
    await grant(registry.database, globex, "service", UUID(billing.uid), "VIEWER")
    made = await admin.keys.CreateKey(
        keys.CreateKeyRequest(parent=NAME, principal=billing.name, display_name="x", scopes=["*"])
    )
    async with registry.caller(made.text) as itself:
        assert await itself.is_known()
        await delete(owner, force=True)
        await tombstones.report(registry.database, tenant_id, {})
        await purge.purge(tenant_id)
        async with asyncio.timeout(5):
            while await itself.is_known():
                await asyncio.sleep(0.01)
    assert await admin.is_known()
