"""`sync`: streams are transferred, followed, looked at, and begun anew; their records are read."""

import json
from typing import Any

import pytest
from tenon.executor.v1 import sync_service_pb2 as pb2

from config import syncs
from services.chassis.errors import FailedPrecondition, NotFound, ResourceExhausted
from tests.unit.config.conftest import Registry, Said, Tenon, rows

UID = "018f-9"
NAME = f"tenants/acme/syncRuns/{UID}"
STREAM = "tenants/acme/integrations/github/streams/issues"
OBEYED = "\x1b[2J"
SyncRun = pb2.SyncRun


def run(state: str = "SUCCESS", **more: Any) -> SyncRun:
    said = {"trigger": "rpc", "pages": 3, "seen": 250, "created": 240, "updated": 9, **more}
    one = SyncRun(name=NAME, stream=STREAM, state=SyncRun.State.Value(f"STATE_{state}"), **said)
    one.create_time.FromJsonString("2026-05-02T08:30:00Z")
    if state in {"SUCCESS", "FAILED", "CANCELLED"}:
        one.end_time.FromJsonString("2026-05-02T08:40:00Z")
    return one


def failed(reason: str = "NOT_FOUND", message: str = "the provider answered 404") -> SyncRun:
    return run("FAILED", failure_reason=reason, failure_message=message)


def record(key: str, version: int = 1, **data: Any) -> pb2.Record:
    said = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() if data else b""
    one = pb2.Record(key=key, version=version, data=said)
    one.change_time.FromJsonString("2026-05-02T08:30:00Z")
    return one


def page(*keys: str, token: str = "") -> pb2.ListRecordsResponse:
    found = [record(key, title=f"the {key}") for key in keys]
    return pb2.ListRecordsResponse(records=found, next_page_token=token)


def in_one_line(said: Said, words: str) -> bool:
    """Whether a fault was told by that line alone, and nothing else was said."""
    return (said.code, said.out, said.err) == (1, "", f"tenon: {words}\n")


def test_a_transfer_is_begun_with_an_id_of_its_own_and_shown(
    tenon: Tenon, registry: Registry
) -> None:
    registry.answer("TriggerSync", run("QUEUED", pages=0, seen=0, created=0, updated=0))
    said = tenon("sync", "trigger", "acme", "github/issues")
    assert said.code == 0 and said.err == ""
    for fact in (f"transfer {NAME}", "stream github/issues", "state queued", "begun by rpc"):
        assert fact in said.words, fact
    assert "of what has changed" in said.words
    (asked,) = registry.requests("TriggerSync")
    assert (asked.stream, asked.full) == (STREAM, False)
    assert tenon("sync", "trigger", "acme", "github/issues", "--full").code == 0
    _, again = registry.requests("TriggerSync")
    assert again.full and again.request_id and again.request_id != asked.request_id


@pytest.mark.parametrize(("end", "code"), [("SUCCESS", 0), ("FAILED", 1)])
def test_one_is_waited_for_to_its_end_a_line_for_each_change(
    end: str, code: int, tenon: Tenon, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncs, "POLL_S", 0.0)
    started = run("RUNNING", pages=1, seen=100)
    waiting = run("RETRYING", pages=1, seen=100, failure_message=f"answered 503{OBEYED}")
    registry.answer("TriggerSync", run("QUEUED", pages=0, seen=0))
    registry.answer("GetSyncRun", started, started, waiting, run(end))
    said = tenon("sync", "trigger", "acme", "github/issues", "--wait")
    assert said.code == code and f"state {end.lower()}" in said.words
    lines = said.err.splitlines()
    assert lines[:2] == ["queued: 0 records on 0 pages", "running: 100 records on 1 pages"]
    assert lines[2].startswith("retrying: 100 records on 1 pages, answered 503") and len(lines) == 3
    assert "\x1b" not in said.err
    assert {asked.name for asked in registry.requests("GetSyncRun")} == {NAME}


def test_as_json_a_wait_says_its_end_alone(
    tenon: Tenon, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncs, "POLL_S", 0.0)
    registry.answer("TriggerSync", run("QUEUED"))
    registry.answer("GetSyncRun", run("RUNNING"), failed())
    said = tenon("sync", "trigger", "acme", "github/issues", "--wait", "--output", "json")
    (told,) = json.loads(said.out)
    assert (told["state"], told["failure_reason"], told["seen"]) == (
        "STATE_FAILED",
        "NOT_FOUND",
        "250",
    )
    assert (said.code, said.err) == (1, "")


def test_who_does_not_wait_is_told_of_a_failure_at_once_too(
    tenon: Tenon, registry: Registry
) -> None:
    # A repeated request answers with the transfer it began, as that stands by now.
    registry.answer("TriggerSync", failed())
    said = tenon("sync", "trigger", "acme", "github/issues")
    assert said.code == 1 and "failure NOT_FOUND: the provider answered 404" in said.words


def test_the_list_says_of_each_how_it_went(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListSyncRuns", pb2.ListSyncRunsResponse(sync_runs=[failed()]))
    listing = ("sync", "runs", "acme", "--stream", "github/issues", "--state", "failed")
    said = tenon(*listing, "--limit", "7")
    assert f"{UID} github/issues failed rpc 2026-05-02 08:30 250 240 NOT_FOUND" in said.words
    assert registry.request == pb2.ListSyncRunsRequest(
        parent="tenants/acme", page_size=7, stream=STREAM, state=SyncRun.STATE_FAILED
    )
    registry.asked.clear()
    assert tenon("sync", "runs", "acme").code == 0
    assert registry.request == pb2.ListSyncRunsRequest(parent="tenants/acme", page_size=20)


@pytest.mark.parametrize("words", [("--state", "lost"), ("--limit", "0"), ("--limit", "-1")])
def test_a_list_is_asked_for_in_words_it_knows(
    words: tuple[str, ...], tenon: Tenon, registry: Registry
) -> None:
    assert tenon("sync", "runs", "acme", *words).code == 2
    assert registry.asked == []


def test_one_is_shown_with_all_that_is_known_of_it(tenon: Tenon, registry: Registry) -> None:
    event, other = "tenants/acme/events/018f-7", "tenants/acme/syncRuns/018f-8"
    registry.answer(
        "GetSyncRun",
        run(trigger="event", event=event, full=True, deleted=2, covered_by=other),
    )
    said = tenon("sync", "show", "acme", UID)
    for fact in (
        f"transfer {NAME}",
        "state success",
        "of all of it",
        f"begun by {event}",
        "pages 3 seen 250 created 240 updated 9 deleted 2",
        f"covered by {other}",
        "wanted at 2026-05-02 08:30",
        "ended at 2026-05-02 08:40",
    ):
        assert fact in said.words, fact
    assert registry.request.name == NAME
    # A whole name will do as well.
    assert tenon("sync", "show", "acme", NAME).out == said.out
    assert {asked.name for asked in registry.requests("GetSyncRun")} == {NAME}
    told = json.loads(tenon("sync", "show", "acme", UID, "--output", "json").out)
    assert (told[0]["name"], told[0]["full"], told[0]["deleted"]) == (NAME, True, "2")


@pytest.mark.parametrize(
    ("command", "method"), [("show", "GetSyncRun"), ("cancel", "CancelSyncRun")]
)
def test_the_last_one_is_the_newest(
    command: str, method: str, tenon: Tenon, registry: Registry
) -> None:
    registry.answer("ListSyncRuns", pb2.ListSyncRunsResponse(sync_runs=[run("RUNNING")]))
    registry.answer(method, run("CANCELLED"))
    said = tenon("sync", command, "acme", "last")
    assert said.code == 0 and "state cancelled" in said.words
    (listed,) = registry.requests("ListSyncRuns")
    assert listed == pb2.ListSyncRunsRequest(parent="tenants/acme", page_size=1)
    (asked,) = registry.requests(method)
    assert asked.name == NAME


def test_without_any_there_is_no_last_one(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListSyncRuns", pb2.ListSyncRunsResponse())
    assert in_one_line(tenon("sync", "cancel", "acme", "last"), "there is no transfer yet")
    assert registry.requests("CancelSyncRun") == []


def test_streams_are_told_with_how_each_stands(tenon: Tenon, registry: Registry) -> None:
    good = pb2.Stream(name=STREAM, is_active=True, cursor="2026-05-02T08:00:00Z")
    good.last_success_time.FromJsonString("2026-05-02T08:30:00Z")
    bad = pb2.Stream(name=f"{STREAM}_2", failures=3, last_failure_reason=f"AUTH{OBEYED}")
    bad.last_failure_time.FromJsonString("2026-05-02T07:30:00Z")
    registry.answer("ListStreams", pb2.ListStreamsResponse(streams=[good, bad]))
    said = tenon("sync", "streams", "acme")
    assert said.code == 0 and "\x1b" not in said.out
    assert "github/issues yes 2026-05-02T08:00:00Z 2026-05-02 08:30" in said.words
    assert "github/issues_2 no 2026-05-02 07:30 AUTH" in said.words
    assert rows(said)[-1][-1] == "3"
    assert registry.request == pb2.ListStreamsRequest(parent="tenants/acme")
    told = json.loads(tenon("sync", "streams", "acme", "--output", "json").out)
    assert [each.get("failures", 0) for each in told] == [0, 3]


def test_a_stream_begins_anew(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ResetStream", pb2.Stream(name=STREAM, is_active=True))
    said = tenon("sync", "reset", "acme", "github/issues")
    assert said.code == 0 and "github/issues yes" in said.words
    assert registry.request == pb2.ResetStreamRequest(stream=STREAM)


def test_records_are_told_by_key_and_what_is_gone_as_gone(tenon: Tenon, registry: Registry) -> None:
    gone = record("8", 2)
    gone.delete_time.FromJsonString("2026-05-02T08:31:00Z")
    named = record("7", 3, title="Grüße\x9b2J", number=2**60 + 1)
    registry.answer("ListRecords", pb2.ListRecordsResponse(records=[named, gone]))
    said = tenon("sync", "records", "acme", "github/issues", "--deleted", "--limit", "2")
    assert said.code == 0 and "\x9b" not in said.out
    first, second = rows(said)[1:]
    assert first[:4] == ["7", "3", "2026-05-02", "08:30"] and f'"number":{2**60 + 1}' in said.words
    assert "Grüße" in said.words
    assert second == ["8", "2", "2026-05-02", "08:30", "gone"]
    assert registry.request == pb2.ListRecordsRequest(stream=STREAM, page_size=2, show_deleted=True)
    told = json.loads(tenon("sync", "records", "acme", "github/issues", "--output", "json").out)
    # Digit for digit, unlike a double.
    assert told[0]["data"]["number"] == 2**60 + 1 and "data" not in told[1]


def test_all_records_are_told_page_by_page_where_no_limit_is_set(
    tenon: Tenon, registry: Registry
) -> None:
    registry.answer("ListRecords", page("1", "2", token="a"), page("3", token="b"), page("4"))
    said = tenon("sync", "records", "acme", "github/issues", "--all", "--output", "json")
    assert said.code == 0
    assert [each["key"] for each in json.loads(said.out)] == ["1", "2", "3", "4"]
    asked = registry.requests("ListRecords")
    assert [(each.page_token, each.page_size) for each in asked] == [
        ("", 500),
        ("a", 500),
        ("b", 500),
    ]


def test_with_a_limit_one_page_is_asked_for(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListRecords", page("1", token="a"))
    assert tenon("sync", "records", "acme", "github/issues").code == 0
    assert registry.request.page_size == 20


@pytest.mark.parametrize("stream", ["github", "github/", "issues"])
@pytest.mark.parametrize("command", ["trigger", "reset", "records"])
def test_a_stream_is_said_by_its_integration_and_its_name(
    command: str, stream: str, tenon: Tenon, registry: Registry
) -> None:
    said = tenon("sync", command, "acme", stream)
    assert in_one_line(
        said, "a stream is said by its integration and its name, such as github/issues"
    )
    assert registry.asked == []


@pytest.mark.parametrize(
    "words", [("Git_Hub/issues", "acme"), ("/issues", "acme"), ("github/issues", "A")]
)
def test_a_name_that_none_has_is_told_before_anything_is_asked(
    words: tuple[str, str], tenon: Tenon, registry: Registry
) -> None:
    stream, tenant = words
    said = tenon("sync", "trigger", tenant, stream)
    assert (said.code, said.out) == (1, "") and len(said.err.splitlines()) == 1
    assert said.err.startswith("tenon: a name is ")
    assert registry.asked == []


def test_what_is_missing_or_unknown_is_told_before_anything_is_asked(
    tenon: Tenon, registry: Registry
) -> None:
    for words in ((), ("trigger", "acme"), ("forget", "acme"), ("show", "acme")):
        assert tenon("sync", *words).code == 2, words
    assert registry.asked == []


@pytest.mark.parametrize(
    ("words", "method", "error"),
    [
        (("trigger", "acme", "github/issues"), "TriggerSync", FailedPrecondition("it is inactive")),
        (("show", "acme", UID), "GetSyncRun", NotFound("syncRuns/018f-9 does not exist")),
        (("cancel", "acme", UID), "CancelSyncRun", NotFound("it does not exist")),
        (("runs", "acme"), "ListSyncRuns", ResourceExhausted("come back later")),
        (("streams", "acme"), "ListStreams", NotFound("acme does not exist")),
        (("reset", "acme", "github/issues"), "ResetStream", NotFound("it does not exist")),
        (("records", "acme", "github/issues"), "ListRecords", NotFound(f"no such thing{OBEYED}")),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else None,
)
def test_a_refusal_is_one_line(
    words: tuple[str, ...], method: str, error: Any, tenon: Tenon, registry: Registry
) -> None:
    registry.answer(method, error)
    said = tenon("sync", *words)
    assert (said.code, said.out) == (1, "") and len(said.err.splitlines()) == 1
    assert said.err.startswith(f"tenon: {error.message.removesuffix(OBEYED)}")
    assert "\x1b" not in said.err


def test_a_limit_that_no_message_can_hold_is_told_in_one_line(
    tenon: Tenon, registry: Registry
) -> None:
    for number in ("-1", "-9999999999", "501"):
        said = tenon("sync", "records", "acme", "github/issues", f"--limit={number}")
        assert said.code == 2, number
    assert registry.asked == []
