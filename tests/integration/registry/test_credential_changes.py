"""Credentials changed one by one: put, rotated, revealed, revoked, shredded, deleted."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis import envelope, errors
from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.interceptors import Gates
from services.chassis.process import background
from services.chassis.rules import Risk
from services.chassis.secret import Secret
from services.chassis.server import Listen, serving
from services.providers.signing_keys import new_private_key, public_key
from services.registry import opening
from services.registry.access.control import AccessControl
from services.registry.feed import Feed
from services.registry.settings import Settings
from services.registry.store.tenants import Tenants
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.credential_calls import (
    ACME,
    FORGET,
    HOUR,
    Reported,
    Rows,
    attention,
    code_of,
    delete,
    events,
    get,
    put,
    report,
    request_id,
    resolve,
    reveal,
    revoke,
    rotate,
    secret,
    shred,
    until,
    version_of,
)
from tests.integration.registry.documents import TOKEN, resource
from tests.wiring import wired

Status = pb2.Credential


@pytest.fixture
async def admin(executor: Caller, calling: Calls) -> Caller:
    """An admin of acme, which has the credentials `token` and `hook`."""
    return await calling("ADMIN", "acme")


@pytest.fixture
async def second(
    admin: Caller,
    registry: Registry,
    registry_conninfos: tuple[Secret, Secret],
    registry_settings: Settings,
) -> AsyncIterator[Caller]:
    """The executor's channel to another process of the same registry."""
    async with Database(*registry_conninfos, constraints=opening.CONSTRAINTS) as database:
        access = AccessControl(database, envelope.new_key())
        tenants, feed = Tenants(database), Feed(database)
        gates = Gates(registry.access, tenants).in_order()
        async with (
            wired(database, access, tenants, feed, registry_settings) as (_, wiring),
            background(access.invalidations.listen()),
            serving(wiring.services, gates, Listen("127.0.0.1:0"), grace_s=0.1) as port,
            open_channel(
                f"127.0.0.1:{port}", key=await registry.key("EXECUTOR", kind="service")
            ) as channel,
        ):
            yield Caller(channel)


def spec(kind: str = "bearer", /, **said: Any) -> wanted_pb2.CredentialSpec:
    return secret("x", kind, **said).credential


async def count(rows: Rows, table: str) -> int:
    ((found,),) = await (await rows.execute(f"SELECT count(*) FROM registry.{table}")).fetchall()
    return int(found)


async def test_a_put_makes_and_changes_one_and_comes_once(
    admin: Caller, executor: Caller, rows: Rows
) -> None:
    asked = request_id()
    first = spec(values={"token": b"one"}, notes="from the portal", expires="2199-01-01T00:00:00Z")
    made = await put(admin, "extra", first, request_id=asked)
    assert (made.version, made.status, made.created_by) == (
        1,
        Status.STATUS_UNKNOWN,
        "ADMIN of acme",
    )
    assert made.spec.notes == "from the portal" and made.expire_time.ToDatetime().year == 2199
    assert await put(admin, "extra", first, request_id=asked) == made
    # What it said and says no more is gone; the same value is no new version.
    same = await put(admin, "extra", spec(values={"token": b"one"}, description="more"))
    assert (same.version, same.spec.notes, same.description) == (1, "", "more")
    await put(admin, "extra", spec(values={"token": b"two"}))
    assert dict((await version_of(executor, 2, "extra")).values) == {"token": b"two"}
    told = [row[0] for row in await events(rows, "action", "object") if row[1] == "extra"]
    assert told == ["create", "update", "update"]


async def test_a_put_leaves_what_others_have_said(owner: Caller, admin: Caller) -> None:
    noted = secret("token", values={"token": TOKEN}, notes="of the team")
    await owner.apply("acme", [noted])
    done = await put(admin, "token", spec(description="for reading"))
    assert (done.spec.notes, done.description, done.version) == ("of the team", "for reading", 1)


async def test_a_put_is_checked_as_an_apply_is(admin: Caller, calling: Calls) -> None:
    with refused(errors.InvalidArgument, "INVALID_CONFIG") as held:
        await put(admin, "extra", spec("api_key", values={"token": b"x"}, expires="soon"))
    assert {one.field for one in held[0].violations} == {
        "Credential/extra#spec.values",
        "Credential/extra#spec.values.token",
        "Credential/extra#spec.expires",
    }
    viewer = await calling("VIEWER", "acme")
    for call in (
        lambda: put(viewer, "token", spec()),
        lambda: rotate(viewer),
        lambda: revoke(viewer),
        lambda: reveal(viewer, "hook"),
        lambda: shred(viewer, "token", 1),
    ):
        with refused(errors.PermissionDenied):
            await call()


async def test_a_put_that_waits_says_so_and_changes_nothing(
    owner: Caller, admin: Caller, executor: Caller
) -> None:
    await owner.apply("acme", [resource("review_policy", "four-eyes", min_risk="MEDIUM")])
    with refused(errors.FailedPrecondition, "WAITS_FOR_APPROVAL") as held:
        await put(admin, "token", spec(values={"token": b"waits"}))
    name = held[0].metadata["pending_revision"]
    assert (await resolve(executor)).values["token"] == TOKEN
    await owner.config.ApproveRevision(config_pb2.ApproveRevisionRequest(name=name), timeout=5)
    assert (await version_of(executor, 2)).values["token"] == b"waits"


async def test_old_values_go_on_until_their_overlap_ends(
    admin: Caller, executor: Caller, rows: Rows
) -> None:
    done = await rotate(admin, values={"token": b"second"}, overlap=HOUR)
    assert (done.credential.version, done.secret) == (2, b"")
    found = await resolve(executor)
    assert (found.version, dict(found.values)) == (2, {"token": b"second"})
    assert [(one.version, dict(one.values)) for one in found.previous] == [(1, {"token": TOKEN})]
    # It may be kept no longer than the old values go on.
    await rotate(admin, values={"token": b"third"}, overlap=timedelta(seconds=40))
    found = await version_of(executor, 3)
    assert [one.version for one in found.previous] == [2, 1] and found.ttl.seconds <= 40

    await rows.execute(
        "UPDATE registry.credential_versions SET overlap_until = clock_timestamp() WHERE version < 3"
    )
    await rows.execute(FORGET)

    async def ended() -> bool:
        return not (await resolve(executor)).previous

    await until(ended)
    versions = (await get(admin)).versions
    assert [(one.version, one.origin) for one in versions] == [
        (3, "rotated"),
        (2, "rotated"),
        (1, "declared"),
    ]
    assert not versions[0].HasField("overlap_end_time")


async def test_without_a_word_the_overlap_is_the_rotations_own(
    owner: Caller, admin: Caller, executor: Caller
) -> None:
    one = secret("own", values={"token": b"first"}, rotation={"overlap": "0s"})
    await owner.apply("acme", [one])
    await rotate(admin, "own", values={"token": b"second"})
    assert not (await resolve(executor, "own")).previous


@pytest.mark.parametrize(
    ("values", "overlap", "words"),
    [
        ({"tokn": b"x"}, None, "tokn is no part of a bearer credential (did you mean token?)"),
        ({}, None, "a credential of type bearer needs token"),
        ({"token": b""}, None, "must be given in plain"),
        ({"token": b"x"}, timedelta(seconds=-1), "must be 0s to 30 days"),
        ({"token": b"x"}, timedelta(days=30, seconds=1), "must be 0s to 30 days"),
    ],
)
async def test_a_rotation_that_makes_no_sense_changes_nothing(
    admin: Caller, values: dict[str, bytes], overlap: timedelta | None, words: str
) -> None:
    with refused(errors.InvalidArgument) as held:
        await rotate(admin, values=values, overlap=overlap)
    assert words in held[0].message
    assert (await get(admin)).version == 1
    with refused(errors.NotFound):
        await rotate(admin, "nobody", values={"token": b"x"})


async def test_after_a_rotation_yaml_plans_nothing_until_it_says_another_value(
    owner: Caller, admin: Caller, executor: Caller
) -> None:
    said = [documents.credential("token", token=TOKEN)]
    await rotate(admin, values={"token": b"rotated"})
    assert not (await owner.plan("acme", said)).changes
    assert not (await owner.apply("acme", said)).plan.changes
    assert (await resolve(executor)).values["token"] == b"rotated"
    shown = await get(admin)
    assert shown.spec.values["token"].fingerprint != shown.fingerprints["token"]
    await owner.apply("acme", [documents.credential("token", token=b"declared")])
    assert dict((await version_of(executor, 3)).values) == {"token": b"declared"}


async def test_a_webhook_secret_that_nobody_says_is_made_and_told_to_who_asks(
    owner: Caller, admin: Caller, executor: Caller, calling: Calls, rows: Rows
) -> None:
    await owner.apply("acme", [secret("made", "webhook_secret")])
    told = await reveal(admin, "made")
    assert told.version == 1 and told.secret.startswith(b"whsec_")
    assert len(base64.b64decode(told.secret.removeprefix(b"whsec_"))) == 32
    assert dict((await resolve(executor, "made")).values) == {"secret": told.secret}
    assert (await get(admin, "made")).versions[0].origin == "generated"
    # Said again without a value it stays as it is.
    assert not (await owner.plan("acme", [secret("made", "webhook_secret")])).changes

    asked = request_id()
    turned = await rotate(admin, "made", request_id=asked)
    assert turned.secret.startswith(b"whsec_") and turned.secret != told.secret
    again = await rotate(admin, "made", request_id=asked)
    assert again == turned and (await get(admin, "made")).version == 2
    found = await version_of(executor, 2, "made")
    assert found.values["secret"] == turned.secret
    assert [dict(one.values) for one in found.previous] == [{"secret": told.secret}]

    manager = await calling("MANAGER", "acme")
    with refused(errors.PermissionDenied):
        await reveal(manager, "made")
    for name in ("hook", "token"):
        with refused(errors.FailedPrecondition, "NOT_GENERATED"):
            await reveal(admin, name)
    await rotate(admin, "made", values={"secret": b"whsec_from-outside"})
    with refused(errors.FailedPrecondition, "NOT_GENERATED"):
        await reveal(admin, "made")
    revealed = await events(rows, "action", "object", "actor_name", "risk")
    assert [row[1:] for row in revealed if row[0] == "reveal"] == [
        ("made", "ADMIN of acme", Risk.HIGH)
    ]
    for answer in (await get(admin, "made"), revealed):
        assert b"whsec_" not in str(answer).encode()


async def test_a_repeated_rotation_tells_its_secret_as_long_as_that_stands(
    owner: Caller, admin: Caller
) -> None:
    await owner.apply("acme", [secret("made", "webhook_secret")])
    asked = request_id()
    first = await rotate(admin, "made", request_id=asked)
    await rotate(admin, "made", overlap=HOUR)
    # It goes on beside the new one.
    assert await rotate(admin, "made", request_id=asked) == first
    await shred(admin, "made", 2)
    again = await rotate(admin, "made", request_id=asked)
    assert (again.credential, again.secret) == (first.credential, b"")

    other = request_id()
    assert (await rotate(admin, "made", request_id=other)).secret
    await rotate(admin, "made", values={"secret": b"whsec_said"}, overlap=timedelta(0))
    assert not (await rotate(admin, "made", request_id=other)).secret


async def test_what_is_revoked_is_destroyed_and_refused_everywhere(
    admin: Caller, executor: Caller, second: Caller, rows: Rows
) -> None:
    await rotate(admin, values={"token": b"second"}, overlap=HOUR)
    for each in (executor, second):
        assert (await resolve(each)).version == 2
    done = await revoke(admin, reason="it was in a chat")
    assert (done.status, done.revoked_by, done.revoke_reason) == (
        Status.STATUS_REVOKED,
        "ADMIN of acme",
        "it was in a chat",
    )
    for each in (executor, second):

        async def is_refused(each: Caller = each) -> bool:
            return await code_of(resolve(each)) == "CREDENTIAL_REVOKED"

        assert await until(is_refused) < 1.0
    kept = await (
        await rows.execute(
            "SELECT v.wrapped_key, v.sealed, v.shredded_at IS NOT NULL"
            " FROM registry.credential_versions v JOIN registry.credentials c USING (credential_id)"
            " JOIN registry.tenants t ON t.tenant_id = c.tenant_id"
            " WHERE c.name = 'token' AND t.slug = 'acme'"
        )
    ).fetchall()
    assert kept == [(None, None, True)] * 2
    told = await events(rows, "action", "risk", "fields")
    assert [row[1] for row in told if row[0] == "revoke"] == [Risk.CRITICAL]


async def test_what_is_revoked_stays_so_until_another_value_is_said(
    owner: Caller, admin: Caller, executor: Caller, registry: Registry, rows: Rows
) -> None:
    made = secret("made", "webhook_secret", rotation={"every": "86400s", "overlap": "0s"})
    await owner.apply("acme", [made])
    uid = (await get(admin)).uid
    for name in ("token", "made"):
        await revoke(admin, name)
    # Its use, a change of other fields, and the leader's round let it be.
    await report(executor, Reported(uid, succeeded=timedelta(0)))
    noted = documents.credential("token", description="gone", token=TOKEN)
    made.credential.notes = "gone"
    await owner.apply("acme", [noted, made])
    await attention(registry).round()
    for name in ("token", "made"):
        shown = await get(admin, name)
        assert (shown.status, shown.version) == (Status.STATUS_REVOKED, 1)
        assert not shown.HasField("rotation_due_time") and not shown.findings
        with refused(errors.FailedPrecondition, "CREDENTIAL_REVOKED"):
            await resolve(executor, name)
    assert not (await owner.plan("acme", [noted])).changes

    await owner.apply("acme", [documents.credential("token", token=b"another")])
    assert dict((await version_of(executor, 2)).values) == {"token": b"another"}
    shown = await get(admin)
    assert (shown.status, shown.revoked_by, shown.revoke_reason) == (Status.STATUS_UNKNOWN, "", "")
    assert not shown.HasField("revoke_time")


async def test_an_old_version_is_shredded_and_the_current_one_is_not(
    admin: Caller, executor: Caller, rows: Rows
) -> None:
    await rotate(admin, values={"token": b"second"}, overlap=HOUR)
    assert len((await resolve(executor)).previous) == 1
    with refused(errors.FailedPrecondition, "CURRENT_VERSION"):
        await shred(admin, "token", 2)
    await shred(admin, "token", 1)
    for version in (1, 3):
        with refused(errors.NotFound):
            await shred(admin, "token", version)

    async def gone() -> bool:
        return not (await resolve(executor)).previous

    await until(gone)
    assert (await resolve(executor)).values["token"] == b"second"
    shown = (await get(admin)).versions
    assert [one.HasField("shred_time") for one in shown] == [False, True]
    sealed = await (
        await rows.execute("SELECT version FROM registry.credential_versions WHERE sealed IS NULL")
    ).fetchall()
    assert sealed == [(1,)]
    assert ("shred", Risk.HIGH) in await events(rows, "action", "risk")


async def test_a_deleted_credential_leaves_no_row(
    owner: Caller, admin: Caller, executor: Caller, rows: Rows
) -> None:
    tables = ("credentials", "credential_versions", "credential_status", "credential_uses")
    before = {table: await count(rows, table) for table in tables}
    await owner.apply("acme", [secret("gone", values={"token": b"first"})])
    await rotate(admin, "gone", values={"token": b"second"}, overlap=HOUR)
    uid = (await get(admin, "gone")).uid
    await report(executor, Reported(uid, version=2, succeeded=timedelta(0)))
    assert {table: await count(rows, table) for table in tables} != before
    await delete(owner, "gone")
    # A report that comes late is of nobody.
    await report(executor, Reported(uid, version=2, succeeded=timedelta(0)))
    assert {table: await count(rows, table) for table in tables} == before
    with refused(errors.NotFound):
        await resolve(executor, "gone")
    # Another one of the same name begins anew.
    await owner.apply("acme", [secret("gone", values={"token": b"third"})])
    found = await version_of(executor, 1, "gone")
    assert (dict(found.values), list(found.previous)) == ({"token": b"third"}, [])


async def test_what_is_told_of_changes_has_no_value(
    admin: Caller, executor: Caller, rows: Rows
) -> None:
    await rotate(admin, values={"token": b"canary-of-rotation"})
    await revoke(admin, reason="why not")
    told = str(await events(rows, "action", "fields", "actor_name", "error"))
    assert "rotate" in told and "why not" in told
    assert "canary" not in told and TOKEN.decode() not in told


@pytest.mark.parametrize("what", ["rotate", "revoke", "shred"])
async def test_another_tenant_has_no_such_credential(
    admin: Caller, executor: Caller, calling: Calls, what: str
) -> None:
    stranger = await calling("ADMIN", "globex")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "rotate": lambda: rotate(stranger, values={"token": b"x"}),
        "revoke": lambda: revoke(stranger),
        "shred": lambda: shred(stranger, "token", 1),
    }
    with refused(errors.PermissionDenied):
        await calls[what]()
    assert ACME in (await get(admin)).name and (await get(admin)).version == 1


async def test_of_a_pair_that_tenon_makes_everybody_sees_the_public_key_and_nobody_the_other(
    owner: Caller, admin: Caller, executor: Caller, calling: Calls, rows: Rows
) -> None:
    await owner.apply("acme", [secret("pair", "webhook_secret", generate="ed25519")])
    viewer = await calling("VIEWER", "acme")
    shown = await get(viewer, "pair")
    held = Secret((await resolve(executor, "pair")).values["secret"])
    assert held.reveal().startswith(b"whsk_")
    assert shown.public_key.startswith("whpk_") and shown.public_key == public_key(held)
    with refused(errors.FailedPrecondition, "PRIVATE_KEY"):
        await reveal(admin, "pair")

    turned = await rotate(admin, "pair")
    assert turned.secret == b"" and turned.credential.public_key not in {"", shown.public_key}
    found = await version_of(executor, 2, "pair")
    now = [Secret(each["secret"]) for each in (found.values, found.previous[0].values)]
    assert [public_key(each) for each in now] == [turned.credential.public_key, shown.public_key]
    # Receivers need both for the overlap.
    told = await get(viewer, "pair")
    assert [each.public_key for each in told.versions] == [public_key(each) for each in now]
    assert told.versions[1].HasField("overlap_end_time")

    # One that is asked for another sort of key gets it, and the pair goes on beside it.
    await owner.apply("acme", [secret("pair", "webhook_secret", generate="hmac")])
    found = await version_of(executor, 3, "pair")
    assert found.values["secret"].startswith(b"whsec_") and len(found.previous) == 2
    assert (await get(viewer, "pair")).public_key == ""
    assert (await reveal(admin, "pair")).secret == found.values["secret"]
    assert not (
        await owner.plan("acme", [secret("pair", "webhook_secret", generate="hmac")])
    ).changes


async def test_a_private_key_that_somebody_brings_has_a_public_one_too(
    admin: Caller, executor: Caller
) -> None:
    mine = new_private_key()
    shown = await put(admin, "own", spec("webhook_secret", values={"secret": mine.reveal()}))
    assert shown.public_key == public_key(mine)
    assert (await resolve(executor, "own")).values["secret"] == mine.reveal()
