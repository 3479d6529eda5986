"""Strangers, roles and credentials, at every RPC of the contract."""

from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import tenant_service_pb2 as tenant_pb2

from services.chassis import errors
from services.chassis.secret import Secret
from services.registry.access import key_text as keys
from tests.contracts import CONTRACTS
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme
from tests.integration.registry.rpcs import RPCS, Answer

DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EVERYBODY = frozenset({"VIEWER", "MANAGER", "ADMIN", "SUPER_ADMIN", "EXECUTOR"})
PEOPLE = EVERYBODY - {"EXECUTOR"}

# Written by hand: a permission given to one role too many must show here.
MAY = {
    "WhoAmI": EVERYBODY,
    "CheckPermission": EVERYBODY,
    "Authenticate": {"EXECUTOR"},
    "WatchInvalidations": {"EXECUTOR"},
    "ListRoles": PEOPLE,
    "ListGrants": {"SUPER_ADMIN"},
    "AddGrant": {"SUPER_ADMIN"},
    "RemoveGrant": {"SUPER_ADMIN"},
    "ReportUsage": {"EXECUTOR"},
    "GetPrincipal": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "ListPrincipals": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "CreatePrincipal": {"ADMIN", "SUPER_ADMIN"},
    "DisablePrincipal": {"ADMIN", "SUPER_ADMIN"},
    "EnablePrincipal": {"ADMIN", "SUPER_ADMIN"},
    "GetKey": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "ListKeys": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "GetKeyUsage": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "CreateKey": {"ADMIN", "SUPER_ADMIN"},
    "RotateKey": {"ADMIN", "SUPER_ADMIN"},
    "RevokeKey": {"ADMIN", "SUPER_ADMIN"},
    "ListStaff": {"SUPER_ADMIN"},
    # Only owners of the staff.
    "SetStaff": set(),
    "RemoveStaff": set(),
    "ListAuditEvents": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "GetAuditEvent": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "SummarizeAuditEvents": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "ExportAuditEvents": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "VerifyChain": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "ReviewAuditEvent": {"ADMIN", "SUPER_ADMIN"},
    "RecordAuditEvents": {"EXECUTOR"},
    "PlanConfig": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "ApplyConfig": {"ADMIN", "SUPER_ADMIN"},
    "DeleteObject": {"ADMIN", "SUPER_ADMIN"},
    "ListPendingRevisions": EVERYBODY,
    "GetPendingRevision": EVERYBODY,
    "ApproveRevision": {"ADMIN", "SUPER_ADMIN"},
    "RejectRevision": {"ADMIN", "SUPER_ADMIN"},
    "GetSnapshot": EVERYBODY,
    "ListRevisions": EVERYBODY,
    "WatchFeed": {"EXECUTOR"},
    "ReportProjection": {"EXECUTOR"},
    "ListCredentials": PEOPLE,
    "ResolveCredential": {"EXECUTOR"},
    "LeaseKey": {"EXECUTOR"},
    "GetCredential": PEOPLE,
    "PutCredential": {"ADMIN", "SUPER_ADMIN"},
    "RotateCredential": {"ADMIN", "SUPER_ADMIN"},
    "RevokeCredential": {"ADMIN", "SUPER_ADMIN"},
    "ShredCredentialVersion": {"ADMIN", "SUPER_ADMIN"},
    "RevealCredential": {"ADMIN", "SUPER_ADMIN"},
    "RefreshCredential": {"MANAGER", "ADMIN", "SUPER_ADMIN", "EXECUTOR"},
    "ReportCredentialUse": {"EXECUTOR"},
    "ListConnections": PEOPLE,
    "GetConnection": PEOPLE,
    "Disconnect": {"ADMIN", "SUPER_ADMIN"},
    "BeginOAuth": {"ADMIN", "SUPER_ADMIN"},
    "CompleteOAuth": {"ADMIN", "SUPER_ADMIN"},
    "CreateConnectLink": {"ADMIN", "SUPER_ADMIN"},
    "ListConnectLinks": PEOPLE,
    "RevokeConnectLink": {"ADMIN", "SUPER_ADMIN"},
    "OpenConnectLink": {"EXECUTOR"},
    "RelayOAuth": {"EXECUTOR"},
    "ListKeyVersions": {"SUPER_ADMIN"},
    "CreateKeyVersion": {"SUPER_ADMIN"},
    "Rewrap": {"SUPER_ADMIN"},
    "DisableKeyVersion": {"SUPER_ADMIN"},
    "EnableKeyVersion": {"SUPER_ADMIN"},
    "DestroyKeyVersion": {"SUPER_ADMIN"},
    "ReplaceTenantKey": {"SUPER_ADMIN"},
    "GetSealingKey": {"MANAGER", "ADMIN", "SUPER_ADMIN"},
    "GetIntegration": PEOPLE,
    "ListIntegrations": PEOPLE,
    "GetTenant": PEOPLE,
    "ListTenants": EVERYBODY,
    "DeleteTenant": {"SUPER_ADMIN"},
    "GetTombstone": {"SUPER_ADMIN", "EXECUTOR"},
    "ReportPurge": {"EXECUTOR"},
}
ROLES = {
    "VIEWER": "acme",
    "MANAGER": "acme",
    "ADMIN": "acme",
    "SUPER_ADMIN": "",
    "EXECUTOR": "",
}


@pytest.fixture
async def two_tenants(owner: Caller) -> None:
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug))


def test_every_rpc_has_a_line_in_the_table() -> None:
    assert {rpc.name for rpc in RPCS} == set(MAY)


@pytest.mark.usefixtures("two_tenants")
@pytest.mark.parametrize("kind", ["user", "service"])
async def test_a_stranger_cannot_tell_what_is_from_what_is_not(calling: Calls, kind: str) -> None:
    stranger = await calling("ADMIN", "globex", kind=kind)
    asked = [rpc for rpc in RPCS if rpc.rule.tenant_field]
    assert len(asked) >= 10
    for rpc in asked:
        there = await rpc.call(stranger.channel, "acme")
        absent = await rpc.call(stranger.channel, "none")
        assert there.code is DENIED, rpc.name
        assert there == Answer(
            absent.code,
            absent.message.replace("none", "acme"),
            absent.details.replace(b"none", b"acme"),
        ), rpc.name


@pytest.mark.usefixtures("two_tenants")
async def test_each_role_may_what_the_table_says_and_nothing_else(calling: Calls) -> None:
    for role, tenant in ROLES.items():
        kind = "service" if role == "EXECUTOR" else "user"
        caller = await calling(role, tenant, kind=kind)
        for rpc in RPCS:
            answer = await rpc.call(caller.channel, "acme")
            assert answer.code is not UNAUTHENTICATED or rpc.name == "Authenticate"
            assert (answer.code is not DENIED) == (role in MAY[rpc.name]), (role, rpc.name, answer)


@pytest.mark.usefixtures("two_tenants")
async def test_what_is_for_services_is_refused_to_people_of_any_role(calling: Calls) -> None:
    person = await calling("EXECUTOR", kind="user")
    for_services = [rpc for rpc in RPCS if rpc.rule.principal_kinds == {"service"}]
    assert len(for_services) == 12
    for rpc in for_services:
        assert (await rpc.call(person.channel, "acme")).code is DENIED, rpc.name


async def test_permissions_of_rules_and_of_the_database_are_the_same(
    rows: psycopg.AsyncConnection[tuple[object, ...]],
) -> None:

    from services.chassis.rules import rules_of

    kept = {
        row[0]
        for row in await (
            await rows.execute("SELECT permission FROM registry.permissions")
        ).fetchall()
    }
    of_executor = {
        rule.permission
        for file in CONTRACTS["executor"]
        for service in file.services_by_name.values()
        for rule in rules_of(service)
    }
    # What documents need, whatever call brings them.
    of_documents = {"tenants.create", "access.manage"}
    named = {rpc.rule.permission for rpc in RPCS} | of_executor | of_documents
    assert kept == named - {""}


@pytest.mark.usefixtures("two_tenants")
async def test_no_credential_that_does_not_hold_is_told_from_another(
    registry: Registry,
    anybody: grpc.aio.Channel,
    rows: psycopg.AsyncConnection[tuple[object, ...]],
) -> None:
    good = await registry.key("ADMIN", "acme")
    revoked = await registry.key("ADMIN", "acme")
    expired = await registry.key(
        "ADMIN", "acme", expires_at=datetime.now(UTC) - timedelta(seconds=1)
    )
    await rows.execute(
        "UPDATE registry.api_keys SET revoked_at = now() WHERE key_id = %s",
        [keys.key_id_of(revoked.reveal_text())],
    )
    text = good.reveal_text()
    unknown = keys.new_key("test", Secret(b"another pepper")).text.reveal_text()
    wrong = keys.new_key("test", Secret(b"another pepper")).text.reveal_text()
    key_id = keys.key_id_of(text)
    assert key_id is not None
    # The right id before a wrong secret, with a checksum that fits.
    body = f"{'_'.join([*text.split('_')[:3], wrong.split('_')[3]])}"
    swapped = f"{body}_{keys._crc(body)}"
    assert keys.key_id_of(swapped) == key_id
    bad = [revoked.reveal_text(), expired.reveal_text(), unknown, swapped, "x", text[:-1], "ü"]
    for rpc in RPCS:
        answers = {
            await rpc.call(anybody, "acme", authorization=f"Bearer {key}")
            for key in bad
            if key.isascii()
        }
        assert [answer.code for answer in answers] == [UNAUTHENTICATED], rpc.name
        missing = {
            await rpc.call(anybody, "acme", **metadata)
            for metadata in ({}, {"authorization": text}, {"authorization": "Bearer "})
        }
        assert [answer.code for answer in missing] == [UNAUTHENTICATED], rpc.name
        told = str(answers | missing)
        assert text not in told and swapped not in told
    whoami = next(rpc for rpc in RPCS if rpc.name == "WhoAmI")
    assert (
        await whoami.call(anybody, "", authorization=f"Bearer {text}")
    ).code is grpc.StatusCode.OK


@pytest.mark.usefixtures("two_tenants")
async def test_a_key_can_do_no_more_than_its_scopes(calling: Calls) -> None:
    reader = await calling("ADMIN", "acme", scopes=("integrations.read", "audit.read"))
    least = await calling("ADMIN", "acme", scopes=())

    async def may(caller: Caller, permission: str) -> bool:
        request = access_pb2.CheckPermissionRequest(tenant="tenants/acme", permission=permission)
        return (await caller.access.CheckPermission(request)).allowed

    assert await may(reader, "audit.read") and not await may(reader, "config.apply")
    assert await may(least, "tenants.read") and not await may(least, "integrations.read")
    with refused(errors.PermissionDenied):
        await reader.apply("acme", acme())


@pytest.mark.usefixtures("two_tenants")
async def test_a_caller_asks_only_about_themselves(calling: Calls, owner: Caller) -> None:
    admin = await calling("ADMIN", "globex")
    answer = await admin.access.WhoAmI(access_pb2.WhoAmIRequest())
    assert [(grant.tenant, grant.role) for grant in answer.grants] == [("globex", "ADMIN")]
    asked = [
        (
            await admin.access.CheckPermission(
                access_pb2.CheckPermissionRequest(tenant=tenant, permission="tenants.read")
            )
        ).allowed
        for tenant in ("tenants/globex", "globex", "tenants/acme", "tenants/none", "")
    ]
    assert asked == [True, True, False, False, False]
    listed = await admin.tenants.ListTenants(tenant_pb2.ListTenantsRequest())
    assert [each.name for each in listed.tenants] == ["tenants/globex"]
    listed = await owner.tenants.ListTenants(tenant_pb2.ListTenantsRequest())
    assert [each.name for each in listed.tenants] == ["tenants/acme", "tenants/globex"]


@pytest.mark.usefixtures("two_tenants")
async def test_the_executor_learns_who_a_credential_belongs_to(
    registry: Registry, calling: Calls
) -> None:
    executor = await calling("EXECUTOR", kind="service")
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    key = await registry.key("VIEWER", "acme", scopes=("*",), expires_at=until)
    answer = await executor.access.Authenticate(
        access_pb2.AuthenticateRequest(credential=key.reveal_text())
    )
    access = answer.accesses[0]
    assert (access.tenant, access.tenant_uid) == ("acme", str(await registry.tenant_id("acme")))
    (held,) = access.grants
    assert "executions.read" in held.permissions and "config.apply" not in held.permissions
    assert answer.expire_time.ToDatetime(UTC) == until
    with refused(errors.Unauthenticated):
        await executor.access.Authenticate(access_pb2.AuthenticateRequest(credential="nonsense"))


@pytest.mark.usefixtures("two_tenants")
@pytest.mark.parametrize(
    "name",
    [
        "",
        "tenants/",
        "tenants//integrations/github",
        "integrations/github",
        "tenants/A",
        "a\nb",
        "x" * 100_000,
    ],
    ids=lambda name: str(name[:12]),
)
async def test_a_name_that_is_none_is_refused_in_a_few_words(calling: Calls, name: str) -> None:
    callers = [await calling("SUPER_ADMIN")]
    # Who is in one tenant need not name it.
    callers += [await calling("ADMIN", "acme")] if name else []
    for caller in callers:
        with refused(errors.InvalidArgument) as held:
            await caller.tenants.GetTenant(tenant_pb2.GetTenantRequest(name=name))
        assert len(held[0].message) < 200
