"""Principals, made and managed: a tenant's own, and the platform's."""

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tenon.registry.v1 import key_service_pb2 as keys
from tenon.registry.v1 import principal_service_pb2 as principals

from services.chassis import errors
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme

ACME = "tenants/acme"


@pytest.fixture
async def two_tenants(owner: Caller) -> None:
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug))


@pytest.fixture
async def admin(two_tenants: None, calling: Calls) -> Caller:
    """An admin of acme."""
    return await calling("ADMIN", "acme")


def service(parent: str = ACME, **fields: Any) -> principals.CreatePrincipalRequest:
    wanted = {"kind": "service", "display_name": "billing"} | fields
    return principals.CreatePrincipalRequest(parent=parent, **wanted)


async def names(caller: Caller, parent: str = ACME, **query: Any) -> list[str]:
    request = principals.ListPrincipalsRequest(parent=parent, **query)
    found = (await caller.principals.ListPrincipals(request)).principals
    return [one.display_name for one in found]


async def test_a_tenants_services_are_seen_and_managed_there_and_nowhere_else(
    admin: Caller, calling: Calls, owner: Caller
) -> None:
    made = await admin.principals.CreatePrincipal(service())
    assert made.name == f"{ACME}/principals/{made.uid}" and made.subject == made.uid
    assert await names(admin) == ["billing"]
    elsewhere = await calling("ADMIN", "globex")
    assert await names(elsewhere, "tenants/globex") == []
    assert "billing" not in await names(owner, "")
    for name in (f"tenants/globex/principals/{made.uid}", f"principals/{made.uid}"):
        caller = elsewhere if "globex" in name else owner
        with refused(errors.NotFound):
            await caller.principals.GetPrincipal(principals.GetPrincipalRequest(name=name))
        with refused(errors.NotFound):
            request = principals.DisablePrincipalRequest(name=name)
            await caller.principals.DisablePrincipal(request)
    with refused(errors.PermissionDenied):
        await admin.principals.ListPrincipals(principals.ListPrincipalsRequest())


async def test_only_an_owner_makes_a_user_for_whom_no_issuer_speaks(
    owner: Caller, registry: Registry
) -> None:
    ghost = service("", kind="user", display_name="ghost")
    with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
        await owner.principals.CreatePrincipal(ghost)
    known = service("", kind="user", issuer="https://idp.example", subject="alice")
    await owner.principals.CreatePrincipal(known)
    async with registry.caller(await registry.staff_key("owner")) as boss:
        await boss.principals.CreatePrincipal(ghost)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"kind": "user"}, "kind"),
        ({"kind": "robot"}, "kind"),
        ({"display_name": " "}, "display_name"),
        ({"issuer": "https://idp.example", "subject": "alice"}, "issuer"),
        ({"subject": "alice"}, "subject"),
        ({"email": "a@example.com"}, "email"),
    ],
)
async def test_a_tenant_cannot_make_anybody_it_likes(
    admin: Caller, wrong: dict[str, str], field: str
) -> None:
    with refused(errors.InvalidArgument) as held:
        await admin.principals.CreatePrincipal(service(**wrong))
    assert field in {violation.field for violation in held[0].violations}


async def test_an_identity_is_known_once(owner: Caller) -> None:
    alice = {"kind": "user", "issuer": "https://idp.example", "subject": "alice"}
    await owner.principals.CreatePrincipal(service("", **alice, email="alice@example.com"))
    with refused(errors.AlreadyExists):
        await owner.principals.CreatePrincipal(service("", **alice))


async def test_pages_follow_each_other(admin: Caller) -> None:
    for number in range(5):
        await admin.principals.CreatePrincipal(service(display_name=f"service {number}"))
    request = principals.ListPrincipalsRequest(parent=ACME, page_size=2)
    seen: list[str] = []
    while True:
        page = await admin.principals.ListPrincipals(request)
        seen += [one.display_name for one in page.principals]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == [f"service {number}" for number in range(5)]
    assert await names(admin, kind="source") == []


async def test_a_request_is_done_once_and_tells_its_answer_again(admin: Caller) -> None:
    request = service(request_id=str(uuid4()))
    answers = await asyncio.gather(*(admin.principals.CreatePrincipal(request) for _ in range(5)))
    assert len({one.uid for one in answers}) == 1
    assert await names(admin) == ["billing"]
    with refused(errors.InvalidArgument, "REQUEST_ID_REUSED"):
        other = service(display_name="another", request_id=request.request_id)
        await admin.principals.CreatePrincipal(other)


async def test_a_disabled_principal_may_not_call_until_it_is_enabled(
    admin: Caller, registry: Registry
) -> None:
    made = await admin.principals.CreatePrincipal(service())
    key = await admin.keys.CreateKey(
        keys.CreateKeyRequest(parent=ACME, principal=made.name, display_name="first")
    )
    async with registry.caller(key.text) as itself:
        assert await itself.is_known()
        disabled = await admin.principals.DisablePrincipal(
            principals.DisablePrincipalRequest(name=made.name)
        )
        assert disabled.HasField("disable_time")
        async with asyncio.timeout(5):
            while await itself.is_known():
                await asyncio.sleep(0.02)
        with refused(errors.FailedPrecondition, "PRINCIPAL_DISABLED"):
            await admin.keys.CreateKey(
                keys.CreateKeyRequest(parent=ACME, principal=made.name, display_name="second")
            )
        await admin.principals.EnablePrincipal(principals.EnablePrincipalRequest(name=made.name))
        async with asyncio.timeout(5):
            while not await itself.is_known():
                await asyncio.sleep(0.02)


async def test_changes_are_told_in_the_log_of_their_place(
    admin: Caller, owner: Caller, rows: psycopg.AsyncConnection[Any]
) -> None:
    made = await admin.principals.CreatePrincipal(service())
    request = principals.DisablePrincipalRequest(name=made.name)
    await admin.principals.DisablePrincipal(request)
    await admin.principals.DisablePrincipal(request)  # changes nothing, and tells nothing
    await owner.principals.CreatePrincipal(service("", display_name="of the platform"))
    query = "SELECT action, object FROM registry.{} WHERE kind = 'Principal' ORDER BY id"
    of_tenant = await (await rows.execute(query.format("audit_events"))).fetchall()
    assert of_tenant == [("create", "billing"), ("disable", "billing")]
    of_platform = await (await rows.execute(query.format("platform_audit_events"))).fetchall()
    assert of_platform == [("create", "of the platform")]
