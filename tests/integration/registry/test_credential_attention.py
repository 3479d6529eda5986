"""What is done about credentials when it is time: secrets turn by themselves, people are told once."""

from datetime import UTC, datetime, timedelta

import pytest

from services.chassis.rules import Risk
from services.registry.credentials.attention import BATCH
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry
from tests.integration.registry.credential_calls import (
    Rows,
    attention,
    events,
    get,
    notices,
    put,
    resolve,
    reveal,
    rotate,
    secret,
    version_of,
)

EVERY = {"every": "864000s", "overlap": "3600s"}


async def test_a_pair_turns_into_another_pair(
    owner: Caller, executor: Caller, registry: Registry, rows: Rows
) -> None:
    said = secret("pair", "webhook_secret", rotation=EVERY, generate="ed25519")
    await owner.apply("acme", [said])
    first = (await get(owner, "pair")).public_key
    await is_due(rows, "pair", "rotate_at")
    await attention(registry).round()
    found = await version_of(executor, 2, "pair")
    assert found.values["secret"].startswith(b"whsk_") and len(found.previous) == 1
    assert (await get(owner, "pair")).public_key not in {"", first}


async def is_due(rows: Rows, name: str, what: str) -> None:
    """Move a moment of a credential's into the past."""
    await rows.execute(
        f"UPDATE registry.credential_status s SET {what} = clock_timestamp() - interval '1 s'"
        " FROM registry.credentials c WHERE c.credential_id = s.credential_id AND c.name = %s".encode(),
        [name],
    )


async def is_older(rows: Rows, name: str, days: int) -> None:
    """Make a credential's current version older than it is."""
    await rows.execute(
        b"UPDATE registry.credential_versions v SET created_at = now() - make_interval(days => %s)"
        b" FROM registry.credentials c WHERE c.credential_id = v.credential_id AND c.name = %s",
        [days, name],
    )


async def test_a_secret_that_tenon_made_turns_by_itself(
    owner: Caller, executor: Caller, registry: Registry, rows: Rows
) -> None:
    await owner.apply("acme", [secret("made", "webhook_secret", rotation=EVERY)])
    first = await reveal(owner, "made")
    await attention(registry).round()
    assert (await resolve(executor, "made")).version == 1
    due = (await get(owner, "made")).rotation_due_time.ToDatetime(UTC)
    assert timedelta(days=9) < due - datetime.now(UTC) <= timedelta(days=10)

    await is_due(rows, "made", "rotate_at")
    await attention(registry).round()
    found = await version_of(executor, 2, "made")
    assert found.values["secret"].startswith(b"whsec_") and found.values["secret"] != first.secret
    assert [dict(one.values) for one in found.previous] == [{"secret": first.secret}]
    told = await reveal(owner, "made")
    assert (told.version, told.secret) == (2, found.values["secret"])
    shown = await get(owner, "made")
    assert shown.rotation_due_time.ToDatetime(UTC) > due and not shown.spec.values
    assert [(one.version, one.origin, one.created_by) for one in shown.versions] == [
        (2, "generated", "registry"),
        (1, "generated", "SUPER_ADMIN of all"),
    ]
    turned = [
        row for row in await events(rows, "action", "actor_name", "risk") if row[0] == "rotate"
    ]
    assert turned == [("rotate", "registry", Risk.HIGH)]
    assert await notices(rows) == 1
    # Done once; and YAML knows nothing of it.
    await attention(registry).round()
    assert (await get(owner, "made")).version == 2
    plan = await owner.plan("acme", [secret("made", "webhook_secret", rotation=EVERY)])
    assert not plan.changes


@pytest.mark.parametrize("kind", ["bearer", "webhook_secret"])
async def test_of_values_that_others_made_it_is_told_once_that_it_is_time(
    owner: Caller, executor: Caller, registry: Registry, rows: Rows, kind: str
) -> None:
    part = {"bearer": "token", "webhook_secret": "secret"}[kind]
    theirs = secret("theirs", kind, values={part: b"x"}, rotation=EVERY)
    await owner.apply("acme", [theirs])
    await is_older(rows, "theirs", 11)
    await is_due(rows, "theirs", "rotate_at")
    for _ in range(2):
        await attention(registry).round()
    told = [row for row in await events(rows, "action", "object", "risk") if row[1] == "theirs"]
    assert told == [("create", "theirs", Risk.HIGH), ("rotation_due", "theirs", Risk.HIGH)]
    assert await notices(rows) == 1
    assert (await resolve(executor, "theirs")).version == 1
    # A change of something else is no reason to tell it again.
    noted = await put(owner, "theirs", secret("x", kind, notes="soon").credential)
    await attention(registry).round()
    assert await notices(rows) == 1 and noted.spec.notes == "soon"
    # New values begin anew.
    await rotate(owner, "theirs", values={part: b"y"})
    assert (await get(owner, "theirs")).rotation_due_time.ToDatetime(UTC) > datetime.now(UTC)
    await is_due(rows, "theirs", "rotate_at")
    await attention(registry).round()
    assert await notices(rows) == 2


async def test_it_is_told_once_that_a_credential_ends(
    owner: Caller, executor: Caller, registry: Registry, rows: Rows
) -> None:
    soon = (datetime.now(UTC) + timedelta(days=13)).isoformat()
    await owner.apply("acme", [secret("ends", expires=soon, values={"token": b"x"})])
    for _ in range(2):
        await attention(registry).round()
    await put(owner, "ends", secret("x", description="still").credential)
    await attention(registry).round()
    told = [row[0] for row in await events(rows, "action", "object") if row[1] == "ends"]
    assert told.count("expiring") == 1 and "update" in told
    assert await notices(rows) == 1
    # With another end it is told again, when that comes near.
    for days in (100, 12):
        later = (datetime.now(UTC) + timedelta(days=days)).isoformat()
        await owner.apply("acme", [secret("ends", expires=later, values={"token": b"x"})])
        await attention(registry).round()
    assert await notices(rows) == 2


@pytest.mark.parametrize(("batch", "rounds"), [(BATCH, 1), (1, 60)])
async def test_one_that_cannot_be_turned_holds_up_no_other(
    owner: Caller,
    executor: Caller,
    registry: Registry,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    rounds: int,
) -> None:
    # As many fail as are looked at in one round.
    monkeypatch.setattr("services.registry.credentials.attention.BATCH", batch)
    await owner.apply("globex", [secret("made", "webhook_secret", rotation=EVERY)])
    await owner.apply("acme", [secret("made", "webhook_secret", rotation=EVERY)])
    await rows.execute(
        "UPDATE registry.data_keys SET wrapped = set_bit(wrapped, 200, 1 - get_bit(wrapped, 200))"
        " WHERE tenant_id = (SELECT tenant_id FROM registry.tenants WHERE slug = 'globex')"
    )
    await is_due(rows, "made", "rotate_at")
    for _ in range(rounds):
        await attention(registry).round()
    assert (await get(owner, "made")).version == 2
    ((left,),) = await (
        await rows.execute(
            "SELECT count(*) FROM registry.credential_status WHERE rotate_at < clock_timestamp()"
        )
    ).fetchall()
    assert left == 1
    assert documents.CANARY not in str(await events(rows, "fields", "error"))
