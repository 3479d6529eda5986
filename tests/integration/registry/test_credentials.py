"""Credentials: sealed at rest, opened for the executor alone."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis import errors
from services.providers.auth import CREDENTIAL_TYPES
from services.registry.credentials.resolving import Resolving
from services.registry.credentials.sealing import Sealing
from services.registry.credentials.tampering import Tampering
from services.registry.keys.holding import WrongKeyError
from services.registry.opening import open_log, open_vault
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.credential_calls import resolve, rotate, secret, version_of
from tests.wiring import settings

Rows = psycopg.AsyncConnection[tuple[object, ...]]


async def test_the_executor_gets_the_values_back(executor: Caller, registry: Registry) -> None:
    answer = await resolve(executor)
    assert (answer.type, answer.version, dict(answer.values)) == (
        "bearer",
        1,
        {"token": documents.TOKEN},
    )
    assert 0 < answer.ttl.seconds <= 900
    by_id = await resolve(executor, tenant=str(await registry.tenant_id("acme")))
    assert by_id == answer
    with refused(errors.NotFound):
        await resolve(executor, "nothing")


@pytest.mark.usefixtures("executor")
async def test_what_is_remembered_of_a_version_that_is_past_is_no_answer(
    owner: Caller, registry: Registry
) -> None:
    log = open_log(registry.vault)
    # Nobody tells it of changes: as in the moment before word of one comes.
    refreshing: Any = None
    resolving = Resolving(
        registry.database, Sealing(registry.vault), refreshing, Tampering(registry.database, log)
    )
    place = (await registry.tenant_id("acme"), "token")
    assert (await resolving.resolve(*place)).version == 1
    await rotate(owner, values={"token": b"second"})
    assert (await resolving.resolve(*place)).version == 1
    assert (await resolving.resolve(*place, newer_than=1)).version == 2
    # There is no newer one: it is what it is.
    assert (await resolving.resolve(*place, newer_than=2)).version == 2


async def test_binary_values_survive(executor: Caller, owner: Caller) -> None:
    value = bytes(range(256))
    await owner.apply("acme", [documents.credential("raw", token=value)])
    assert dict((await resolve(executor, "raw")).values) == {"token": value}


HTTP: dict[str, Any] = {
    "provider": "http",
    "config": {"token_url": "https://login.example.com/token"},
}
# What each type is declared with, and what the executor gets of that.
TYPES: dict[str, tuple[dict[str, Any], dict[str, bytes] | None]] = {
    "api_key": ({"values": {"key": b"k", "secret": b"s"}}, {"key": b"k", "secret": b"s"}),
    "bearer": ({"values": {"token": b"t"}}, {"token": b"t"}),
    "basic": ({"values": {"username": b"u", "password": b""}}, {"username": b"u", "password": b""}),
    "webhook_secret": ({"values": {"secret": b"s"}}, {"secret": b"s"}),
    "oauth2": (
        {
            "app": "one-oauth2-client",
            "values": {"access_token": b"a", "refresh_token": b"r", "id_token": b"i"},
        },
        {"token": b"a"},
    ),
    "client_certificate": (
        {"values": {"certificate": b"c", "private_key": b"p"}},
        {"certificate": b"c", "private_key": b"p"},
    ),
    "oauth2_client": ({**HTTP, "values": {"client_id": b"i", "client_secret": b"s"}}, None),
    "jwt_key": ({**HTTP, "values": {"private_key": b"p", "issuer": b"i", "key_id": b"k"}}, None),
}


async def test_every_type_is_kept_and_all_but_apps_are_resolved(
    owner: Caller, executor: Caller
) -> None:
    assert set(TYPES) == set(CREDENTIAL_TYPES)
    spoken = {kind: f"one-{kind.replace('_', '-')}" for kind in TYPES}
    await owner.apply(
        "acme", [secret(spoken[kind], kind, **said) for kind, (said, _) in TYPES.items()]
    )
    for kind, (_, expected) in TYPES.items():
        if expected is None:
            with refused(errors.FailedPrecondition, "CREDENTIAL_OF_APP"):
                await resolve(executor, spoken[kind])
        else:
            answer = await resolve(executor, spoken[kind])
            assert (answer.type, dict(answer.values)) == (kind, expected)


async def test_where_it_may_be_used_goes_with_it(owner: Caller, executor: Caller) -> None:
    places = {
        "allowed_endpoints": ["https://api.github.com/repos/*"],
        "allowed_ranges": ["198.51.100.0/24", "2001:db8::/32"],
    }
    await owner.apply("acme", [secret("limited", values={"token": b"x"}, **places)])
    answer = await resolve(executor, "limited")
    assert {name: list(getattr(answer, name)) for name in places} == places


async def test_what_it_belongs_to_must_be_there(owner: Caller, executor: Caller) -> None:
    with refused(errors.InvalidArgument, "INVALID_CONFIG") as held:
        await owner.apply(
            "acme",
            [
                documents.resource("venue", "harbour", display_name="Harbour"),
                secret("here", values={"token": b"x"}, venue="harbour"),
                secret("nowhere", values={"token": b"x"}, venue="harbor"),
                secret("tokens", "oauth2", app="ap"),
                documents.resource(
                    "connection", "c", integration="gitub", credential="tokn", venue="harbr"
                ),
            ],
        )
    told = {one.field: one.description for one in held[0].violations}
    assert told.keys() == {
        "Credential/nowhere#spec.venue",
        "Credential/tokens#spec.app",
        "Connection/c#spec.integration",
        "Connection/c#spec.credential",
        "Connection/c#spec.venue",
    }
    assert "did you mean harbour?" in told["Credential/nowhere#spec.venue"]


async def test_an_account_connected_twice_is_refused_and_two_may_change_places(
    owner: Caller, executor: Caller
) -> None:
    def connection(name: str, account: str) -> wanted_pb2.Resource:
        return documents.resource(
            "connection", name, integration="shop", credential="key", external_account_id=account
        )

    base = [
        secret("app", "oauth2_client", **HTTP, values={"client_id": b"i"}),
        secret("key", values={"token": b"x"}),
        documents.integration(
            "shop", provider="http", app="app", credential="key", base_url="https://x.example"
        ),
    ]
    await owner.apply("acme", [*base, connection("a", "1"), connection("b", "2")])
    with refused(errors.InvalidArgument) as held:
        await owner.apply("acme", [connection("c", "1")])
    assert [one.field for one in held[0].violations] == ["Connection/c#spec.external_account_id"]
    done = await owner.apply("acme", [connection("a", "2"), connection("b", "1")])
    assert len(done.plan.changes) == 2


async def test_of_tokens_that_were_brought_along_the_executor_gets_the_access_token_alone(
    owner: Caller, executor: Caller
) -> None:
    app = secret("app", "oauth2_client", **HTTP, values={"client_id": b"i"})
    both = {"access_token": b"one", "refresh_token": b"r1", "id_token": b"i1"}
    await owner.apply("acme", [app, secret("tokens", "oauth2", app="app", values=both)])
    await rotate(
        owner, "tokens", values={**both, "access_token": b"two"}, overlap=timedelta(hours=1)
    )
    answer = await resolve(executor, "tokens")
    assert dict(answer.values) == {"token": b"two"}
    assert [dict(one.values) for one in answer.previous] == [{"token": b"one"}]
    # Without one, it is asked for; this app's provider cannot be reached.
    alone = secret("alone", "oauth2", app="app", values={"refresh_token": b"r1"})
    await owner.apply("acme", [alone])
    with refused(errors.Unavailable, "REFRESH_FAILING"):
        await resolve(executor, "alone")


async def test_no_table_holds_a_value_in_any_spelling(executor: Caller, rows: Rows) -> None:
    tables = await (
        await rows.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('registry', 'executor')"
        )
    ).fetchall()
    dump = b""
    for schema, table in tables:
        for form in ("text", "binary"):
            place = sql.Identifier(str(schema), str(table))
            copy = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT {})").format(
                place, sql.SQL(form)
            )
            async with rows.cursor().copy(copy) as out:
                async for part in out:
                    dump += bytes(part)
    assert b"acme" in dump and b"fingerprint" in dump
    for value in (documents.TOKEN, documents.HOOK):
        for spelling in (value, value.hex().encode(), b"dmVyeS1zZWNyZXQtY2FuYXJ5"):
            assert spelling not in dump


async def test_a_changed_value_is_a_new_version_and_an_unchanged_one_is_not(
    executor: Caller, owner: Caller, rows: Rows
) -> None:
    same = documents.credential("token", description="what it is for", token=documents.TOKEN)
    assert len((await owner.apply("acme", [same])).plan.changes) == 1
    assert (await resolve(executor)).version == 1
    await owner.apply("acme", [documents.credential("token", token=b"rotated")])
    assert dict((await version_of(executor, 2)).values) == {"token": b"rotated"}
    assert (await owner.snapshot("acme"))["credential", "token"].version == 2
    await owner.apply("acme", [documents.credential("token", token=documents.TOKEN)])
    assert dict((await version_of(executor, 3)).values) == {"token": documents.TOKEN}
    kept = await (
        await rows.execute("SELECT count(*) FROM registry.credential_versions WHERE version > 1")
    ).fetchone()
    assert kept == (2,)


async def test_people_see_fingerprints_only(
    executor: Caller, calling: Calls, owner: Caller
) -> None:
    viewer = await calling("VIEWER", "acme")
    await owner.apply("acme", [documents.credential("token", token=b"rotated")])
    answer = await viewer.credentials.ListCredentials(
        pb2.ListCredentialsRequest(parent="tenants/acme")
    )
    assert [(c.name, c.type, c.version) for c in answer.credentials] == [
        ("tenants/acme/credentials/hook", "webhook_secret", 1),
        ("tenants/acme/credentials/token", "bearer", 2),
    ]
    token = answer.credentials[1]
    assert len(token.fingerprints["token"]) == 12
    assert token.rotate_time.ToDatetime() > token.create_time.ToDatetime()
    assert "rotated" not in str(answer)


async def test_each_tenant_has_a_key_of_its_own(executor: Caller) -> None:
    leased = [
        await executor.credentials.LeaseKey(pb2.LeaseKeyRequest(name=f"tenants/{slug}"))
        for slug in ("acme", "globex", "acme")
    ]
    assert leased[0].key == leased[2].key != leased[1].key
    assert leased[0].data_key_uid == leased[2].data_key_uid != leased[1].data_key_uid
    assert (len(leased[0].key), leased[0].ttl.seconds) == (32, 900)


async def test_another_key_encryption_key_does_not_start(registry: Registry) -> None:
    other = settings()
    assert other.key_encryption_key is not None
    with pytest.raises(WrongKeyError, match="KEY_ENCRYPTION_KEY") as caught:
        async with open_vault(other, registry.database):
            pass
    assert other.key_encryption_key.reveal_text() not in str(caught.value)
