"""API keys: made, shown masked, rotated, taken back; two live ones of a name at most."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import key_service_pb2 as keys
from tenon.registry.v1 import principal_service_pb2 as principals
from tenon.registry.v1 import staff_service_pb2 as staff

from services.chassis import errors
from services.registry.access.staff import appoint
from tests.grants import grant
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme

ACME = "tenants/acme"
Rows = psycopg.AsyncConnection[Any]


@pytest.fixture
async def admin(owner: Caller, calling: Calls) -> Caller:
    """An admin of acme."""
    await owner.apply("acme", acme())
    return await calling("ADMIN", "acme")


@pytest.fixture
async def billing(admin: Caller) -> str:
    """A service of acme."""
    request = principals.CreatePrincipalRequest(parent=ACME, kind="service", display_name="billing")
    return (await admin.principals.CreatePrincipal(request)).name


def wish(principal: str, **fields: Any) -> keys.CreateKeyRequest:
    wanted = {"display_name": "ledger", "scopes": ["tenants.read"]} | fields
    parent = principal.rpartition("/principals/")[0]
    if expire := wanted.pop("expire", None):
        wanted["expire_time"] = _stamp(datetime.now(UTC) + expire)
    return keys.CreateKeyRequest(parent=parent, principal=principal, **wanted)


def _stamp(moment: datetime) -> Any:
    request = keys.CreateKeyRequest()
    request.expire_time.FromDatetime(moment)
    return request.expire_time


async def test_a_key_is_told_once_and_then_only_masked(admin: Caller, billing: str) -> None:
    made = await admin.keys.CreateKey(
        wish(billing, metadata={"team": "ledger"}, address_ranges=["10.0.0.0/8"])
    )
    key_id = made.key.name.rpartition("/")[2]
    assert made.text.startswith(f"tnk_local_{key_id}_") and made.key.name == f"{ACME}/keys/{key_id}"
    shown = await admin.keys.GetKey(keys.GetKeyRequest(name=made.key.name))
    assert shown == made.key and shown.state == keys.Key.STATE_LIVE
    assert shown.masked == f"tnk_local_{key_id}_…{made.text[-4:]}"
    listed = await admin.keys.ListKeys(keys.ListKeysRequest(parent=ACME))
    assert list(listed.keys) == [shown]
    for answer in (shown, listed):
        assert made.text not in str(answer) and made.text[20:50] not in str(answer)


async def test_a_key_holds_until_it_is_taken_back(
    admin: Caller, billing: str, registry: Registry, rows: Rows
) -> None:
    made = await admin.keys.CreateKey(wish(billing))
    async with registry.caller(made.text) as itself:
        assert await itself.is_known()
        request = keys.RevokeKeyRequest(name=made.key.name, reason="it was in a chat")
        revoked = await admin.keys.RevokeKey(request)
        assert revoked.state == keys.Key.STATE_REVOKED
        assert revoked.revoke_reason == "it was in a chat" and revoked.revoked_by
        async with asyncio.timeout(1):
            while await itself.is_known():
                await asyncio.sleep(0.01)
    again = await admin.keys.RevokeKey(keys.RevokeKeyRequest(name=made.key.name, reason="other"))
    assert again == revoked
    query = "SELECT action, fields FROM registry.audit_events WHERE kind = 'Key' ORDER BY id"
    told = await (await rows.execute(query)).fetchall()
    assert [action for action, _ in told] == ["create", "revoke"]
    assert made.text not in str(told)


@pytest.mark.parametrize(
    ("wrong", "field", "word"),
    [
        ({"scopes": ["tenants.read", "tenants.write"]}, "scopes[1]", "no permission"),
        ({"address_ranges": ["10.0.0.1/8"]}, "address_ranges[0]", "bits set"),
        ({"address_ranges": ["::/0", "nowhere"]}, "address_ranges[1]", "no network"),
        ({"expire": timedelta(seconds=-1)}, "expire_time", "ahead"),
        ({"display_name": ""}, "display_name", "characters"),
        ({"metadata": {"note": "ghp_abcdefghijklmnop1234"}}, "metadata", "secret"),
    ],
)
async def test_what_is_wrong_with_a_wish_is_said_by_field(
    admin: Caller, billing: str, wrong: dict[str, Any], field: str, word: str
) -> None:
    with refused(errors.InvalidArgument) as held:
        await admin.keys.CreateKey(wish(billing, **wrong))
    (violation,) = held[0].violations
    assert violation.field == field and word in violation.description


async def test_a_key_without_scopes_may_the_least_and_none_more_than_its_principal(
    admin: Caller, billing: str, registry: Registry
) -> None:
    for name, scopes in (("least", []), ("all", ["*"])):
        made = await admin.keys.CreateKey(wish(billing, display_name=name, scopes=scopes))
        async with registry.caller(made.text) as itself:
            for permission in ("tenants.read", "config.apply"):
                request = access.CheckPermissionRequest(tenant=ACME, permission=permission)
                # The service was given no role in acme.
                assert not (await itself.access.CheckPermission(request)).allowed


@pytest.fixture
async def boss(registry: Registry) -> AsyncIterator[Caller]:
    """An owner of the platform, the only one."""
    async with registry.caller(await registry.staff_key("owner")) as caller:
        yield caller


async def user(boss: Caller, name: str = "alice") -> access.Principal:
    request = principals.CreatePrincipalRequest(kind="user", display_name=name)
    return await boss.principals.CreatePrincipal(request)


async def test_what_a_principal_is_given_later_does_not_fall_to_who_made_its_key(
    registry: Registry, boss: Caller
) -> None:
    alice = await user(boss)
    async with registry.caller(await registry.staff_key("admin")) as clerk:
        with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
            await clerk.keys.CreateKey(wish(alice.name, scopes=["staff.manage"]))
        made = await clerk.keys.CreateKey(wish(alice.name, scopes=["*"]))
        assert "keys.manage" in made.key.scopes and "*" not in made.key.scopes
        open_ended = await boss.keys.CreateKey(wish(alice.name, display_name="b", scopes=["*"]))
        rotated = await clerk.keys.RotateKey(keys.RotateKeyRequest(name=open_ended.key.name))
        assert rotated.key.scopes == made.key.scopes and list(open_ended.key.scopes) == ["*"]
    await boss.staff.SetStaff(staff.SetStaffRequest(principal=alice.name, role="owner"))
    for text in (made.text, rotated.text):
        async with registry.caller(text) as itself:
            request = access.CheckPermissionRequest(permission="staff.manage")
            assert not (await itself.access.CheckPermission(request)).allowed
            request = access.CheckPermissionRequest(permission="keys.manage")
            assert (await itself.access.CheckPermission(request)).allowed
            # Nor does a key that it makes of itself reach further.
            more = wish(alice.name, display_name=f"more {text[-4:]}", scopes=["*"])
            with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
                await itself.keys.CreateKey(more)


async def test_who_signed_in_by_itself_makes_a_key_that_grows_with_it(registry: Registry) -> None:
    async with registry.caller(await registry.staff_key("admin")) as clerk:
        uid = (await clerk.access.WhoAmI(access.WhoAmIRequest())).principal.uid
        made = await clerk.keys.CreateKey(wish(f"principals/{uid}", scopes=["*"]))
    assert list(made.key.scopes) == ["*"]


async def test_staff_do_not_lock_out_who_may_more_and_nobody_the_last_owner(
    registry: Registry, boss: Caller
) -> None:
    who = (await boss.access.WhoAmI(access.WhoAmIRequest())).principal.uid
    me = f"principals/{who}"
    (key,) = (await boss.keys.ListKeys(keys.ListKeysRequest(principal=me))).keys
    async with registry.caller(await registry.staff_key("admin")) as clerk:
        with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
            await clerk.keys.RevokeKey(keys.RevokeKeyRequest(name=key.name))
    least = await boss.keys.CreateKey(wish(me, display_name="least"))
    with refused(errors.FailedPrecondition, "LAST_OWNER"):
        await boss.keys.RevokeKey(keys.RevokeKeyRequest(name=key.name))
    assert await boss.is_known()
    await boss.keys.RevokeKey(keys.RevokeKeyRequest(name=least.key.name))
    await boss.keys.CreateKey(wish(me, display_name="other", scopes=["*"]))
    revoked = await boss.keys.RevokeKey(keys.RevokeKeyRequest(name=key.name))
    assert revoked.state == keys.Key.STATE_REVOKED


async def waiting(rows: Rows, count: int) -> None:
    """Until so many wait for a lock."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(5):
        while await (await rows.execute(query)).fetchone() != (count,):
            await rows.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)


async def test_of_two_owners_at_once_one_keeps_a_key(registry: Registry, rows: Rows) -> None:
    texts = [await registry.staff_key("owner") for _ in range(2)]
    async with registry.caller(texts[0]) as first, registry.caller(texts[1]) as second:
        names = [f"keys/{text.split('_')[2]}" for text in texts]
        async with rows.transaction():
            # Both have looked, or one of them waits to, before either can end.
            await rows.execute("LOCK TABLE registry.platform_audit_head")
            ending = [
                asyncio.ensure_future(
                    _quietly(caller.keys.RevokeKey(keys.RevokeKeyRequest(name=name)))
                )
                for caller, name in zip((first, second), names, strict=True)
            ]
            await waiting(rows, 2)
        await asyncio.gather(*ending)
    query = "SELECT count(*) FROM registry.api_keys WHERE revoked_at IS NULL"
    assert await (await rows.execute(query)).fetchall() == [(1,)]


async def test_a_key_is_not_taken_back_while_it_is_rotated_nor_rotated_after(
    admin: Caller, billing: str, rows: Rows
) -> None:
    first = await admin.keys.CreateKey(wish(billing))
    uid = billing.rpartition("/")[2]
    revocation = keys.RevokeKeyRequest(name=first.key.name, reason="leaked")
    async with rows.transaction():
        await rows.execute(
            "SELECT FROM registry.principals WHERE principal_id = %s FOR NO KEY UPDATE", [uid]
        )
        revoking = asyncio.ensure_future(_quietly(admin.keys.RevokeKey(revocation)))
        await waiting(rows, 1)
    assert (await revoking).state == keys.Key.STATE_REVOKED
    with refused(errors.FailedPrecondition, "KEY_NOT_LIVE"):
        await admin.keys.RotateKey(keys.RotateKeyRequest(name=first.key.name))


async def test_nobody_makes_a_key_for_one_who_may_more_than_they(
    registry: Registry, boss: Caller
) -> None:
    made = await user(boss, "the boss")
    async with registry.database.system() as transaction:
        await appoint(transaction, UUID(made.uid), "owner", [], "a test")
    async with registry.caller(await registry.staff_key("admin")) as clerk:
        with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
            await clerk.keys.CreateKey(wish(made.name, scopes=["*"]))
        # What the key could do is what counts.
        await clerk.keys.CreateKey(wish(made.name, scopes=["tenants.read"]))


async def test_a_tenant_makes_keys_of_its_service_wherever_others_let_it_in(
    admin: Caller, owner: Caller, billing: str, registry: Registry
) -> None:
    await owner.apply("globex", acme("globex"))
    globex, uid = await registry.tenant_id("globex"), UUID(billing.rpartition("/")[2])
    await grant(registry.database, globex, "service", uid, "VIEWER")
    made = await admin.keys.CreateKey(wish(billing, scopes=["*"]))
    async with registry.caller(made.text) as itself:
        who = await itself.access.WhoAmI(access.WhoAmIRequest())
    assert [(one.tenant, one.role) for one in who.grants] == [("globex", "VIEWER")]
    # A role in its own tenant which has what this caller's key has not.
    await grant(registry.database, await registry.tenant_id("acme"), "service", uid, "MANAGER")
    keeper = await registry.key("ADMIN", "acme", scopes=("keys.manage",))
    async with registry.caller(keeper.reveal_text()) as clerk:
        with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
            await clerk.keys.CreateKey(wish(billing, display_name="more", scopes=["*"]))


async def test_rotating_leaves_two_that_hold_and_then_one(
    admin: Caller, billing: str, registry: Registry
) -> None:
    first = await admin.keys.CreateKey(
        wish(billing, expire=timedelta(days=30), metadata={"team": "ledger"})
    )
    request = keys.RotateKeyRequest(name=first.key.name)
    request.overlap.FromTimedelta(timedelta(hours=1))
    second = await admin.keys.RotateKey(request)
    assert second.previous.name == first.key.name
    left = second.previous.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    lives = second.key.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < lives <= timedelta(days=30)
    same = ("display_name", "principal", "scopes", "metadata")
    assert all(getattr(first.key, name) == getattr(second.key, name) for name in same)
    for text in (first.text, second.text):
        async with registry.caller(text) as itself:
            assert await itself.is_known()
    for name in (first.key.name, second.key.name):
        with refused(errors.FailedPrecondition, "TWO_LIVE_KEYS"):
            await admin.keys.RotateKey(keys.RotateKeyRequest(name=name))
    with refused(errors.AlreadyExists):
        await admin.keys.CreateKey(wish(billing))
    await admin.keys.RevokeKey(keys.RevokeKeyRequest(name=first.key.name))
    now = keys.RotateKeyRequest(name=second.key.name)
    now.overlap.FromTimedelta(timedelta(0))
    third = await admin.keys.RotateKey(now)
    assert third.previous.state == keys.Key.STATE_EXPIRED
    async with registry.caller(second.text) as itself:
        async with asyncio.timeout(1):
            while await itself.is_known():
                await asyncio.sleep(0.01)
    with refused(errors.FailedPrecondition, "KEY_NOT_LIVE"):
        await admin.keys.RotateKey(keys.RotateKeyRequest(name=second.key.name))


async def _quietly(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() not in {
            grpc.StatusCode.ALREADY_EXISTS,
            grpc.StatusCode.FAILED_PRECONDITION,
        }:
            raise
        return None


@pytest.mark.parametrize("seed", range(3))
async def test_however_many_ask_at_once_two_keys_of_a_name_are_live_at_most(
    admin: Caller, billing: str, rows: Rows, seed: int
) -> None:
    chance = random.Random(seed)
    first = await admin.keys.CreateKey(wish(billing))
    known = [first.key.name]

    async def act() -> None:
        name = chance.choice(known)
        match chance.choice(["create", "rotate", "rotate", "revoke"]):
            case "create":
                made = await _quietly(admin.keys.CreateKey(wish(billing)))
            case "rotate":
                request = keys.RotateKeyRequest(name=name)
                request.overlap.FromTimedelta(timedelta(hours=chance.choice([0, 1])))
                made = await _quietly(admin.keys.RotateKey(request))
            case _:
                await admin.keys.RevokeKey(keys.RevokeKeyRequest(name=name))
                made = None
        if made is not None:
            known.append(made.key.name)

    query = (
        "SELECT count(*) FROM registry.api_keys WHERE name = 'ledger' AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > now())"
    )
    for _ in range(6):
        await asyncio.gather(*(act() for _ in range(12)))
        ((live,),) = await (await rows.execute(query)).fetchall()
        assert live <= 2
    assert len(known) > 3


async def test_a_repeated_request_tells_the_text_again_and_keeps_it_sealed(
    admin: Caller, billing: str, rows: Rows
) -> None:
    request = wish(billing, request_id=str(uuid4()))
    answers = await asyncio.gather(*(admin.keys.CreateKey(request) for _ in range(8)))
    assert len({answer.text for answer in answers}) == 1
    with refused(errors.InvalidArgument, "REQUEST_ID_REUSED"):
        await admin.keys.CreateKey(wish(billing, request_id=request.request_id, scopes=["*"]))
    kept = await (await rows.execute("SELECT answer FROM registry.request_answers")).fetchall()
    text = answers[0].text.encode()
    assert any(row for row in kept) and not any(text in bytes(row[0]) for row in kept)


async def test_the_platforms_answers_are_kept_too(owner: Caller, rows: Rows) -> None:
    request = principals.CreatePrincipalRequest(
        kind="service", display_name="reports", request_id=str(uuid4())
    )
    answers = await asyncio.gather(*(owner.principals.CreatePrincipal(request) for _ in range(4)))
    assert len({answer.uid for answer in answers}) == 1
    await rows.execute("UPDATE registry.platform_answers SET created_at = now() - interval '25 h'")
    assert (await owner.principals.CreatePrincipal(request)).uid != answers[0].uid


async def test_keys_are_paged_by_name(admin: Caller, billing: str) -> None:
    for name in ("b/2", "a", "c", "b"):
        await admin.keys.CreateKey(wish(billing, display_name=name))
    request = keys.ListKeysRequest(parent=ACME, page_size=1, principal=billing)
    seen: list[str] = []
    while True:
        page = await admin.keys.ListKeys(request)
        seen += [key.display_name for key in page.keys]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == ["a", "b", "b/2", "c"]


@pytest.mark.parametrize("name", ["keys/abc", f"{ACME}/keys/abc", "tenants/globex/keys/abc"])
async def test_a_key_that_is_not_here_is_absent(owner: Caller, admin: Caller, name: str) -> None:
    if "globex" in name:
        await owner.apply("globex", acme("globex"))
    with refused(errors.NotFound):
        await owner.keys.GetKey(keys.GetKeyRequest(name=name))
