"""SyncService over gRPC: streams are transferred, and what callers are told of that."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from tenon.executor.v1 import sync_service_pb2 as pb
from tenon.executor.v1 import sync_service_pb2_grpc as pb_grpc

from services.chassis.database import Database
from services.chassis.ids import uuid7
from services.chassis.interceptors import Call
from services.chassis.server import Listen, Service, serving
from services.chassis.status import from_rpc_error
from services.chassis.tenancy import Principal
from services.executor.engine import lanes
from services.executor.servicers.sync import SyncServicer
from services.executor.store import projected
from services.executor.syncs import starting
from services.executor.syncs.runs import stream_of
from services.sandbox.faults import Fault
from tests.integration.executor.sync_bench import ISSUES, REPO, STREAM, SyncBench, sync_bench

Admin = psycopg.AsyncConnection[Any]
Stub: TypeAlias = "pb_grpc.SyncServiceAsyncStub"
PARENT = "tenants/acme"
GITHUB = f"{PARENT}/integrations/github"
NAME = f"{GITHUB}/streams/issues"
CALLER = uuid4()
UID = UUID(int=7)
SyncRun = pb.SyncRun


@pytest.fixture
async def bench(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> AsyncIterator[SyncBench]:
    async with sync_bench(executor_database, tenant_ids[0]) as made:
        await made.want("issues")
        yield made


@pytest.fixture
async def stub(bench: SyncBench) -> AsyncIterator[Stub]:
    async def enter(call: Call) -> None:
        """What the gates find for a caller of acme."""
        call.principal = Principal(CALLER, "user", "Ada")
        call.tenant, call.tenant_id = "acme", bench.tenant_id

    servicer = SyncServicer(bench.syncs, bench.records)
    service = Service(pb.DESCRIPTOR.services_by_name["SyncService"], servicer)
    async with (
        serving([service], [enter], Listen("127.0.0.1:0"), grace_s=0.1) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield pb_grpc.SyncServiceStub(channel)


async def trigger(stub: Stub, **asked: Any) -> SyncRun:
    return await stub.TriggerSync(pb.TriggerSyncRequest(stream=NAME, **asked))


async def got(stub: Stub, name: str) -> SyncRun:
    return await stub.GetSyncRun(pb.GetSyncRunRequest(name=name))


async def ended(stub: Stub, bench: SyncBench, run: SyncRun) -> SyncRun:
    """A transfer, once a worker has brought it to its end."""
    uid = UUID(run.name.rpartition("/")[2])
    async with bench.working():
        await bench.until(uid, lambda found: found.ended)
    return await got(stub, run.name)


async def transferred(stub: Stub, bench: SyncBench, **asked: Any) -> SyncRun:
    return await ended(stub, bench, await trigger(stub, **asked))


async def refused(call: Any) -> tuple[str, str]:
    """The status and the reason that a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, from_rpc_error(error.value).code


def times_of(run: SyncRun) -> list[datetime]:
    stamps = (run.create_time, run.start_time, run.end_time)
    return [each.ToDatetime(UTC) for each in stamps]


async def test_a_transfer_is_told_from_its_wish_to_its_end(stub: Stub, bench: SyncBench) -> None:
    wanted = await trigger(stub)
    assert wanted.name.startswith(f"{PARENT}/syncRuns/") and wanted.stream == NAME
    assert (wanted.state, wanted.trigger, wanted.event) == (SyncRun.STATE_QUEUED, "rpc", "")
    assert not wanted.HasField("start_time") and not wanted.HasField("end_time")
    done = await ended(stub, bench, wanted)
    assert (done.state, done.full) == (SyncRun.STATE_SUCCESS, True)
    assert (done.created, done.updated, done.deleted) == (250, 0, 0)
    # Many are of one moment, so that pages of them come twice.
    assert done.pages > 3 and done.seen > 250
    assert (done.failure_reason, done.failure_message, done.covered_by) == ("", "", "")
    created, started, at_end = times_of(done)
    assert created <= started <= at_end <= datetime.now(UTC)
    assert created == wanted.create_time.ToDatetime(UTC)


async def test_one_that_fails_says_why(stub: Stub, bench: SyncBench) -> None:
    bench.box.faults.add(Fault(path=ISSUES, kind="status", status=404))
    done = await transferred(stub, bench)
    assert (done.state, done.failure_reason) == (SyncRun.STATE_FAILED, "NOT_FOUND")
    assert "404" in done.failure_message and done.HasField("end_time")
    (stream,) = (await stub.ListStreams(pb.ListStreamsRequest(parent=GITHUB))).streams
    assert (stream.failures, stream.last_failure_reason) == (1, "NOT_FOUND")
    assert stream.HasField("last_failure_time") and not stream.HasField("last_success_time")


async def test_all_is_brought_where_that_is_asked_and_what_is_gone_is_counted(
    stub: Stub, bench: SyncBench
) -> None:
    await transferred(stub, bench)
    bench.box.state.transferred |= {(REPO, 3)}
    assert not (await transferred(stub, bench)).full
    done = await transferred(stub, bench, full=True)
    assert (done.full, done.deleted) == (True, 1)


async def test_what_another_one_has_brought_says_which(stub: Stub, bench: SyncBench) -> None:
    first, second = await trigger(stub), await trigger(stub)
    await ended(stub, bench, first)
    covered = await ended(stub, bench, second)
    assert (covered.state, covered.covered_by) == (SyncRun.STATE_SUCCESS, first.name)


async def test_one_that_an_event_began_names_it(stub: Stub, bench: SyncBench) -> None:
    event_id = uuid7()
    async with bench.database.tenant(bench.tenant_id) as tx:
        stream = await stream_of(tx, bench.tenant_id, STREAM)
        begun = starting.started(bench.tenant_id, stream, ("event", event_id))
        await lanes.begin(tx, bench.tenant_id, [begun])
    (run,) = (await stub.ListSyncRuns(pb.ListSyncRunsRequest(parent=PARENT))).sync_runs
    assert (run.trigger, run.event) == ("event", f"{PARENT}/events/{event_id}")
    assert await got(stub, run.name) == run


async def test_a_repeated_request_is_answered_with_the_same_transfer(
    stub: Stub, bench: SyncBench
) -> None:
    request_id = str(uuid4())
    first = await trigger(stub, request_id=request_id)
    twins = await asyncio.gather(*(trigger(stub, request_id=request_id) for _ in range(4)))
    assert {each.name for each in twins} == {first.name}
    assert len(await bench.runs()) == 1
    code = await refused(trigger(stub, request_id=request_id, full=True))
    assert code == ("FAILED_PRECONDITION", "REQUEST_ID_REUSED")
    other = await trigger(stub, request_id=str(uuid4()))
    assert other.name != first.name


async def test_pages_have_each_transfer_once_by_stream_and_state(
    stub: Stub, bench: SyncBench
) -> None:
    done = await transferred(stub, bench)
    waiting = [await trigger(stub) for _ in range(4)]
    newest = [each.name for each in reversed([done, *waiting])]
    queued, success = SyncRun.STATE_QUEUED, SyncRun.STATE_SUCCESS
    other = f"{GITHUB}/streams/pulls"
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, newest),
        ({"stream": NAME}, newest),
        ({"state": queued}, newest[:-1]),
        ({"state": success, "stream": NAME}, newest[-1:]),
        ({"state": SyncRun.STATE_FAILED}, []),
        ({"stream": other}, []),
    ]
    for asked, wanted in cases:
        found: list[str] = []
        token = ""
        while True:
            answer = await stub.ListSyncRuns(
                pb.ListSyncRunsRequest(parent=PARENT, page_size=2, page_token=token, **asked)
            )
            assert len(answer.sync_runs) <= 2
            found += [each.name for each in answer.sync_runs]
            token = answer.next_page_token
            if not token:
                break
        assert found == wanted, asked


async def test_a_page_of_one_query_does_not_go_on_with_another(
    stub: Stub, bench: SyncBench
) -> None:
    await transferred(stub, bench)
    await trigger(stub)
    asked = pb.ListSyncRunsRequest(parent=PARENT, page_size=1)
    token = (await stub.ListSyncRuns(asked)).next_page_token
    assert token
    for other in ({"stream": NAME}, {"state": SyncRun.STATE_QUEUED}):
        call = pb.ListSyncRunsRequest(parent=PARENT, page_token=token, **other)
        assert (await refused(stub.ListSyncRuns(call)))[0] == "INVALID_ARGUMENT"
    listed = await stub.ListRecords(pb.ListRecordsRequest(stream=NAME, page_size=1))
    for records in (
        pb.ListRecordsRequest(stream=NAME, page_token=listed.next_page_token, show_deleted=True),
        pb.ListRecordsRequest(stream=NAME, page_token=token),
    ):
        assert (await refused(stub.ListRecords(records)))[0] == "INVALID_ARGUMENT"


async def test_one_that_waits_is_cancelled_and_one_that_has_ended_stays(
    stub: Stub, bench: SyncBench, admin: Admin
) -> None:
    waiting = await trigger(stub)
    cancel = pb.CancelSyncRunRequest(name=waiting.name)
    ending = await stub.CancelSyncRun(cancel)
    assert (ending.state, ending.failure_reason) == (SyncRun.STATE_CANCELLED, "CANCELLED")
    assert ending.HasField("end_time")
    assert await stub.CancelSyncRun(cancel) == ending
    done = await transferred(stub, bench)
    assert await stub.CancelSyncRun(pb.CancelSyncRunRequest(name=done.name)) == done
    told = await deeds(admin)
    assert [(each["kind"], each["action"]) for each in told] == [("SyncRun", "cancel")]
    assert told[0]["actor"]["uid"] == str(CALLER)
    assert told[0]["object_uid"] == waiting.name.rpartition("/")[2]


async def deeds(admin: Admin) -> list[dict[str, Any]]:
    """What was written down for the audit log, in order."""
    rows = await admin.execute("SELECT event FROM executor.audit_outbox ORDER BY id")
    return [event for (event,) in await rows.fetchall()]


async def test_streams_are_told_of_all_integrations_and_of_one(
    stub: Stub, bench: SyncBench, tenant_ids: tuple[UUID, UUID]
) -> None:
    await want_another(bench)
    run = await transferred(stub, bench)

    async def streams(parent: str) -> list[pb.Stream]:
        return list((await stub.ListStreams(pb.ListStreamsRequest(parent=parent))).streams)

    lab = f"{PARENT}/integrations/lab"
    github, other = await streams(PARENT)
    assert (github.name, other.name) == (NAME, f"{lab}/streams/issues")
    assert await streams(GITHUB) == [github] and await streams(lab) == [other]
    assert await streams(f"{PARENT}/integrations/absent") == []
    assert (github.is_active, github.cursor) == (True, "2026-01-01T00:00:00Z")
    assert (github.last_run, github.failures) == (run.name, 0)
    assert github.HasField("last_success_time") and not github.HasField("last_failure_time")
    assert MessageToDict(other) == {"name": f"{lab}/streams/issues"}
    bench.tenant_id = tenant_ids[1]
    assert await streams(PARENT) == []


async def want_another(bench: SyncBench) -> None:
    """Beside the stream there is one of another integration, which is inactive."""
    async with bench.database.tenant(bench.tenant_id) as tx:
        github = await stream_of(tx, bench.tenant_id, STREAM)
        spec = {**github.spec, "integration": "lab", "is_active": False}
        other = projected.ProjectedObject("Stream", uuid4(), "lab/issues", 0, spec)
        integration = await projected.one(tx, bench.tenant_id, "Integration", "github")
        credential = await projected.one(tx, bench.tenant_id, "Credential", "token")
        assert integration is not None and credential is not None
    await bench.project([integration, credential, github, other])


async def test_a_stream_begins_anew_and_its_records_stay(
    stub: Stub, bench: SyncBench, admin: Admin
) -> None:
    await transferred(stub, bench)
    reset = await stub.ResetStream(pb.ResetStreamRequest(stream=NAME))
    assert (reset.name, reset.cursor, reset.is_active) == (NAME, "", True)
    assert reset.HasField("last_success_time")
    listed = await stub.ListRecords(pb.ListRecordsRequest(stream=NAME, page_size=500))
    assert len(listed.records) == 250
    again = await transferred(stub, bench)
    assert (again.full, again.created, again.updated) == (True, 0, 0)
    (told,) = await deeds(admin)
    assert (told["kind"], told["action"], told["object"]) == ("Stream", "reset", "github/issues")


async def test_records_are_told_in_full_by_key_page_by_page(stub: Stub, bench: SyncBench) -> None:
    await transferred(stub, bench)
    bench.box.state.change_issue(REPO, 9)
    await transferred(stub, bench)
    found: list[pb.Record] = []
    token = ""
    while True:
        asked = pb.ListRecordsRequest(stream=NAME, page_size=120, page_token=token)
        answer = await stub.ListRecords(asked)
        found += answer.records
        token = answer.next_page_token
        if not token:
            break
    keys = [each.key for each in found]
    assert len(keys) == 250 and keys == sorted(set(keys))
    assert all(each.HasField("change_time") and not each.HasField("delete_time") for each in found)
    (changed,) = [each for each in found if each.version == 2]
    said = json.loads(changed.data)
    assert said["number"] == 9 and said["title"].endswith("changed 1")
    assert str(said["id"]) == changed.key
    others = [each.change_time.ToDatetime() for each in found if each.version == 1]
    assert changed.change_time.ToDatetime() > max(others)
    unsaid = await stub.ListRecords(pb.ListRecordsRequest(stream=NAME))
    assert len(unsaid.records) == 50


async def test_what_is_gone_is_told_where_that_is_asked(stub: Stub, bench: SyncBench) -> None:
    await transferred(stub, bench)
    bench.box.state.transferred |= {(REPO, 3)}
    await transferred(stub, bench, full=True)
    left = await stub.ListRecords(pb.ListRecordsRequest(stream=NAME, page_size=500))
    every = await stub.ListRecords(
        pb.ListRecordsRequest(stream=NAME, page_size=500, show_deleted=True)
    )
    assert (len(left.records), len(every.records)) == (249, 250)
    (gone,) = [each for each in every.records if each.HasField("delete_time")]
    assert (gone.data, gone.version) == (b"", 2)
    assert gone.change_time == gone.delete_time


async def test_a_record_that_does_not_open_any_more_says_what_to_do(
    stub: Stub, bench: SyncBench
) -> None:
    await transferred(stub, bench)
    bench.vault.replace_key()
    bench.vault.retired.clear()
    code = await refused(stub.ListRecords(pb.ListRecordsRequest(stream=NAME)))
    assert code == ("FAILED_PRECONDITION", "RECORD_UNREADABLE")


async def test_nothing_of_an_inactive_stream_is_begun(stub: Stub, bench: SyncBench) -> None:
    await bench.want("issues", active=False)
    assert await refused(trigger(stub)) == ("FAILED_PRECONDITION", "STREAM_INACTIVE")
    # What is here is read, and forgotten, as ever.
    assert (await stub.ResetStream(pb.ResetStreamRequest(stream=NAME))).is_active is False
    assert not (await stub.ListRecords(pb.ListRecordsRequest(stream=NAME))).records


async def test_nothing_of_a_disabled_tenant_is_begun(
    stub: Stub, bench: SyncBench, admin: Admin
) -> None:
    await admin.execute("UPDATE executor.tenants SET enabled = false")
    assert await refused(trigger(stub)) == ("FAILED_PRECONDITION", "TENANT_DISABLED")
    assert await bench.runs() == []


BAD_STREAMS = [
    "issues",
    GITHUB,
    f"{NAME}/more",
    f"{GITHUB}/streams/",
    f"{GITHUB}/streams/Issues",
    f"{GITHUB}/streams/{'i' * 64}",
    f"{GITHUB}/streams/a-b",
    f"{GITHUB}/sync/issues",
    f"{PARENT}/integrations/Git_Hub/streams/issues",
    f"{PARENT}/connectors/github/streams/issues",
    "tenants/acme/integrations//streams/issues",
    f"{GITHUB}/streams/issues\n",
    f"{GITHUB}/streams/ıssues",
]


NAMING: dict[str, Callable[[str], Any]] = {
    "TriggerSync": lambda name: pb.TriggerSyncRequest(stream=name),
    "ResetStream": lambda name: pb.ResetStreamRequest(stream=name),
    "ListRecords": lambda name: pb.ListRecordsRequest(stream=name),
    "ListSyncRuns": lambda name: pb.ListSyncRunsRequest(parent=PARENT, stream=name),
}


async def test_what_is_no_streams_name_is_refused(
    stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    for method, asking in NAMING.items():
        for name in BAD_STREAMS:
            answer = await refused(getattr(stub, method)(asking(name)))
            assert answer == ("INVALID_ARGUMENT", "BAD_NAME"), (method, name)
    assert not [each for each in caplog.records if each.exc_info]


PULLS = f"{GITHUB}/streams/pulls"
WRONG: list[tuple[str, Any, str]] = [
    ("TriggerSync", pb.TriggerSyncRequest(stream=NAME, request_id="7"), "INVALID_ARGUMENT"),
    ("TriggerSync", pb.TriggerSyncRequest(stream=PULLS), "NOT_FOUND"),
    ("ResetStream", pb.ResetStreamRequest(stream=PULLS), "NOT_FOUND"),
    ("ListRecords", pb.ListRecordsRequest(stream=PULLS), "NOT_FOUND"),
    ("ListRecords", pb.ListRecordsRequest(stream=NAME, page_size=-1), "INVALID_ARGUMENT"),
    ("ListRecords", pb.ListRecordsRequest(stream=NAME, page_token="x"), "INVALID_ARGUMENT"),
    ("GetSyncRun", pb.GetSyncRunRequest(name=f"{PARENT}/syncRuns/7"), "INVALID_ARGUMENT"),
    ("GetSyncRun", pb.GetSyncRunRequest(name=f"{PARENT}/executions/{UID}"), "INVALID_ARGUMENT"),
    ("GetSyncRun", pb.GetSyncRunRequest(name=f"{PARENT}/syncRuns/{UID}"), "NOT_FOUND"),
    ("CancelSyncRun", pb.CancelSyncRunRequest(name=f"{PARENT}/syncRuns/{UID}"), "NOT_FOUND"),
    ("CancelSyncRun", pb.CancelSyncRunRequest(name="last"), "INVALID_ARGUMENT"),
    ("ListSyncRuns", pb.ListSyncRunsRequest(parent=PARENT, state=99), "INVALID_ARGUMENT"),  # type: ignore[arg-type]
    ("ListSyncRuns", pb.ListSyncRunsRequest(parent=PARENT, page_size=-1), "INVALID_ARGUMENT"),
    ("ListSyncRuns", pb.ListSyncRunsRequest(parent=PARENT, page_token="x"), "INVALID_ARGUMENT"),
    ("ListStreams", pb.ListStreamsRequest(parent=NAME), "INVALID_ARGUMENT"),
    ("ListStreams", pb.ListStreamsRequest(parent=f"{PARENT}/connectors/c"), "INVALID_ARGUMENT"),
]  # fmt: skip


async def test_wrong_words_are_refused(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    for method, asked, code in WRONG:
        assert (await refused(getattr(stub, method)(asked)))[0] == code, (method, asked)
    assert not [each for each in caplog.records if each.exc_info]


async def test_another_tenants_transfers_are_not_there(
    stub: Stub, bench: SyncBench, tenant_ids: tuple[UUID, UUID]
) -> None:
    run = await transferred(stub, bench)
    bench.tenant_id = tenant_ids[1]
    assert not (await stub.ListSyncRuns(pb.ListSyncRunsRequest(parent=PARENT))).sync_runs
    calls: tuple[Any, ...] = (
        stub.GetSyncRun(pb.GetSyncRunRequest(name=run.name)),
        stub.CancelSyncRun(pb.CancelSyncRunRequest(name=run.name)),
        stub.TriggerSync(pb.TriggerSyncRequest(stream=NAME)),
        stub.ResetStream(pb.ResetStreamRequest(stream=NAME)),
        stub.ListRecords(pb.ListRecordsRequest(stream=NAME)),
    )
    for call in calls:
        assert (await refused(call))[0] == "NOT_FOUND"


async def test_nothing_that_is_told_gives_the_credential_away(
    stub: Stub, bench: SyncBench, admin: Admin
) -> None:
    body = {"message": f"not with {bench.vault.token}"}
    bench.box.faults.add(Fault(path=ISSUES, kind="status", status=404, body=body))
    done = await transferred(stub, bench)
    await stub.ResetStream(pb.ResetStreamRequest(stream=NAME))
    listed = await stub.ListSyncRuns(pb.ListSyncRunsRequest(parent=PARENT))
    told = [str(done), str(listed), json.dumps(await deeds(admin))]
    assert done.failure_message and not any(bench.vault.token in each for each in told)
