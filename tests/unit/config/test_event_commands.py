"""`events`: what came in is looked at, traced, published and tested."""

import io
import json
import sys
from pathlib import Path

import pytest
from tenon.executor.v1 import event_service_pb2 as pb2

from services.chassis.errors import FailedPrecondition
from tests.unit.config.conftest import Registry, Tenon

UID = "018f-7"
NAME = f"tenants/acme/events/{UID}"


def event(**more: object) -> pb2.Event:
    one = pb2.Event(name=NAME, type="invoice.paid", key="k-1", **more)  # type: ignore[arg-type]
    one.receive_time.FromJsonString("2026-05-02T08:30:00Z")
    return one


def test_the_list_says_what_came_and_how(tenon: Tenon, registry: Registry) -> None:
    answer = pb2.ListEventsResponse(events=[event(), event(endpoint_uid="e-9")])
    registry.answer("ListEvents", answer)
    said = tenon("events", "list", "acme", "--type", "invoice.paid", "--limit", "500")
    assert said.code == 0
    assert f"{UID} invoice.paid published 2026-05-02 08:30 k-1" in said.words
    assert f"{UID} invoice.paid e-9 2026-05-02 08:30 k-1" in said.words
    assert registry.request == pb2.ListEventsRequest(
        parent="tenants/acme", page_size=500, type="invoice.paid"
    )


def test_one_is_shown_as_it_came_without_what_a_terminal_would_obey(
    tenon: Tenon, registry: Registry
) -> None:
    registry.answer("GetEvent", event(headers={"x-kind": "a"}, body=b'{"n": 7}\x1b[2J\xff'))
    said = tenon("events", "show", "acme", UID)
    for fact in (f"event {NAME}", "came by published", "x-kind a", 'says {"n": 7}'):
        assert fact in said.words, fact
    assert "\x1b" not in said.out
    assert registry.request.name == NAME
    said = tenon("events", "show", "acme", UID, "--output", "json")
    assert json.loads(said.out)[0]["headers"] == {"x-kind": "a"}


def test_a_trace_says_why_nothing_came_of_it(tenon: Tenon, registry: Registry) -> None:
    traced = pb2.TraceEventResponse(event=event(), deliveries=["tenants/acme/deliveries/d-1"])
    for name, takes, reason, message in (
        ("to-ledger", True, "", ""),
        ("to-crm", False, "FILTER_FAILED", "no such member"),
        ("old", False, "OTHER_TYPE", ""),
    ):
        traced.subscriptions.add(subscription=name, takes=takes, reason=reason, message=message)
    registry.answer("ListEvents", pb2.ListEventsResponse(events=[event()]))
    registry.answer("TraceEvent", traced)
    said = tenon("events", "trace", "acme", "last")
    assert said.code == 0
    for line in (
        "deliveries d-1 executions none",
        "to-ledger yes",
        "to-crm no filter failed: no such member",
        "old no other type",
    ):
        assert line in said.words, line
    (asked,) = registry.requests("TraceEvent")
    assert asked.name == NAME


def test_without_events_there_is_no_last_one(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListEvents", pb2.ListEventsResponse())
    said = tenon("events", "show", "acme", "last")
    assert (said.code, said.out, said.err) == (1, "", "tenon: there is no event yet\n")


def test_one_is_published_and_its_id_is_all_of_standard_output(
    tenon: Tenon, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.answer("PublishEvents", pb2.PublishEventsResponse(names=[NAME]))
    text = '{"total": 7, "paid": true}'
    file = tmp_path / "payload.json"
    file.write_text(text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for words in (("--payload", text), ("--payload-file", file), ("--payload-file", "-")):
        said = tenon("events", "publish", "acme", "invoice.paid", *words, "--key", "k-1")
        assert (said.code, said.out) == (0, f"{UID}\n")
    said = tenon("events", "publish", "acme", "ping", "--output", "json")
    assert json.loads(said.out) == [{"names": [NAME]}]
    *told, empty = registry.requests("PublishEvents")
    for request in told:
        (new,) = request.events
        assert (request.parent, new.type, new.key) == ("tenants/acme", "invoice.paid", "k-1")
        assert dict(new.payload.struct_value.items()) == {"total": 7.0, "paid": True}
    assert empty.events[0].payload.WhichOneof("kind") == "null_value"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--payload", "{"), "must be JSON"),
        (("--payload-file", "/absent/file"), "No such file"),
    ],
)
def test_what_is_no_payload_is_not_sent(
    words: tuple[str, ...], told: str, tenon: Tenon, registry: Registry
) -> None:
    said = tenon("events", "publish", "acme", "ping", *words)
    assert said.code == 1 and told in said.err and said.err.count("\n") == 1
    assert registry.asked == []


def test_a_test_says_which_delivery_it_is(tenon: Tenon, registry: Registry) -> None:
    answer = pb2.SendTestEventResponse(delivery="tenants/acme/deliveries/d-1")
    registry.answer("SendTestEvent", answer)
    said = tenon("events", "test", "acme", "ledger")
    assert (said.code, said.out) == (0, "d-1\n")
    assert registry.request.endpoint == "tenants/acme/webhookEndpoints/ledger"


def test_a_refusal_is_told_in_a_line(tenon: Tenon, registry: Registry) -> None:
    registry.answer("SendTestEvent", FailedPrecondition("webhookEndpoints/ledger is inactive"))
    said = tenon("events", "test", "acme", "ledger")
    assert (said.code, said.out) == (1, "")
    assert said.err == "tenon: webhookEndpoints/ledger is inactive\n"
