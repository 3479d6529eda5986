"""Streams are transferred: what has changed, what is gone, and whatever happens in between."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.executor.audit.outbox import Doer
from services.executor.engine import turns
from services.executor.engine.work import Claimed
from services.executor.store import sync_pages
from services.executor.store.sync_pages import SyncRun
from services.executor.syncs.reading import RecordQuery
from services.executor.syncs.runs import SyncQuery, SyncRequest
from services.executor.syncs.streams import KIND
from services.sandbox.faults import Fault
from tests.integration.executor.lane_bench import pass_time
from tests.integration.executor.sync_bench import ISSUES, REPO, STREAM, SyncBench, sync_bench

Admin = psycopg.AsyncConnection[Any]
ADA = Doer(uuid4(), "user", "Ada")


@pytest.fixture
async def bench(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> AsyncIterator[SyncBench]:
    async with sync_bench(executor_database, tenant_ids[0]) as made:
        await made.want("issues")
        yield made


async def claim(bench: SyncBench) -> Claimed:
    """Claim the transfer that is due, as a worker would."""
    (turn,) = (await turns.claim_tenants(bench.database, 1)).turns
    taken = await turns.claim_work(bench.database, {turn: 1}, [KIND], 30)
    (claimed,) = taken[turn].items
    return claimed


async def interrupted(bench: SyncBench) -> SyncRun:
    """A transfer whose worker is gone when one page is here."""
    run, bench.turn_s = await bench.trigger(), 0
    claimed, syncing = await claim(bench), bench.syncing
    transfer = await syncing.prepare(claimed)
    # Its turn is over before it has asked for anything.
    await syncing.call(claimed, transfer)
    assert await syncing._page(claimed, transfer) is None  # type: ignore[arg-type]
    bench.turn_s = 20.0
    return run


async def failures(admin: Admin) -> int:
    """How often the transfer that waits has failed."""
    async with asyncio.timeout(10):
        while True:
            found = await admin.execute("SELECT failures FROM executor.work WHERE claim_id IS NULL")
            row = await found.fetchone()
            if row is not None:
                return int(row[0])
            await asyncio.sleep(0.02)


def faulty(bench: SyncBench, kind: Any, times: int = 1, **more: Any) -> None:
    bench.box.faults.add(Fault(path=ISSUES, kind=kind, times=times, **more))


async def test_the_first_transfer_brings_all_of_it(bench: SyncBench, admin: Admin) -> None:
    run = await bench.transferred()
    assert (run.state, run.whole, run.created, run.updated, run.deleted) == (
        "success",
        True,
        250,
        0,
        0,
    )
    kept = await bench.kept()
    assert len(kept) == 250
    issue = kept["Issue 7 of acme/shop"]
    assert (issue.version, json.loads(issue.data)["number"]) == (1, 7)
    found = await admin.execute("SELECT string_agg(sealed_data, '') FROM executor.records")
    (at_rest,) = await found.fetchone() or (b"",)
    assert b"acme/shop" not in at_rest, "records are sealed at rest"


async def test_the_next_one_brings_what_has_changed(bench: SyncBench) -> None:
    await bench.transferred()
    before = len(bench.calls())
    bench.box.state.change_issue(REPO, 9)
    run = await bench.transferred()
    assert (run.state, run.whole, run.created, run.updated) == ("success", False, 0, 1)
    asked = bench.calls()[before:]
    assert all(query["since"] == "2026-01-01T00:00:00Z" for query in asked)
    kept = await bench.kept()
    assert kept["Issue 9 of acme/shop, changed 1"].version == 2
    stream = await bench.stream()
    assert (stream.cursor, stream.failures, stream.last_run_id) == (
        "2026-01-01T00:01:00Z",
        0,
        run.id,
    )

    before = len(bench.calls())
    quiet = await bench.transferred()
    assert (quiet.seen, quiet.created, quiet.updated) == (1, 0, 0)
    assert len(bench.calls()) == before + 1


async def test_what_is_reached_stays_reached_where_nothing_comes(bench: SyncBench) -> None:
    bench.box.state.change_issue(REPO, 9)
    await bench.transferred()
    bench.box.state.transferred.add((REPO, 9))
    quiet = await bench.transferred()
    assert (quiet.whole, quiet.seen) == (False, 0)
    assert (await bench.stream()).cursor == "2026-01-01T00:01:00Z"


async def test_what_is_gone_is_found_by_a_whole_transfer(bench: SyncBench) -> None:
    await bench.transferred()
    bench.box.state.transferred |= {(REPO, 3), (REPO, 200)}
    assert (await bench.transferred()).deleted == 0
    run = await bench.transferred(whole=True)
    assert (run.state, run.whole, run.created, run.updated, run.deleted) == (
        "success",
        True,
        0,
        0,
        2,
    )
    assert len(await bench.kept()) == 248
    gone = [each for each in (await bench.kept(gone=True)).values() if each.deleted_at]
    assert [(each.data, each.version) for each in gone] == [(b"", 2), (b"", 2)]

    bench.box.state.transferred.clear()
    back = await bench.transferred(whole=True)
    assert (back.created, back.updated, back.deleted) == (0, 2, 0)
    assert len(await bench.kept()) == 250


async def test_a_provider_that_has_nothing_any_more_is_believed_after_a_reset_alone(
    bench: SyncBench,
) -> None:
    await bench.transferred()
    bench.box.state.transferred |= {(REPO, number) for number in range(1, 251)}
    run = await bench.transferred(whole=True)
    assert (run.state, run.failure_reason, run.deleted) == ("failed", "NOTHING_LEFT", 0)
    assert len(await bench.kept()) == 250
    await bench.syncs.reset(bench.tenant_id, STREAM, ADA)
    run = await bench.transferred()
    assert (run.state, run.whole, run.deleted) == ("success", True, 250)
    assert await bench.kept() == {}


async def test_a_provider_that_asks_for_patience_gets_it(bench: SyncBench, admin: Admin) -> None:
    faulty(bench, "rate_limit", retry_after=0)
    run = await bench.trigger()
    async with bench.working():
        waiting = await bench.until(run.id, lambda found: found.state == "retrying")
        assert (waiting.failure_reason, waiting.pages) == ("RATE_LIMITED", 0)
        assert await failures(admin) == 0, "a provider may ask for patience as often as it likes"
        await pass_time(admin, 400)
        ended = await bench.until(run.id, lambda found: found.ended)
    assert (ended.state, ended.failure_reason, ended.created) == ("success", "", 250)


async def test_a_page_that_breaks_off_is_asked_for_again(bench: SyncBench, admin: Admin) -> None:
    # The first page comes; the second one does not, twice.
    await bench.transferred()
    for number in range(1, 251):
        bench.box.state.change_issue(REPO, number)
    faulty(bench, "truncate")
    run = await bench.trigger()
    async with bench.working():
        await bench.until(run.id, lambda found: found.state == "retrying")
        await pass_time(admin, 400)
        ended = await bench.until(run.id, lambda found: found.ended)
    assert (ended.state, ended.updated) == ("success", 250)


async def test_a_refusal_ends_it_and_the_next_one_asks_for_the_same(bench: SyncBench) -> None:
    faulty(bench, "status", status=404)
    run = await bench.transferred()
    assert (run.state, run.failure_reason) == ("failed", "NOT_FOUND")
    assert "404" in run.failure_message
    stream = await bench.stream()
    assert (stream.failures, stream.last_failure_reason, stream.cursor) == (1, "NOT_FOUND", "")
    assert (await bench.transferred()).created == 250
    assert (await bench.stream()).failures == 0


async def test_no_message_gives_the_credential_away(bench: SyncBench) -> None:
    faulty(bench, "status", status=404, body={"message": f"no {bench.vault.token} here"})
    run = await bench.transferred()
    assert run.failure_message
    assert bench.vault.token not in run.failure_message


async def test_who_goes_on_after_a_worker_died_asks_for_the_page_that_is_not_kept(
    bench: SyncBench, admin: Admin
) -> None:
    run = await interrupted(bench)
    standing = await bench.syncs.get(bench.tenant_id, run.id)
    assert (standing.state, standing.pages, standing.created) == ("running", 1, 100)
    await pass_time(admin, 60)
    before = len(bench.calls())
    async with bench.working():
        ended = await bench.until(run.id, lambda found: found.ended)
    assert (ended.state, ended.created, ended.updated) == ("success", 250, 0)
    assert bench.calls()[before]["since"] == "2026-01-01T00:00:00Z"


async def test_a_long_transfer_lets_others_have_their_turn(bench: SyncBench) -> None:
    bench.turn_s = 0.0
    run = await bench.trigger()
    async with bench.working():
        await bench.until(run.id, lambda found: found.state == "running")
        bench.turn_s = 20.0
    async with bench.working():
        ended = await bench.until(run.id, lambda found: found.ended)
    assert (ended.state, ended.created) == ("success", 250)


async def test_what_was_wanted_before_another_one_began_is_covered_by_it(bench: SyncBench) -> None:
    runs = [await bench.trigger() for _ in range(5)]
    async with bench.working():
        ended = [await bench.until(run.id, lambda found: found.ended) for run in runs]
    first, *others = ended
    assert first.covered_by is None
    assert [(each.state, each.covered_by, each.pages) for each in others] == [
        ("success", first.id, 0)
    ] * 4
    calls = len(bench.calls())
    later = await bench.transferred()
    assert later.covered_by is None
    assert len(bench.calls()) > calls


async def test_a_whole_transfer_is_covered_by_a_whole_one_alone(bench: SyncBench) -> None:
    await bench.transferred()
    changes, whole = await bench.trigger(), await bench.trigger(whole=True)
    async with bench.working():
        first = await bench.until(changes.id, lambda found: found.ended)
        second = await bench.until(whole.id, lambda found: found.ended)
    assert (first.whole, second.whole, second.covered_by) == (False, True, None)


async def test_one_that_waits_for_its_next_try_holds_back_those_behind_it(
    bench: SyncBench, admin: Admin
) -> None:
    faulty(bench, "rate_limit", retry_after=0)
    first = await bench.trigger()
    async with bench.working():
        await bench.until(first.id, lambda found: found.state == "retrying")
        second = await bench.trigger()
        blocked = "SELECT blocked FROM executor.work WHERE target_id = %s"
        assert await (await admin.execute(blocked, [second.id])).fetchone() == (True,)
        await pass_time(admin, 400)
        ended = [await bench.until(run.id, lambda found: found.ended) for run in (first, second)]
    assert [run.state for run in ended] == ["success", "success"]
    assert ended[0].ended_at <= ended[1].started_at  # type: ignore[operator]


async def test_a_repeated_request_is_the_same_transfer(bench: SyncBench) -> None:
    request_id = uuid4()
    first = await bench.trigger(request_id=request_id)
    assert (await bench.trigger(request_id=request_id)).id == first.id
    with pytest.raises(FailedPrecondition) as refused:
        await bench.trigger(request_id=request_id, whole=True)
    assert refused.value.code == "REQUEST_ID_REUSED"
    assert len(await bench.runs()) == 1


async def test_one_that_waits_is_cancelled_at_once(bench: SyncBench) -> None:
    run = await bench.trigger()
    ended = await bench.syncs.cancel(bench.tenant_id, run.id, ADA)
    assert (ended.state, ended.failure_reason) == ("cancelled", "CANCELLED")
    async with bench.working():
        assert (await bench.transferred()).state == "success"
    assert (await bench.stream()).failures == 0


async def test_one_that_runs_is_cancelled_and_what_came_stays(bench: SyncBench) -> None:
    faulty(bench, "slow", delay_s=30)
    run = await bench.trigger()
    async with bench.working():
        await bench.until(run.id, lambda found: found.state == "running")
        await bench.syncs.cancel(bench.tenant_id, run.id, ADA)
        ended = await bench.until(run.id, lambda found: found.ended)
    assert ended.state == "cancelled"
    assert (await bench.syncs.cancel(bench.tenant_id, run.id, ADA)).state == "cancelled"


async def test_a_reset_counts_also_while_a_transfer_is_under_way(bench: SyncBench) -> None:
    await bench.transferred()
    run = await bench.trigger()
    faulty(bench, "slow", delay_s=0.5)
    async with bench.working():
        await bench.until(run.id, lambda found: found.state == "running")
        await bench.syncs.reset(bench.tenant_id, STREAM, ADA)
        await bench.until(run.id, lambda found: found.ended)
    assert (await bench.stream()).cursor == ""
    assert (await bench.transferred()).whole


async def test_nothing_of_an_inactive_stream_is_begun(bench: SyncBench) -> None:
    await bench.want("issues", active=False)
    with pytest.raises(FailedPrecondition) as refused:
        await bench.trigger()
    assert refused.value.code == "STREAM_INACTIVE"


async def test_one_under_way_stops_before_its_next_page_when_the_stream_is_inactive(
    bench: SyncBench,
) -> None:
    run = await bench.trigger()
    claimed = await claim(bench)
    syncing = bench.syncing
    transfer = await syncing.prepare(claimed)
    await bench.want("issues", active=False)
    await bench.recorder.record(claimed, await syncing.call(claimed, transfer))
    ended = await bench.syncs.get(bench.tenant_id, run.id)
    assert (ended.state, ended.failure_reason) == ("failed", "STREAM_INACTIVE")
    assert bench.calls() == []


async def test_what_waits_for_a_stream_that_goes_fails(bench: SyncBench) -> None:
    run = await bench.trigger()
    await bench.want()
    async with bench.working():
        ended = await bench.until(run.id, lambda found: found.ended)
    assert (ended.state, ended.failure_reason) == ("failed", "STREAM_GONE")
    with pytest.raises(NotFound):
        await bench.trigger()
    await bench.want("issues")
    assert (await bench.transferred()).created == 250


async def test_a_stream_that_its_provider_has_no_more_says_so(bench: SyncBench) -> None:
    await bench.want("issues", provider="http", credential="", config={})
    run = await bench.transferred()
    assert (run.state, run.failure_reason) == ("failed", "STREAM_UNKNOWN")


async def test_with_another_key_of_the_tenant_all_is_sealed_anew_and_nothing_has_changed(
    bench: SyncBench,
) -> None:
    await bench.transferred()
    bench.vault.replace_key()
    assert len(await bench.kept()) == 250
    bench.box.state.change_issue(REPO, 9)
    run = await bench.transferred()
    assert (run.state, run.whole, run.updated) == ("success", True, 1)
    bench.vault.retired.clear()
    assert {each.version for each in (await bench.kept()).values()} == {1, 2}
    assert not (await bench.transferred()).whole


async def test_records_whose_key_is_gone_are_had_again_from_the_provider(bench: SyncBench) -> None:
    await bench.transferred()
    bench.vault.replace_key()
    bench.vault.retired.clear()
    with pytest.raises(FailedPrecondition) as refused:
        await bench.kept()
    assert refused.value.code == "RECORD_UNREADABLE"
    run = await bench.transferred()
    assert (run.state, run.whole, run.deleted) == ("success", True, 0)
    assert len(await bench.kept()) == 250


async def test_a_transfer_goes_on_when_the_tenant_got_another_key_meanwhile(
    bench: SyncBench, admin: Admin
) -> None:
    for number in range(1, 251):
        bench.box.state.change_issue(REPO, number)
    run = await interrupted(bench)
    bench.vault.replace_key()
    await pass_time(admin, 60)
    async with bench.working():
        ended = await bench.until(run.id, lambda found: found.ended)
    assert (ended.state, ended.created, ended.updated) == ("success", 250, 0)
    bench.vault.retired.clear()
    assert len(await bench.kept()) == 250


async def test_without_its_key_a_transfer_waits(bench: SyncBench) -> None:
    await bench.transferred()
    bench.vault.fault = Unavailable("the registry is away")
    run = await bench.trigger()
    async with bench.working():
        await asyncio.wait_for(bench.vault.asked.wait(), 10)
        assert not (await bench.syncs.get(bench.tenant_id, run.id)).ended
        bench.vault.fault = None
        ended = await bench.until(run.id, lambda found: found.ended)
    assert ended.state == "success"


async def test_an_answer_that_is_no_list_ends_it_with_words(bench: SyncBench) -> None:
    faulty(bench, "status", status=200, body={"issues": "elsewhere"})
    run = await bench.transferred()
    assert (run.state, run.failure_reason) == ("failed", "STREAM_UNREADABLE")
    assert await bench.kept() == {}


async def test_pages_of_records_and_of_transfers(bench: SyncBench) -> None:
    await bench.transferred()
    first = await bench.records.page(RecordQuery(bench.tenant_id, STREAM, page_size=100))
    second = await bench.records.page(
        RecordQuery(bench.tenant_id, STREAM, page_size=500, page_token=first.next_page_token)
    )
    keys = [each.key for page in (first, second) for each in page.records]
    assert len(keys) == len(set(keys)) == 250
    assert keys == sorted(keys)
    with pytest.raises(InvalidArgument):
        await bench.records.page(
            RecordQuery(bench.tenant_id, STREAM, gone=True, page_token=first.next_page_token)
        )
    await bench.transferred()
    page = await bench.syncs.page(SyncQuery(bench.tenant_id, STREAM, "success", page_size=1))
    rest = await bench.syncs.page(
        SyncQuery(bench.tenant_id, STREAM, "success", 10, page.next_page_token)
    )
    assert [len(page.runs), len(rest.runs), rest.next_page_token] == [1, 1, ""]
    assert (await bench.syncs.page(SyncQuery(bench.tenant_id, ("github", "pulls")))).runs == ()


async def test_another_tenant_sees_nothing_of_it(
    bench: SyncBench, tenant_ids: tuple[UUID, UUID]
) -> None:
    run, (_, other) = await bench.transferred(), tenant_ids
    with pytest.raises(NotFound):
        await bench.syncs.get(other, run.id)
    with pytest.raises(NotFound):
        await bench.records.page(RecordQuery(other, STREAM))
    with pytest.raises(NotFound):
        await bench.syncs.trigger(SyncRequest(other, uuid4(), STREAM))
    stream_id = (await bench.runs())[0].stream_id
    assert await sync_pages.records(bench.database, other, stream_id, "", 10, gone=True) == []


async def test_what_is_done_to_a_stream_is_told_to_the_audit_log(
    bench: SyncBench, admin: Admin
) -> None:
    run = await bench.trigger()
    await bench.syncs.cancel(bench.tenant_id, run.id, ADA)
    await bench.syncs.reset(bench.tenant_id, STREAM, ADA)
    found = await admin.execute("SELECT event FROM executor.audit_outbox ORDER BY id")
    told = [each for (each,) in await found.fetchall()]
    assert [(each["kind"], each["action"], each["object"]) for each in told] == [
        ("SyncRun", "cancel", "github/issues"),
        ("Stream", "reset", "github/issues"),
    ]
    assert bench.vault.token not in json.dumps(told)
