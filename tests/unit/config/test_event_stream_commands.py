"""`events subscribe` and `events replay`: told line by line, acknowledged, gone on with."""

import json
from typing import Any

import pytest
from tenon.executor.v1 import event_service_pb2 as pb2

from config import event_streams
from services.chassis.errors import FailedPrecondition, ResourceExhausted, Unavailable
from tests.unit.config.conftest import Registry, Tenon

PARENT = "tenants/acme"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "AGAIN_S", 0.0)


def told(number: int, body: bytes = b'{"n":7}', **more: object) -> pb2.SubscribeEventsResponse:
    event = pb2.Event(name=f"{PARENT}/events/e-{number}", type="invoice.paid", body=body)
    event.receive_time.FromJsonString("2026-05-02T08:30:00Z")
    return pb2.SubscribeEventsResponse(position=f"p-{number}", event=event, **more)  # type: ignore[arg-type]


def test_events_are_told_a_line_each_and_a_stream_that_ends_is_begun_after_the_last(
    tenon: Tenon, registry: Registry
) -> None:
    sign = pb2.SubscribeEventsResponse(position="p-2")
    registry.answer(
        "SubscribeEvents", [told(1), sign], [Unavailable("drains")], [told(3, b"\x1b[2J\xff")]
    )
    said = tenon(
        *("events", "subscribe", "acme", "--from", "oldest", "--type", "a.*", "--type", "b"),
        *("--filter", "event.payload.n > 1", "--limit", "2"),
    )
    assert (said.code, said.err) == (0, "")
    first, second = said.out.splitlines()
    assert first == '05-02 08:30:00 invoice.paid e-1 {"n":7}'
    assert "e-3" in second and "\x1b" not in second
    begun, *again = registry.requests("SubscribeEvents")
    assert begun == pb2.SubscribeEventsRequest(
        parent=PARENT,
        types=["a.*", "b"],
        filter="event.payload.n > 1",
        start=pb2.SubscribeEventsRequest.START_OLDEST,
    )
    assert [each.position for each in again] == ["p-2", "p-2"]


def test_as_json_each_line_is_one_event(tenon: Tenon, registry: Registry) -> None:
    registry.answer("SubscribeEvents", [told(1), told(2, b"\xff"), told(3, b"", unreadable=True)])
    command = ("events", "subscribe", "acme", "--from", "p-0", "--limit", "3", "--output", "json")
    lines = [json.loads(line) for line in tenon(*command).out.splitlines()]
    assert [each["id"] for each in lines] == ["e-1", "e-2", "e-3"]
    assert lines[0]["payload"] == {"n": 7} and lines[0]["position"] == "p-1"
    assert lines[1]["body"] == "/w==" and "payload" not in lines[1]
    assert lines[2]["unreadable"] and lines[0]["receive_time"] == "2026-05-02T08:30:00Z"
    assert registry.requests("SubscribeEvents")[0].position == "p-0"


def test_what_was_told_is_acknowledged_for_the_group(tenon: Tenon, registry: Registry) -> None:
    registry.answer("AcknowledgeEvents", pb2.AcknowledgeEventsResponse())
    sign = pb2.SubscribeEventsResponse(position="p-3")
    registry.answer("SubscribeEvents", [told(1), told(2), sign, told(4), told(5)])
    command = ("events", "subscribe", "acme", "--group", "billing", "--ack", "--limit", "4")
    assert tenon(*command).code == 0
    done = registry.requests("AcknowledgeEvents")
    assert {(each.parent, each.group) for each in done} == {(PARENT, "billing")}
    assert [each.position for each in done] == ["p-3", "p-5"]
    said = tenon("events", "subscribe", "acme", "--ack")
    assert (said.code, said.err) == (1, "tenon: --ack is for a group (--group)\n")


def test_a_group_that_somebody_reset_is_followed_from_there(
    tenon: Tenon, registry: Registry
) -> None:
    reset = FailedPrecondition("the group was reset", reason="GROUP_WAS_RESET")
    registry.answer("AcknowledgeEvents", reset, pb2.AcknowledgeEventsResponse())
    sign = pb2.SubscribeEventsResponse(position="p-2")
    registry.answer("SubscribeEvents", [told(1), sign, told(1)])
    command = ("events", "subscribe", "acme", "--group", "billing", "--ack", "--limit", "2")
    said = tenon(*command)
    assert (said.code, said.err) == (0, "")
    assert [each.position for each in registry.requests("AcknowledgeEvents")] == ["p-2", "p-1"]


def test_one_who_cannot_be_reached_is_given_up(tenon: Tenon, registry: Registry) -> None:
    registry.answer("SubscribeEvents", [Unavailable("not here")])
    said = tenon("events", "subscribe", "acme")
    assert (said.code, said.err) == (1, "tenon: not here\n")
    assert len(registry.requests("SubscribeEvents")) >= event_streams.TRIES


def answer(token: str = "", **counts: Any) -> pb2.ReplayEventsResponse:
    made = pb2.ReplayEventsResponse(next_page_token=token, **counts)
    made.reach_time.FromJsonString("2026-05-02T09:00:00Z")
    return made


def test_a_replay_goes_on_to_its_end_and_says_what_it_began(
    tenon: Tenon, registry: Registry
) -> None:
    whole = answer(events=5002, deliveries=5000, executions=2, sync_runs=1, unreadable=1)
    registry.answer("ReplayEvents", answer("more", events=5000), whole)
    said = tenon(
        *("events", "replay", "acme", "--since", "2026-05-02T08:00", "--until", "2026-05-02T09:00"),
        *("--type", "invoice.*", "--endpoint", "in", "--subscription", "s", "--filter", "true"),
    )
    words = "5002 events are routed again: 5000 deliveries, 2 executions, 1 syncs; 1 do not open any more"
    assert (said.code, said.words) == (0, words)
    first, second = registry.requests("ReplayEvents")
    assert first.request_id == second.request_id and len(first.request_id) == 36
    assert (first.page_token, second.page_token) == ("", "more")
    assert (list(first.types), first.endpoint, first.subscription, first.filter) == (
        ["invoice.*"],
        "in",
        "s",
        "true",
    )
    assert first.since.ToJsonString() == "2026-05-02T08:00:00Z"


def test_a_dry_run_says_what_would_be(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ReplayEvents", answer(events=2, deliveries=3))
    said = tenon("events", "replay", "acme", "--since", "12h", "--dry-run")
    assert said.words == "2 events would be routed again: 3 deliveries, 0 executions, 0 syncs"
    assert registry.request.validate_only
    said = tenon("events", "replay", "acme", "--since", "12h", "--dry-run", "--output", "json")
    assert json.loads(said.out)[0]["deliveries"] == "3"


def test_one_that_is_cut_short_says_how_it_is_gone_on_with(
    tenon: Tenon, registry: Registry
) -> None:
    registry.answer("ReplayEvents", answer("more"), ResourceExhausted("the quota is used up"))
    said = tenon("events", "replay", "acme", "--since", "12h")
    assert said.code == 1 and said.out == ""
    first = registry.requests("ReplayEvents")[0]
    go_on, why = said.err.splitlines()
    assert why == "tenon: the quota is used up"
    options = go_on.partition(" by ")[2].split()
    registry.answer("ReplayEvents", answer())
    assert tenon("events", "replay", "acme", *options).code == 0
    again = registry.requests("ReplayEvents")[-1]
    assert (again.request_id, again.since) == (first.request_id, first.since)
