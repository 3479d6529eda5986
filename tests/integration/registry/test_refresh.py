"""Tokens go on without anybody's doing, are redeemed once, and say when they cannot go on."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis import errors
from services.chassis.process import background
from services.chassis.secret import Secret
from services.registry.credentials import attention
from services.registry.oauth.failures import COOL_S, JITTER
from services.registry.oauth.leases import LEASE_FACTOR
from services.registry.oauth.refreshing import LOST
from services.registry.settings import Settings
from services.sandbox.faults import Fault
from services.sandbox.grants import Family
from services.sandbox.server import Box, sandbox
from tests.integration.registry.apps import ACCOUNT, app, endpoints, secret, token, told, until
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import credential, tenant

Rows = psycopg.AsyncConnection[tuple[object, ...]]
Status = pb2.Credential.Status
TIMEOUT_S: Final = 20.0
ISSUER: Final = "robot@acme.example"
OF_ONE: Final = (
    "FROM registry.credentials c WHERE c.name = %s AND c.tenant_id = s.tenant_id"
    " AND c.credential_id = s.credential_id"
)


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with sandbox("unused") as box:
        yield box


@pytest.fixture
def registry_settings(box: Box) -> Settings:
    return told(box, refresh_timeout_s=TIMEOUT_S, refresh_cool_s=COOL_S)


@dataclass
class World:
    """A tenant with an app of the stand-in, those who call, and how time is let go by."""

    box: Box
    registry: Registry
    owner: Caller
    executor: Caller
    rows: Rows

    async def apply(self, *documents: wanted_pb2.Resource) -> Any:
        return await self.owner.apply("acme", documents)

    async def see(self, name: str = "token") -> pb2.Credential:
        request = pb2.GetCredentialRequest(name=f"tenants/acme/credentials/{name}")
        return await self.owner.credentials.GetCredential(request, timeout=5)

    async def resolve(self, name: str = "token") -> pb2.ResolveCredentialResponse:
        request = pb2.ResolveCredentialRequest(name=f"tenants/acme/credentials/{name}")
        return await self.executor.credentials.ResolveCredential(request, timeout=10)

    async def refresh(self, version: int, name: str = "token") -> pb2.Credential:
        request = pb2.RefreshCredentialRequest(
            name=f"tenants/acme/credentials/{name}", version=version
        )
        return await self.executor.credentials.RefreshCredential(request, timeout=15)

    async def ends(self, left_s: float, name: str = "token") -> None:
        """Let the access token end so soon, and be due."""
        await self.rows.execute(
            "UPDATE registry.credential_versions s SET expires_at = now() + %s * interval '1 s' "
            + OF_ONE,
            [left_s, name],
        )
        await self.rows.execute(
            "UPDATE registry.credential_status s SET refresh_at = now() " + OF_ONE, [name]
        )

    async def cooled(self, name: str = "token") -> float:
        """For how long it cools down, in seconds; then that has gone by."""
        (left,) = await self.standing("extract(epoch FROM s.cool_until - now())::float8", name)
        await self.rows.execute(
            "UPDATE registry.credential_status s SET cool_until = NULL, refresh_at = now() "
            + OF_ONE,
            [name],
        )
        assert isinstance(left, float)
        return left

    async def standing(self, columns: str, name: str = "token") -> tuple[object, ...]:
        query = f"SELECT {columns} FROM registry.credential_status s, registry.credentials c"
        found = await self.rows.execute(
            query.encode() + b" WHERE c.name = %s AND c.credential_id = s.credential_id", [name]
        )
        ((*values,),) = await found.fetchall()
        return tuple(values)

    @property
    def asked(self) -> list[str]:
        """What became of each request for tokens."""
        return [request.outcome for request in self.box.identity.requests]

    @property
    def family(self) -> Family:
        (found,) = self.box.identity.families
        return found

    def fault(self, kind: Any, **more: Any) -> None:
        self.box.faults.add(Fault(path="/oauth/token", kind=kind, **more))

    def leading(self) -> Any:
        """The leader's loop, as a block."""
        return background(self.registry.wired.loops[attention.REFRESHER]())  # type: ignore[arg-type]


@pytest.fixture
async def world(box: Box, registry: Registry, owner: Caller, calling: Calls, rows: Rows) -> World:
    executor = await calling("EXECUTOR", kind="service")
    world = World(box, registry, owner, executor, rows)
    await world.apply(tenant(), app(box))
    return world


async def test_the_leader_refreshes_ahead_of_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "REFRESH_EVERY_S", 0.05)
    await world.apply(token(world.box))
    world.box.identity.change(expires_in=1)
    assert (await world.refresh(1)).version == 2
    world.box.identity.change(expires_in=3600)
    ends = (await world.see()).expire_time.ToDatetime(UTC)

    async def refreshed() -> bool:
        return (await world.see()).version == 3

    async with world.leading():
        await until(refreshed)
    seen = await world.see()
    assert (seen.version, seen.status) == (3, Status.STATUS_VALID)
    assert seen.versions[0].origin == "refresh"
    assert seen.versions[0].create_time.ToDatetime(UTC) < ends
    assert world.asked == ["issued", "issued"]
    lead = seen.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    (refresh_at,) = await world.standing("extract(epoch FROM s.refresh_at - now())::float8")
    assert lead.total_seconds() - 310 < float(str(refresh_at)) < lead.total_seconds() - 290


async def test_a_token_that_has_ended_is_refreshed_when_it_is_asked_for(world: World) -> None:
    await world.apply(token(world.box))
    await world.ends(-1)
    answer = await world.resolve()
    assert (answer.version, set(answer.values)) == (2, {"token"})
    assert world.box.identity.holder(answer.values["token"].decode()) is world.family
    assert world.asked == ["issued"]
    assert 0 < answer.ttl.seconds <= 900


async def test_who_is_told_to_stop_waits_for_an_answer_that_is_not_given_twice(
    world: World,
) -> None:
    await world.apply(token(world.box))
    await world.ends(30)
    world.fault("slow", delay_s=0.5)

    async def is_asked() -> bool:
        return bool(world.box.calls)

    async with world.registry.wired.finishing(), world.leading():
        await until(is_asked)
    assert ((await world.see()).version, world.asked) == (2, ["issued"])


async def test_a_token_that_still_holds_is_given_while_the_provider_is_away(world: World) -> None:
    await world.apply(token(world.box))
    await world.ends(30)
    world.fault("status", status=503)
    answer = await world.resolve()
    assert (answer.version, world.asked) == (1, [])
    assert 0 < answer.ttl.ToTimedelta().total_seconds() <= 30
    assert (await world.see()).status == Status.STATUS_UNCERTAIN


async def test_however_many_ask_at_once_the_provider_is_asked_once(world: World) -> None:
    await world.apply(token(world.box))
    await world.ends(-1)
    world.fault("slow", delay_s=0.2)
    asking: list[Coroutine[Any, Any, Any]] = [world.refresh(1) for _ in range(10)]
    answers = await asyncio.gather(*asking, *(world.resolve() for _ in range(10)))
    assert {answer.version for answer in answers} == {2}
    assert world.asked == ["issued"]


async def test_who_knows_an_older_version_gets_the_newer_one_without_a_call(world: World) -> None:
    await world.apply(token(world.box))
    await world.refresh(1)
    assert (await world.refresh(1)).version == 2
    assert world.asked == ["issued"]


async def test_a_cool_down_grows_and_is_honoured(world: World) -> None:
    await world.apply(token(world.box))
    await world.ends(-1)
    world.fault("status", status=500, times=2)
    for failures in (1, 2):
        with refused(errors.Unavailable, "REFRESH_FAILING") as held:
            await world.resolve()
        assert "status 500" in held[0].message
        calls = len(world.box.calls)
        with refused(errors.Unavailable, "REFRESH_FAILING") as held:
            await world.refresh(1)
        assert held[0].retry_after_s is not None and held[0].retry_after_s > 1
        assert len(world.box.calls) == calls == failures
        plain = COOL_S * 2 ** (failures - 1)
        assert plain * (1 - JITTER) - 5 < await world.cooled() <= plain * (1 + JITTER)
    assert (await world.resolve()).version == 2
    assert (await world.see()).status == Status.STATUS_VALID
    assert await world.standing("s.failures, s.cool_until, s.intent_version") == (0, None, None)


async def test_an_app_is_shown_where_it_may_be_used_alone(world: World) -> None:
    limited = app(world.box)
    limited.credential.allowed_endpoints.append("https://login.example.com/")
    await world.apply(limited, token(world.box))
    with refused(errors.Unavailable, "REFRESH_FAILING") as held:
        await world.refresh(1)
    assert "outside its credential's allowed endpoints" in held[0].message
    assert not world.box.calls
    limited.credential.allowed_endpoints[:] = [endpoints(world.box)["token_url"]]
    await world.apply(limited)
    await world.cooled()
    assert (await world.refresh(1)).version == 2


async def test_a_wrong_client_is_told_and_tried_again_later(world: World) -> None:
    await world.apply(app(world.box, client_secret=b"another"), token(world.box))
    with refused(errors.Unavailable, "REFRESH_FAILING") as held:
        await world.refresh(1)
    assert "invalid_client" in held[0].message
    seen = await world.see()
    assert (seen.status, seen.status_reason) == (
        Status.STATUS_INVALID,
        "the provider gave no tokens: invalid_client",
    )
    await world.apply(app(world.box))
    await world.cooled()

    async def valid() -> bool:
        return (await world.see()).status == Status.STATUS_VALID

    async with world.leading():
        await until(valid)


async def test_an_app_that_has_expired_refreshes_nothing_until_it_is_renewed(world: World) -> None:
    expired = app(world.box)
    expired.credential.expires = "2026-01-01T00:00:00Z"
    await world.apply(expired, token(world.box), token(world.box, "ended"))
    await world.ends(-1, "ended")
    with refused(errors.FailedPrecondition, "CREDENTIAL_EXPIRED"):
        await world.resolve("ended")
    # While it holds, a token is given; nobody asks for another, and it is said why.
    await world.ends(30)
    assert (await world.resolve()).version == 1
    for _ in ("at first", "while it cools down"):
        with refused(errors.FailedPrecondition, "CREDENTIAL_EXPIRED") as held:
            await world.refresh(1)
        assert held[0].message == "credential app has expired"
    assert world.asked == []
    assert (await world.see()).status_reason == "credential app has expired"
    request = pb2.ListCredentialsRequest(parent="tenants/acme", finding=pb2.FINDING_EXPIRED)
    found = await world.owner.credentials.ListCredentials(request)
    assert [one.name.rpartition("/")[2] for one in found.credentials] == ["app", "ended", "token"]

    # However often it was in vain, it goes on soon after.
    await world.cooled()
    for _ in range(3):
        with refused(errors.FailedPrecondition, "CREDENTIAL_EXPIRED"):
            await world.refresh(1)
        assert await world.cooled() <= COOL_S * (1 + JITTER)
    await world.apply(app(world.box))
    assert (await world.refresh(1)).version == 2
    assert pb2.FINDING_EXPIRED not in (await world.see()).findings


async def test_tokens_of_an_app_that_has_expired_are_taken_back_still(world: World) -> None:
    await world.apply(token(world.box))
    await world.rows.execute(
        "UPDATE registry.credentials SET expires_at = now() WHERE name = 'app'"
    )
    request = pb2.RevokeCredentialRequest(name="tenants/acme/credentials/token")
    await world.owner.credentials.RevokeCredential(request, timeout=10)
    assert world.family.revoked == "revoked"


async def test_what_the_provider_took_back_must_be_connected_again(
    world: World, rows: Rows
) -> None:
    await world.apply(token(world.box, "held"), token(world.box, "ended"))
    world.box.identity.revoke_family(ACCOUNT)
    await world.ends(-1, "ended")
    with refused(errors.FailedPrecondition, "CREDENTIAL_RECONNECT"):
        await world.resolve("ended")
    with refused(errors.FailedPrecondition, "CREDENTIAL_RECONNECT"):
        await world.refresh(1, "held")
    # Who knows whether the provider looks at it; it has not ended.
    assert (await world.resolve("held")).version == 1
    with refused(errors.FailedPrecondition, "CREDENTIAL_RECONNECT"):
        await world.resolve("ended")
    assert world.asked == ["invalid_grant"] * 2
    request = pb2.ListCredentialsRequest(parent="tenants/acme", finding=pb2.FINDING_RECONNECT)
    found = await world.owner.credentials.ListCredentials(request)
    assert [(one.name[-5:], one.status) for one in found.credentials] == [
        ("ended", Status.STATUS_RECONNECT),
        ("/held", Status.STATUS_RECONNECT),
    ]
    events = await rows.execute(
        "SELECT object, outcome, error FROM registry.audit_events e WHERE action = 'reconnect' AND"
        " EXISTS (SELECT FROM registry.feed WHERE kind = 'notice' AND subject = 'auditEvents/' || e.id)"
        " ORDER BY 1"
    )
    assert await events.fetchall() == [
        ("ended", "failed", "CREDENTIAL_RECONNECT"),
        ("held", "failed", "CREDENTIAL_RECONNECT"),
    ]
    assert await world.standing("s.refresh_at", "held") == (None,)


@pytest.mark.parametrize("kind", ["reset", "truncate"])
async def test_a_lost_answer_is_doubted_until_another_try_shows_what_became_of_it(
    world: World, kind: str
) -> None:
    await world.apply(token(world.box, "kind"), token(world.box, "strict"))
    for name in ("kind", "strict"):
        world.fault(kind)
        with refused(errors.Unavailable, "REFRESH_FAILING"):
            await world.refresh(1, name)
        assert (await world.see(name)).status == Status.STATUS_UNCERTAIN
        # What is under way still must have ended before anybody tries again.
        assert await world.cooled(name) > LEASE_FACTOR * TIMEOUT_S - 5
    with refused(errors.FailedPrecondition, "CREDENTIAL_RECONNECT"):
        await world.refresh(1, "strict")
    seen = await world.see("strict")
    assert (seen.status, seen.status_reason) == (Status.STATUS_RECONNECT, LOST)
    world.box.identity.change(grace_s=60)
    assert (await world.refresh(1, "kind")).status == Status.STATUS_VALID
    assert [family.revoked for family in world.box.identity.families] == [None, "replay"]


async def test_a_revoked_credential_does_not_come_back_by_a_late_answer(
    world: World, rows: Rows
) -> None:
    await world.apply(token(world.box))
    world.fault("slow", delay_s=0.5)
    under_way = asyncio.create_task(world.refresh(1))

    async def is_asked() -> bool:
        return bool(world.asked)

    await until(is_asked)
    request = pb2.RevokeCredentialRequest(name="tenants/acme/credentials/token", reason="leaked")
    await world.owner.credentials.RevokeCredential(request, timeout=5)
    assert (await under_way).status == Status.STATUS_REVOKED
    with refused(errors.FailedPrecondition, "CREDENTIAL_REVOKED"):
        await world.resolve()
    left = await rows.execute(
        "SELECT version, sealed FROM registry.credential_versions v JOIN registry.credentials"
        " USING (tenant_id, credential_id, version) WHERE name = 'token'"
    )
    assert await left.fetchall() == [(1, None)]
    assert world.family.revoked == "revoked"


async def test_a_refresh_token_that_is_not_given_anew_goes_on(world: World) -> None:
    world.box.identity.change(rotate=False)
    await world.apply(token(world.box))
    assert [(await world.refresh(version)).version for version in (1, 2)] == [2, 3]
    (only,) = world.family.refresh_tokens
    assert only.redeemed == 2


async def test_an_app_comes_by_tokens_of_its_own_at_the_first_use(world: World) -> None:
    keys: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] = {
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(65537, 2048),
    }
    world.box.identity.change(
        issuers={
            name: key.public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            .decode()
            for name, key in keys.items()
        }
    )
    for name, key in keys.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        values = {"private_key": pem, "issuer": name.encode(), "subject": f"acct_{name}".encode()}
        config = endpoints(world.box)
        await world.apply(
            secret(f"app-{name}", "jwt_key", values, provider="http", config=config),
            secret(name, "oauth2", {}, app=f"app-{name}", grant="jwt_bearer"),
        )
    scopes = ["read"]
    await world.apply(
        secret("itself", "oauth2", {}, app="app", grant="client_credentials", scopes=scopes)
    )
    for name, account in {"itself": world.box.identity.client_id, "ec": "acct_ec", "rsa": "acct_rsa"}.items():  # fmt: skip
        answer = await world.resolve(name)
        holder = world.box.identity.holder(answer.values["token"].decode())
        assert holder is not None
        assert (answer.version, holder.account) == (1, account)
    assert world.box.identity.families[0].scope == "read"
    # They have no refresh token: the next ones come the same way.
    assert (await world.refresh(1, "ec")).version == 2


async def test_an_app_that_is_refused_can_be_put_right(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    values = {"private_key": pem, "issuer": ISSUER.encode()}
    await world.apply(
        secret("robot", "jwt_key", values, provider="http", config=endpoints(world.box)),
        secret("token", "oauth2", {}, app="robot", grant="jwt_bearer"),
    )
    with refused(errors.Unavailable, "REFRESH_FAILING"):
        await world.resolve()
    assert world.asked == ["invalid_grant"]
    assert (await world.see()).status == Status.STATUS_INVALID
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    world.box.identity.change(issuers={ISSUER: public.decode()})
    await world.cooled()
    assert (await world.resolve()).version == 1


async def test_an_endpoint_that_is_not_allowed_fails_and_names_no_address(world: World) -> None:
    inside = app(world.box, "inside", token_url="https://localhost:1/token")
    await world.apply(inside, token(world.box, app="inside"))
    with refused(errors.Unavailable, "REFRESH_FAILING") as held:
        await world.refresh(1)
    seen = await world.see()
    assert "localhost:1 is not a public address" in held[0].message
    for text in (held[0].message, seen.status_reason):
        assert "127.0.0.1" not in text and "::1" not in text
    assert seen.status == Status.STATUS_UNKNOWN
    assert world.asked == []


async def test_what_yaml_says_of_tokens_is_no_drift_and_takes_none_back(world: World) -> None:
    documents = [tenant(), app(world.box), token(world.box, scopes=["read"])]
    await world.apply(*documents)
    for version in (1, 2):
        await world.refresh(version)
        assert list((await world.owner.plan("acme", documents)).changes) == []
        assert list((await world.apply(*documents)).plan.changes) == []
    described = token(world.box, scopes=["read"], description="of Ada")
    described.credential.values.clear()
    assert len((await world.apply(described)).plan.changes) == 1
    answer = await world.resolve()
    assert answer.version == 3
    first = world.box.identity.families[0]
    assert world.box.identity.holder(answer.values["token"].decode()) is first


async def test_an_app_that_nobody_can_use_holds_up_no_other(world: World) -> None:
    broken = secret(
        "broken", "oauth2_client", {"client_id": b"\xff"}, provider="http", config=endpoints(world.box)
    )  # fmt: skip
    await world.apply(broken, token(world.box, "bad", app="broken"), token(world.box))
    await world.ends(60, "bad")
    await world.ends(60)

    async def both() -> bool:
        (failures,) = await world.standing("s.failures", "bad")
        return bool(failures) and (await world.see()).version == 2

    async with world.leading():
        await until(both)
    assert (await world.see("bad")).version == 1


async def test_only_tokens_are_refreshed(world: World) -> None:
    await world.apply(credential("plain", token=b"plain"))
    with refused(errors.FailedPrecondition, "OAUTH_NOT_CONFIGURED"):
        await world.refresh(1, "plain")
    assert (await world.see("plain")).status == Status.STATUS_UNKNOWN
    assert await world.standing("s.refresh_at, s.failures", "plain") == (None, 0)


async def test_an_answer_outlives_a_lost_connection_to_the_database(
    world: World, superuser: Secret
) -> None:
    await world.apply(token(world.box))
    world.fault("slow", delay_s=0.3)
    under_way = asyncio.create_task(world.refresh(1))

    async def is_asked() -> bool:
        return bool(world.asked)

    async def is_cut() -> bool:
        found = await world.rows.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(await found.fetchall())

    await until(is_asked)
    async with await psycopg.AsyncConnection.connect(superuser.reveal_text()) as other:
        await other.execute("SELECT 1 FROM registry.credential_status FOR UPDATE")
        await until(is_cut)
    assert (await under_way).version == 2
    assert (await world.see()).status == Status.STATUS_VALID
    assert (world.asked, world.family.revoked) == (["issued"], None)
