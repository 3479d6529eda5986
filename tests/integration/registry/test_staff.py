"""The platform's staff and grants: who may say who runs it, and that somebody always does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import principal_service_pb2 as principals
from tenon.registry.v1 import staff_service_pb2 as staff

from services.chassis import errors
from services.chassis.secret import Secret
from services.registry import opening
from services.registry.access.bootstrap import Bootstrap, Identity
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.documents import acme

Rows = psycopg.AsyncConnection[Any]


@pytest.fixture
async def boss(registry: Registry) -> AsyncIterator[Caller]:
    """An owner of the platform."""
    async with registry.caller(await registry.staff_key("owner")) as caller:
        yield caller


async def user(boss: Caller, name: str, kind: str = "user") -> str:
    request = principals.CreatePrincipalRequest(kind=kind, display_name=name)
    return (await boss.principals.CreatePrincipal(request)).name


async def may(caller: Caller, permission: str) -> bool:
    request = access.CheckPermissionRequest(permission=permission)
    return (await caller.access.CheckPermission(request)).allowed


async def listed(caller: Caller) -> dict[str, str]:
    found = await caller.staff.ListStaff(staff.ListStaffRequest())
    return {one.display_name: one.role for one in found.staff}


async def test_what_each_of_the_staff_may(registry: Registry) -> None:
    table = {
        "developer": {"principals.read"},
        "admin": {"principals.read", "principals.manage", "keys.manage"},
        "owner": {"principals.read", "principals.manage", "keys.manage", "grants.manage",
                  "staff.manage", "tenants.create"},
    }  # fmt: skip
    asked = table["owner"]
    for role, expected in table.items():
        async with registry.caller(await registry.staff_key(role)) as caller:
            assert {one for one in asked if await may(caller, one)} == expected
            who = await caller.access.WhoAmI(access.WhoAmIRequest())
            assert who.staff_role == role and who.session.startswith("key ")
            (grant,) = who.grants
            assert grant.needs_reason and grant.role == f"STAFF_{role.upper()}"
    async with registry.caller(await registry.staff_key("developer", "keys.read")) as caller:
        assert await may(caller, "keys.read")


async def test_only_owners_manage_staff(registry: Registry, boss: Caller, owner: Caller) -> None:
    alice = await user(boss, "alice")
    async with registry.caller(await registry.staff_key("admin")) as admin:
        for caller in (admin, owner):
            with refused(errors.PermissionDenied):
                await caller.staff.SetStaff(staff.SetStaffRequest(principal=alice, role="owner"))
    made = await boss.staff.SetStaff(
        staff.SetStaffRequest(principal=alice, role="developer", permissions=["keys.read"])
    )
    assert (made.role, list(made.permissions)) == ("developer", ["keys.read"])
    assert (await listed(boss))["alice"] == "developer"
    await boss.staff.RemoveStaff(staff.RemoveStaffRequest(principal=alice))
    assert "alice" not in await listed(boss)


@pytest.mark.parametrize("flag", ["staff.manage", "no.such"])
async def test_a_flag_is_a_permission_and_never_that_of_owners(boss: Caller, flag: str) -> None:
    request = staff.SetStaffRequest(
        principal=await user(boss, "alice"), role="developer", permissions=[flag]
    )
    with refused(errors.InvalidArgument) as held:
        await boss.staff.SetStaff(request)
    assert held[0].violations[0].field == "permissions[0]"


async def test_staff_are_users(boss: Caller) -> None:
    robot = await user(boss, "robot", "service")
    with refused(errors.FailedPrecondition, "NOT_A_USER"):
        await boss.staff.SetStaff(staff.SetStaffRequest(principal=robot, role="admin"))


async def test_the_last_owner_stays(boss: Caller) -> None:
    (one,) = (await boss.staff.ListStaff(staff.ListStaffRequest())).staff
    name = one.principal
    with refused(errors.FailedPrecondition, "LAST_OWNER"):
        await boss.staff.RemoveStaff(staff.RemoveStaffRequest(principal=name))
    with refused(errors.FailedPrecondition, "LAST_OWNER"):
        await boss.staff.SetStaff(staff.SetStaffRequest(principal=name, role="admin"))
    with refused(errors.FailedPrecondition, "LAST_OWNER"):
        await boss.principals.DisablePrincipal(principals.DisablePrincipalRequest(name=name))


@pytest.mark.parametrize("way", ["remove", "demote", "disable"])
async def test_of_two_owners_who_end_each_other_at_once_one_stays(
    registry: Registry, rows: Rows, way: str
) -> None:
    async with (
        registry.caller(await registry.staff_key("owner")) as first,
        registry.caller(await registry.staff_key("owner")) as second,
    ):
        names = [
            one.principal for one in (await first.staff.ListStaff(staff.ListStaffRequest())).staff
        ]
        assert len(names) == 2
        # Both are known before either ends the other.
        await second.staff.ListStaff(staff.ListStaffRequest())

        async def end(caller: Caller, name: str) -> bool:
            try:
                if way == "remove":
                    await caller.staff.RemoveStaff(staff.RemoveStaffRequest(principal=name))
                elif way == "demote":
                    await caller.staff.SetStaff(staff.SetStaffRequest(principal=name, role="admin"))
                else:
                    request = principals.DisablePrincipalRequest(name=name)
                    await caller.principals.DisablePrincipal(request)
            except grpc.aio.AioRpcError:
                return False
            return True

        ended = await asyncio.gather(end(first, names[1]), end(second, names[0]))
    assert sorted(ended) == [False, True]
    query = """
        SELECT count(*) FROM registry.staff JOIN registry.principals USING (principal_id)
        WHERE role = 'owner' AND disabled_at IS NULL"""
    assert await (await rows.execute(query)).fetchall() == [(1,)]


async def test_grants_reach_every_tenant_and_go_again(
    registry: Registry, boss: Caller, owner: Caller, rows: Rows
) -> None:
    await owner.apply("acme", acme())
    robot = await user(boss, "robot", "source")
    request = access.AddGrantRequest(
        principal=robot, role="CONFIG_SOURCE", kinds=["Connector"], sources=["git"]
    )
    given = await boss.access.AddGrant(request)
    assert (given.role, list(given.kinds), list(given.sources)) == (
        "CONFIG_SOURCE", ["Connector"], ["git"],
    )  # fmt: skip
    with refused(errors.AlreadyExists):
        await boss.access.AddGrant(request)
    found = await boss.access.ListGrants(access.ListGrantsRequest(principal=robot))
    assert list(found.grants) == [given]
    removal = access.RemoveGrantRequest(principal=robot, role="CONFIG_SOURCE")
    await boss.access.RemoveGrant(removal)
    with refused(errors.NotFound):
        await boss.access.RemoveGrant(removal)
    query = "SELECT action, risk FROM registry.platform_audit_events WHERE kind = 'PlatformGrant' ORDER BY id"
    assert await (await rows.execute(query)).fetchall() == [("create", 4), ("delete", 4)]


ROLES = ["VIEWER", "ADMIN", "CONFIG_SOURCE", "SUPER_ADMIN", "EXECUTOR"]


@pytest.mark.parametrize("role", ROLES)
async def test_only_an_owner_gives_what_reaches_every_tenant(
    boss: Caller, owner: Caller, role: str
) -> None:
    robot = await user(boss, "robot", "service")
    request = access.AddGrantRequest(principal=robot, role=role)
    with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
        await owner.access.AddGrant(request)
    await boss.access.AddGrant(request)
    with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
        await owner.access.RemoveGrant(access.RemoveGrantRequest(principal=robot, role=role))


async def test_a_tenants_principal_gets_no_role_of_the_platform(
    boss: Caller, owner: Caller
) -> None:
    await owner.apply("acme", acme())
    made = await owner.principals.CreatePrincipal(
        principals.CreatePrincipalRequest(
            parent="tenants/acme", kind="service", display_name="billing"
        )
    )
    with refused(errors.NotFound):
        request = access.AddGrantRequest(principal=f"principals/{made.uid}", role="VIEWER")
        await boss.access.AddGrant(request)


async def test_roles_are_listed_with_what_they_allow(owner: Caller) -> None:
    await owner.apply("acme", acme())
    found = await owner.access.ListRoles(access.ListRolesRequest(parent="tenants/acme"))
    roles = {one.role: one for one in found.roles}
    assert "config.apply" in roles["ADMIN"].permissions and not roles["ADMIN"].needs_reason
    assert roles["SUPER_ADMIN"].needs_reason and not roles["SUPER_ADMIN"].own


async def test_of_many_first_owners_at_once_there_is_one(registry: Registry, rows: Rows) -> None:
    told: list[Secret] = []
    log = opening.open_log(registry.vault)
    bootstrap = Bootstrap(registry.database, registry.access, log, "test")
    done = await asyncio.gather(
        *(bootstrap.owner(Identity(), told.append) for _ in range(4)), return_exceptions=True
    )
    refusals = [error for error in done if error is not None]
    assert len(refusals) == 3 and len(told) == 1
    assert {getattr(error, "code", error) for error in refusals} == {"HAS_AN_OWNER"}
    assert await (await rows.execute("SELECT role FROM registry.staff")).fetchall() == [("owner",)]
    async with registry.caller(told[0].reveal_text()) as first:
        assert await may(first, "staff.manage")
