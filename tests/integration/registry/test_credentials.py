"""Credentials: sealed at rest, opened for the executor alone."""

import logging

import psycopg
import pytest
from psycopg import sql
from tenon.registry.v1 import credential_service_pb2 as pb2

from services.chassis import errors
from services.registry.keys.holding import WrongKeyError
from services.registry.main import open_vault
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme
from tests.wiring import settings

Rows = psycopg.AsyncConnection[tuple[object, ...]]


@pytest.fixture
async def executor(owner: Caller, calling: Calls) -> Caller:
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug))
    return await calling("EXECUTOR", kind="service")


async def resolve(
    executor: Caller, name: str = "token", tenant: str = "acme"
) -> pb2.ResolveCredentialResponse:
    request = pb2.ResolveCredentialRequest(name=f"tenants/{tenant}/credentials/{name}")
    return await executor.credentials.ResolveCredential(request, timeout=5)


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


async def test_binary_values_survive(executor: Caller, owner: Caller) -> None:
    value = bytes(range(256))
    await owner.apply("acme", [documents.credential("raw", token=value)])
    assert dict((await resolve(executor, "raw")).values) == {"token": value}


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
    answer = await resolve(executor)
    assert (answer.version, dict(answer.values)) == (2, {"token": b"rotated"})
    assert (await owner.snapshot("acme"))["credential", "token"].version == 2
    await owner.apply("acme", [documents.credential("token", token=documents.TOKEN)])
    answer = await resolve(executor)
    assert (answer.version, dict(answer.values)) == (3, {"token": documents.TOKEN})
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


MOVES = {
    "value to another credential": "UPDATE registry.credential_versions v SET sealed = o.sealed"
    " FROM registry.credential_versions o WHERE v.tenant_id = o.tenant_id AND v.credential_id <> o.credential_id",
    "value and key to another credential": "UPDATE registry.credential_versions v SET sealed = o.sealed,"
    " wrapped_key = o.wrapped_key FROM registry.credential_versions o"
    " WHERE v.tenant_id = o.tenant_id AND v.credential_id <> o.credential_id",
    "whole version to another credential": "ALTER TABLE registry.credential_versions"
    " DROP CONSTRAINT credential_versions_version_id_key;"
    " UPDATE registry.credential_versions v SET sealed = o.sealed, wrapped_key = o.wrapped_key,"
    " version_id = o.version_id FROM registry.credential_versions o"
    " WHERE v.tenant_id = o.tenant_id AND v.credential_id <> o.credential_id",
    "row to another tenant": "UPDATE registry.credential_versions v SET sealed = o.sealed,"
    " wrapped_key = o.wrapped_key FROM registry.credential_versions o, registry.credentials a, registry.credentials b"
    " WHERE v.tenant_id <> o.tenant_id AND a.credential_id = v.credential_id"
    " AND b.credential_id = o.credential_id AND a.name = b.name",
    "tenant key to another tenant": "UPDATE registry.data_keys v SET wrapped = o.wrapped"
    " FROM registry.data_keys o WHERE v.tenant_id <> o.tenant_id",
    "one bit": "UPDATE registry.credential_versions SET sealed = set_bit(sealed, 500, 1 - get_bit(sealed, 500))",
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
async def test_what_was_moved_or_changed_does_not_open(
    executor: Caller, rows: Rows, move: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for statement in move.split(";"):
        touched = (await rows.execute(statement)).rowcount
    assert touched > 0
    for name in ("token", "hook"):
        with refused(errors.Internal, "INTERNAL") as held:
            await resolve(executor, name)
        assert held[0].message.startswith("internal error; quote request")
    assert documents.CANARY not in caplog.text


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
