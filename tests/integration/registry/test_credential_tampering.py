"""Sealed rows that somebody moved, changed or rolled back: refused, and told."""

import logging

import pytest
from tenon.registry.v1 import credential_service_pb2 as pb2

from services.chassis import errors
from services.chassis.rules import Risk
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, refused
from tests.integration.registry.credential_calls import (
    FORGET,
    HOUR,
    Rows,
    code_of,
    delete,
    events,
    notices,
    resolve,
    reveal,
    rotate,
    secret,
    until,
    version_of,
)

V = "registry.credential_versions"
OTHER = f"FROM {V} o WHERE v.tenant_id = o.tenant_id AND v.credential_id <> o.credential_id"
MOVES = {
    "value to another credential": f"UPDATE {V} v SET sealed = o.sealed {OTHER}",
    "value and key to another credential": (
        f"UPDATE {V} v SET sealed = o.sealed, wrapped_key = o.wrapped_key {OTHER}"
    ),
    "whole version to another credential": (
        f"ALTER TABLE {V} DROP CONSTRAINT credential_versions_version_id_key;"
        f" UPDATE {V} v SET sealed = o.sealed, wrapped_key = o.wrapped_key,"
        f" version_id = o.version_id, key_id = o.key_id {OTHER}"
    ),
    "row to another tenant": (
        f"UPDATE {V} v SET sealed = o.sealed, wrapped_key = o.wrapped_key"
        f" FROM {V} o, registry.credentials a, registry.credentials b"
        " WHERE v.tenant_id <> o.tenant_id AND a.credential_id = v.credential_id"
        " AND b.credential_id = o.credential_id AND a.name = b.name"
    ),
    "tenant key to another tenant": (
        "UPDATE registry.data_keys v SET wrapped = o.wrapped"
        " FROM registry.data_keys o WHERE v.tenant_id <> o.tenant_id"
    ),
    "key to another column": f"UPDATE {V} SET sealed = wrapped_key",
    "value to another column": f"UPDATE {V} SET wrapped_key = sealed",
    "another id of its key": f"UPDATE {V} SET key_id = gen_random_uuid()",
    "another number": f"UPDATE {V} SET version = 2; UPDATE registry.credentials SET version = 2",
    "one bit of the value": f"UPDATE {V} SET sealed = set_bit(sealed, 500, 1 - get_bit(sealed, 500))",
    "one bit of its key": (
        f"UPDATE {V} SET wrapped_key = set_bit(wrapped_key, 200, 1 - get_bit(wrapped_key, 200))"
    ),
    "the first bit": f"UPDATE {V} SET sealed = set_bit(sealed, 0, 1 - get_bit(sealed, 0))",
    "truncated": f"UPDATE {V} SET sealed = substring(sealed FOR length(sealed) - 1)",
    "lengthened": f"UPDATE {V} SET sealed = sealed || '\\x00'",
    "emptied": f"UPDATE {V} SET sealed = ''",
    "taken away": f"DELETE FROM {V}",
}
INTERNAL = "internal error; quote request"


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
async def test_what_was_moved_or_changed_does_not_open_and_is_told(
    executor: Caller, rows: Rows, move: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for statement in move.split(";"):
        touched = (await rows.execute(statement.encode())).rowcount
    assert touched > 0
    for name in ("token", "hook"):
        with refused(errors.Internal, "INTERNAL") as held:
            await resolve(executor, name)
        assert held[0].message.startswith(INTERNAL)
    told = [
        row
        for row in await events(rows, "action", "object", "outcome", "risk", "error", "actor_name")
        if row[0] == "open"
    ]
    assert told == [
        ("open", name, "failed", Risk.CRITICAL, "UNSEALABLE", "registry")
        for name in ("token", "hook")
    ]
    assert await notices(rows) == 2
    assert documents.CANARY not in caplog.text
    # The same again within a minute is no further event.
    await rows.execute(FORGET)
    assert await code_of(resolve(executor)) == "INTERNAL"
    assert await notices(rows) == 2


async def test_versions_of_one_credential_do_not_change_places(
    owner: Caller, executor: Caller, rows: Rows
) -> None:
    await rotate(owner, values={"token": b"second"})
    for what in ("sealed", "sealed = o.sealed, wrapped_key"):
        await rows.execute(
            f"UPDATE {V} v SET {what} = o.{what.rpartition(' ')[2]} FROM {V} o"
            " WHERE v.credential_id = o.credential_id AND v.version <> o.version".encode()
        )
        with refused(errors.Internal, "INTERNAL"):
            await resolve(executor)


async def test_the_pointer_to_an_older_version_is_refused(
    owner: Caller, executor: Caller, rows: Rows
) -> None:
    await rotate(owner, values={"token": b"second"}, overlap=HOUR)
    await rows.execute(b"UPDATE registry.credentials SET version = 1 WHERE name = 'token'")
    with refused(errors.Internal, "INTERNAL"):
        await resolve(executor)
    told = [row for row in await events(rows, "action", "object") if row[0] == "open"]
    assert told == [("open", "token")] and await notices(rows) == 1


async def test_a_rollback_of_the_rows_is_seen_by_who_knew_better(
    owner: Caller, executor: Caller, rows: Rows
) -> None:
    await rotate(owner, values={"token": b"second"}, overlap=HOUR)
    assert (await resolve(executor)).version == 2
    await rows.execute(f"DELETE FROM {V} WHERE version = 2".encode())
    await rows.execute(b"UPDATE registry.credentials SET version = 1 WHERE name = 'token'")
    await rows.execute(FORGET)

    async def is_seen() -> bool:
        return await code_of(resolve(executor)) == "INTERNAL"

    await until(is_seen)
    assert await notices(rows) == 1
    # What is newer than all that was seen is good again.
    await rotate(owner, values={"token": b"third"})
    await rotate(owner, values={"token": b"fourth"})
    assert (await version_of(executor, 3)).values["token"] == b"fourth"


async def test_another_credential_of_the_name_is_no_rollback(
    owner: Caller, executor: Caller
) -> None:
    await owner.apply("acme", [secret("again", values={"token": b"one"})])
    await rotate(owner, "again", values={"token": b"two"})
    assert (await resolve(executor, "again")).version == 2
    await delete(owner, "again")
    await owner.apply("acme", [secret("again", values={"token": b"new"})])
    assert (await version_of(executor, 1, "again")).values["token"] == b"new"


async def test_a_changed_data_key_leases_nothing_and_is_told(executor: Caller, rows: Rows) -> None:
    await rows.execute(
        b"UPDATE registry.data_keys SET wrapped = set_bit(wrapped, 200, 1 - get_bit(wrapped, 200))"
    )
    with refused(errors.Internal, "INTERNAL"):
        await executor.credentials.LeaseKey(pb2.LeaseKeyRequest(name="tenants/acme"))
    assert await events(rows, "action", "risk", kind="DataKey") == [("open", Risk.CRITICAL)]
    assert await notices(rows) == 1


async def test_an_older_version_that_stands_as_the_current_one_is_not_revealed(
    owner: Caller, executor: Caller, rows: Rows
) -> None:
    await owner.apply("acme", [secret("made", "webhook_secret")])
    await rotate(owner, "made", overlap=HOUR)
    assert (await reveal(owner, "made")).version == 2
    await rows.execute(b"UPDATE registry.credentials SET version = 1 WHERE name = 'made'")
    with refused(errors.Internal, "INTERNAL"):
        await reveal(owner, "made")


async def test_what_does_not_open_is_not_revealed(
    owner: Caller, executor: Caller, rows: Rows
) -> None:
    await owner.apply("acme", [secret("made", "webhook_secret")])
    await rows.execute(MOVES["one bit of the value"].encode())
    with refused(errors.Internal, "INTERNAL"):
        await reveal(owner, "made")
    assert "reveal" not in [row[0] for row in await events(rows, "action", "object")]
