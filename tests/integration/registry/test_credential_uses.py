"""How credentials stand: by their use, in windows, and what a list shows of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from tenon.registry.v1 import connection_service_pb2 as connection_pb2
from tenon.registry.v1 import credential_service_pb2 as pb2

from services.chassis import errors
from tests.integration.registry.callers import Caller, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.credential_calls import (
    ACME,
    FORGET,
    HOUR,
    Reported,
    Rows,
    code_of,
    get,
    report,
    resolve,
    rotate,
    secret,
    until,
)
from tests.integration.registry.documents import resource

Status = pb2.Credential
DAY: Final = timedelta(days=1)
NOW: Final = timedelta(0)


async def listed(who: Caller, **asked: Any) -> pb2.ListCredentialsResponse:
    return await who.credentials.ListCredentials(
        pb2.ListCredentialsRequest(parent=ACME, **asked), timeout=5
    )


async def names(who: Caller, **asked: Any) -> list[str]:
    found = (await listed(who, **asked)).credentials
    return [one.name.rpartition("/")[2] for one in found]


async def test_windows_count_what_is_inside_them_and_say_when_it_leaves(
    owner: Caller, executor: Caller
) -> None:
    uid = (await get(owner)).uid
    unused = (await get(owner)).usage
    assert [(one.period.ToTimedelta(), one.uses) for one in unused] == [(DAY, 0), (30 * DAY, 0)]
    assert not any(one.HasField("reset_time") for one in unused)

    old = Reported(uid, uses=5, errors=2, used=2 * DAY, succeeded=2 * DAY)
    new = Reported(uid, uses=10, errors=1, used=2 * HOUR, succeeded=2 * HOUR)
    await report(executor, old, new)
    # Of the same hour again: it adds up.
    await report(executor, replace(new, uses=7, errors=7, succeeded=None))
    day, month = (await get(owner)).usage
    assert (day.uses, day.errors) == (17, 8)
    assert (month.uses, month.errors) == (22, 10)
    first, oldest = (one.message().bucket_time.ToDatetime(UTC) for one in (new, old))
    assert day.reset_time.ToDatetime(UTC) == first + DAY
    assert month.reset_time.ToDatetime(UTC) == oldest + 30 * DAY


async def test_the_newest_word_says_how_it_stands(owner: Caller, executor: Caller) -> None:
    uid = (await get(owner)).uid
    assert (await get(owner)).status == Status.STATUS_UNKNOWN
    words: list[tuple[Reported, int]] = [
        (Reported(uid, used=3 * HOUR), Status.STATUS_UNKNOWN),
        (Reported(uid, used=2 * HOUR, succeeded=2 * HOUR), Status.STATUS_VALID),
        (Reported(uid, used=HOUR, errors=1, refused=HOUR), Status.STATUS_INVALID),
        # Of one hour both are told: the later one counts.
        (Reported(uid, succeeded=NOW, refused=timedelta(seconds=1)), Status.STATUS_VALID),
        (Reported(uid, refused=NOW, succeeded=timedelta(seconds=1)), Status.STATUS_INVALID),
        # A failure that is no refusal says nothing.
        (Reported(uid, errors=1), Status.STATUS_INVALID),
        (Reported(uid, succeeded=NOW), Status.STATUS_VALID),
    ]
    for use, expected in words:
        await report(executor, use)
        assert (await get(owner)).status == expected
    # Of many hours in one report the newest counts, in whatever order they come.
    hours = [
        Reported(uid, refused=NOW),
        Reported(uid, used=2 * HOUR, succeeded=2 * HOUR),
    ]
    await report(executor, *hours)
    shown = await get(owner)
    assert (shown.status, shown.status_reason) == (Status.STATUS_INVALID, "the provider refuses it")
    assert datetime.now(UTC) - shown.validate_time.ToDatetime(UTC) < HOUR
    assert datetime.now(UTC) - shown.use_time.ToDatetime(UTC) < HOUR


async def test_a_word_on_an_old_version_says_nothing_of_the_new_one(
    owner: Caller, executor: Caller
) -> None:
    uid = (await get(owner)).uid
    await report(executor, Reported(uid, refused=NOW))
    await rotate(owner, values={"token": b"second"})
    assert (await get(owner)).status == Status.STATUS_UNKNOWN
    await report(executor, Reported(uid, version=1, refused=NOW))
    assert (await get(owner)).status == Status.STATUS_UNKNOWN
    await report(executor, Reported(uid, version=2, succeeded=NOW))
    assert (await get(owner)).status == Status.STATUS_VALID


@pytest.mark.parametrize("first", ["token", "other"])
async def test_a_report_and_an_apply_of_the_same_credentials_wait_for_each_other(
    owner: Caller, executor: Caller, rows: Rows, first: str
) -> None:
    await owner.apply("acme", [secret("other", "bearer", values={"token": b"another"})])
    uids = {name: (await get(owner, name)).uid for name in ("token", "other")}
    hold = b"SELECT 1 FROM registry.credential_status WHERE credential_id = %s FOR UPDATE"
    waits = "SELECT 1 FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"

    async def it_waits() -> bool:
        return bool(await (await rows.execute(waits)).fetchall())

    async with rows.transaction():
        # As an apply holds them: the tenant, then one credential after the other.
        await rows.execute("SELECT 1 FROM registry.tenants WHERE slug = 'acme' FOR NO KEY UPDATE")
        await rows.execute(hold, [uids[first]])
        used = [Reported(uid, succeeded=NOW) for uid in uids.values()]
        reporting = asyncio.create_task(report(executor, *used))
        await until(it_waits)
        for uid in uids.values():
            await rows.execute(hold, [uid])
    await reporting
    assert {(await get(owner, name)).status for name in uids} == {Status.STATUS_VALID}


async def test_what_the_provider_says_of_limits_is_shown(owner: Caller, executor: Caller) -> None:
    uid = (await get(owner)).uid
    limits = {"limit": "5000", "remaining": "4987", "reset": "1893456000"}
    await report(executor, Reported(uid, rate_limit=limits))
    await report(executor, Reported(uid))
    assert dict((await get(owner)).rate_limit) == limits


WRONG: Final[Mapping[str, Mapping[str, Any]]] = {
    "no use": {"uses": 0},
    "more errors than uses": {"uses": 1, "errors": 2},
    "of last week": {"used": timedelta(days=8)},
    "of the future": {"used": -2 * HOUR},
    "refused in the future": {"refused": -2 * HOUR},
    "too many limits": {"rate_limit": {str(number): "1" for number in range(11)}},
    "a limit that is too long": {"rate_limit": {"limit": "1" * 101}},
}


@pytest.mark.parametrize("said", WRONG.values(), ids=WRONG)
async def test_a_report_that_cannot_be_is_refused_whole(
    owner: Caller, executor: Caller, said: Mapping[str, Any]
) -> None:
    uid = (await get(owner)).uid
    good = Reported(uid, used=3 * HOUR)
    with refused(errors.InvalidArgument):
        await report(executor, good, Reported(uid, **said))
    assert (await get(owner)).usage[0].uses == 0


async def test_only_the_executor_reports_and_strangers_credentials_are_passed_over(
    owner: Caller, executor: Caller, calling: Calls
) -> None:
    uid = (await get(owner)).uid
    admin = await calling("ADMIN", "acme")
    with refused(errors.PermissionDenied):
        await report(admin, Reported(uid))
    twice = [Reported(uid), Reported(uid)]
    with refused(errors.InvalidArgument):
        await report(executor, *twice)
    request = pb2.ReportCredentialUseRequest(
        parent="tenants/globex", uses=[Reported(uid).message()]
    )
    await executor.credentials.ReportCredentialUse(request, timeout=5)
    assert (await get(owner)).usage[0].uses == 0


# What makes a credential of that name show each finding.
STATUS = "UPDATE registry.credential_status s SET {} FROM registry.credentials c WHERE c.credential_id = s.credential_id AND c.name = '{}'"
AGE = "UPDATE registry.credentials SET created_at = now() - interval '31 days' WHERE name = '{}'"


async def test_every_finding_is_shown_and_finds_its_credentials(
    owner: Caller, executor: Caller, rows: Rows
) -> None:
    soon = (datetime.now(UTC) + 10 * DAY).isoformat()
    app = {
        "values": {"client_id": b"x"},
        "provider": "http",
        "config": {"token_url": "https://login.example.com/token"},
    }
    await owner.apply(
        "acme",
        [
            secret("unused", values={"token": b"x"}),
            secret("expiring", values={"token": b"x"}, expires=soon),
            secret("expired", values={"token": b"x"}, expires="2026-01-01T00:00:00Z"),
            secret("app", "oauth2_client", **app),
            secret("scoped", "oauth2", app="app", scopes=["read"], values={"access_token": b"x"}),
            secret("due", values={"token": b"x"}, rotation={"every": "172800s"}),
            secret("again", "oauth2", app="app"),
            secret("wrong", values={"token": b"x"}),
        ],
    )
    await rows.execute(AGE.format("unused").encode())
    await rows.execute(
        b"UPDATE registry.credential_versions v SET scopes = '{read,write}' FROM"
        b" registry.credentials c WHERE c.credential_id = v.credential_id AND c.name = 'scoped'"
    )
    past = "rotate_at = clock_timestamp() - interval '1 s'"
    await rows.execute(STATUS.format(past, "due").encode())
    await rows.execute(STATUS.format("status = 'reconnect'", "again").encode())
    await report(executor, Reported((await get(owner, "wrong")).uid, refused=NOW))
    await report(executor, Reported((await get(owner, "token")).uid, succeeded=NOW))
    expected = {
        pb2.FINDING_UNUSED: ["unused"],
        pb2.FINDING_EXPIRING: ["expired", "expiring"],
        pb2.FINDING_EXPIRED: ["expired"],
        pb2.FINDING_OVER_SCOPED: ["scoped"],
        pb2.FINDING_ROTATION_DUE: ["due"],
        pb2.FINDING_RECONNECT: ["again"],
        pb2.FINDING_INVALID: ["wrong"],
    }
    found = {finding: await names(owner, finding=finding) for finding in expected}
    assert found == expected
    never = await names(owner, finding=pb2.FINDING_NEVER_VALIDATED)
    everything = await names(owner)
    assert [*everything] == sorted(everything) and {*everything} - {*never} == {"token"}
    assert set(pb2.Finding.values()) - {0} == {*expected, pb2.FINDING_NEVER_VALIDATED}


async def test_pages_follow_one_another_with_and_without_a_finding(
    owner: Caller, executor: Caller
) -> None:
    expiring = {"expires": (datetime.now(UTC) + DAY).isoformat(), "values": {"token": b"x"}}
    await owner.apply(
        "acme",
        [
            secret(f"page-{number}", **(expiring if number % 2 else {"values": {"token": b"x"}}))
            for number in range(8)
        ],
    )
    for finding in (pb2.FINDING_UNSPECIFIED, pb2.FINDING_EXPIRING):
        whole = await names(owner, finding=finding)
        assert len(whole) == (10 if finding == pb2.FINDING_UNSPECIFIED else 4)
        pages, token = list[list[str]](), ""
        while True:
            page = await listed(owner, finding=finding, page_size=3, page_token=token)
            pages.append([one.name.rpartition("/")[2] for one in page.credentials])
            token = page.next_page_token
            if not token:
                break
        assert [len(page) for page in pages[:-1]] == [3] * (len(pages) - 1)
        assert [name for page in pages for name in page] == whole
    first = await listed(owner, page_size=3)
    with refused(errors.InvalidArgument):
        await listed(
            owner, page_size=3, page_token=first.next_page_token, finding=pb2.FINDING_EXPIRING
        )


async def test_what_has_ended_is_refused_and_says_so(
    owner: Caller, executor: Caller, rows: Rows
) -> None:
    ends = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    connected = resource("connection", "account", integration="github", credential="token")
    ending = secret("token", expires=ends, values={"token": b"x"})
    await owner.apply("acme", [ending, connected])
    # It is kept in memory no longer than it lasts, less what a call may take.
    assert 0 < (await resolve(executor)).ttl.ToTimedelta().total_seconds() <= 20
    await rows.execute(b"UPDATE registry.credentials SET expires_at = now() WHERE name = 'token'")
    await rows.execute(FORGET)

    async def ended() -> bool:
        return await code_of(resolve(executor)) == "CREDENTIAL_EXPIRED"

    await until(ended)
    shown = await get(owner)
    assert shown.status == Status.STATUS_EXPIRED and pb2.FINDING_EXPIRING in shown.findings
    request = connection_pb2.ListConnectionsRequest(parent=ACME)
    found = (await owner.connections.ListConnections(request)).connections
    assert [one.status for one in found] == [Status.STATUS_EXPIRED]
    # Nobody knows what became of a redemption: so says the connection, too.
    await rows.execute("UPDATE registry.credential_status SET intent_version = 1")
    assert (await get(owner)).status == Status.STATUS_UNCERTAIN
    found = (await owner.connections.ListConnections(request)).connections
    assert [one.status for one in found] == [Status.STATUS_UNCERTAIN]
    await rows.execute("UPDATE registry.credential_status SET intent_version = NULL")
    # Whoever renews it at the provider says until when.
    renewed = secret("token", expires="2199-01-01T00:00:00Z", values={"token": b"x"})
    await owner.apply("acme", [renewed])
    assert (await get(owner)).status == Status.STATUS_UNKNOWN
