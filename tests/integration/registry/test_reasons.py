"""What somebody may do only for a reason, they may not do without one, whatever else they may."""

from uuid import UUID

import psycopg
import pytest
from tenon.registry.v1 import access_service_pb2 as pb
from tenon.registry.v1 import tenant_service_pb2 as tenant_pb

from services.chassis.channel import open_channel
from services.chassis.errors import InvalidArgument, PermissionDenied
from services.chassis.secret import Secret
from services.chassis.tenancy import PLATFORM
from tests.grants import grant
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.documents import acme, integration

Rows = psycopg.AsyncConnection[tuple[object, ...]]
CHANGED = integration(config={"owner": "acme"}, base_url="http://127.0.0.1:7")


@pytest.fixture
async def both(registry: Registry, owner: Caller, rows: Rows) -> Secret:
    """The key of a SUPER_ADMIN who is bound in acme, too, to change subscriptions."""
    await owner.apply("acme", acme())
    key = await registry.key("SUPER_ADMIN")
    async with registry.caller(key.reveal_text()) as caller:
        uid = (await caller.access.WhoAmI(pb.WhoAmIRequest())).principal.uid
    await grant(registry.database, await registry.tenant_id("acme"), "user", UUID(uid), "ADMIN")
    narrow = "UPDATE registry.role_bindings SET kinds = '{Subscription}' WHERE subject = %s"
    await rows.execute(narrow, [uid])
    registry.access._seen.drop(lambda *_: True)
    return key


async def test_a_narrow_grant_is_no_way_to_the_wide_one_without_a_reason(
    registry: Registry, both: Secret
) -> None:
    async with open_channel(registry.target, key=both) as channel:
        with refused(PermissionDenied):
            await Caller(channel).apply("acme", [CHANGED])
    async with registry.caller(both.reveal_text()) as caller:
        await caller.apply("acme", [CHANGED])


async def test_what_only_the_wide_one_allows_asks_for_a_reason(
    registry: Registry, both: Secret, rows: Rows
) -> None:
    await rows.execute("UPDATE registry.role_bindings SET role = 'VIEWER', kinds = '{}'")
    registry.access._seen.drop(lambda *_: True)
    async with open_channel(registry.target, key=both) as channel:
        caller = Caller(channel)
        await caller.tenants.GetTenant(tenant_pb.GetTenantRequest(name="tenants/acme"))
        with refused(InvalidArgument, "REASON_REQUIRED"):
            await caller.apply("acme", [CHANGED])


async def test_without_the_grants_that_need_a_reason_the_rest_is_left(
    registry: Registry, both: Secret
) -> None:
    principal = await registry.access.authenticate(both.reveal_text())
    left = principal.without_reason()
    assert not left.may("config.apply", PLATFORM)
    assert left.may_change("config.apply", "acme", "Subscription", "git")
    assert not left.may_change("config.apply", "acme", "Integration", "git")
    assert left.without_reason() is left
