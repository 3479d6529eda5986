"""`deliveries`: what goes out is looked at, followed, and delivered again."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tenon.executor.v1 import delivery_service_pb2 as pb2
from tenon.executor.v1 import lane_service_pb2 as lane_pb2

from config import deliveries
from services.chassis.errors import ResourceExhausted
from tests.unit.config.conftest import Registry, Tenon

UID = "018f-9"
NAME = f"tenants/acme/deliveries/{UID}"
Delivery = pb2.Delivery


def delivery(state: str = "DEAD", *, tries: int = 2, reason: str = "HTTP_500") -> Delivery:
    one = Delivery(
        name=NAME,
        state=Delivery.State.Value(f"STATE_{state}"),
        event="tenants/acme/events/018f-7",
        event_type="invoice.paid",
        endpoint="ledger",
        subscription="to-ledger",
        attempts=tries,
        response_status=500 if reason else 200,
        failure_reason=reason,
        payload_hash=b"\xab" * 32,
    )
    one.create_time.FromJsonString("2026-05-02T08:30:00Z")
    if state in {"DEAD", "FAILED", "SUCCESS"}:
        one.end_time.FromJsonString("2026-05-02T08:40:00Z")
    return one


def test_the_list_says_where_each_goes_and_how_it_stands(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListDeliveries", pb2.ListDeliveriesResponse(deliveries=[delivery()]))
    said = tenon("deliveries", "list", "acme", "--endpoint", "ledger", "--state", "dead")
    assert said.code == 0
    assert f"{UID} invoice.paid ledger dead 2 500 2026-05-02 08:30 HTTP_500" in said.words
    assert registry.request == pb2.ListDeliveriesRequest(
        parent="tenants/acme", page_size=20, endpoint="ledger", state=Delivery.STATE_DEAD
    )
    assert tenon("deliveries", "list", "acme", "--state", "lost").code == 2


def test_one_is_shown_with_each_try_without_what_a_terminal_would_obey(
    tenon: Tenon, registry: Registry
) -> None:
    one = delivery()
    tried = one.tries.add(number=1, response_status=500, failure_reason="HTTP_500")
    tried.response_head = "not now\x1b[2J"
    tried.duration.FromMilliseconds(120)
    tried.start_time.FromJsonString("2026-05-02T08:30:01Z")
    registry.answer("GetDelivery", one)
    said = tenon("deliveries", "show", "acme", NAME)
    for fact in (
        f"delivery {NAME}",
        "state dead, 2 tries, HTTP_500",
        "ended 2026-05-02 08:40",
        f"sha256 {'ab' * 32}",
        "1 05-02 08:30:01 120 ms 500 HTTP_500 not now",
    ):
        assert fact in said.words, fact
    assert "\x1b" not in said.out and registry.request.name == NAME
    said = tenon("deliveries", "show", "acme", UID, "--output", "json")
    assert json.loads(said.out)[0]["tries"][0]["response_status"] == 500


def test_the_last_one_is_delivered_again(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListDeliveries", pb2.ListDeliveriesResponse(deliveries=[delivery()]))
    registry.answer("RetryDelivery", delivery("QUEUED"))
    said = tenon("deliveries", "retry", "acme", "last")
    assert said.code == 0 and "queued" in said.words
    (asked,) = registry.requests("RetryDelivery")
    assert asked.name == NAME


@pytest.mark.parametrize(("end", "code"), [("SUCCESS", 0), ("DEAD", 1), ("FAILED", 1)])
def test_one_is_followed_to_its_end_a_line_for_each_change(
    end: str, code: int, tenon: Tenon, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "POLL_S", 0.0)
    last = delivery(end, tries=3, reason="" if end == "SUCCESS" else "HTTP_500")
    again = delivery("RETRYING", tries=1)
    registry.answer("GetDelivery", delivery("QUEUED", tries=0, reason=""), again, again, last)
    said = tenon("deliveries", "follow", "acme", UID)
    why = "" if end == "SUCCESS" else ", HTTP_500"
    lines = said.out.splitlines()
    assert lines[:3] == ["queued", "retrying, HTTP_500", f"{end.lower()}, 3 tries{why}"]
    assert said.code == code and f"delivery {NAME}" in said.words


def test_a_recovery_goes_on_until_nothing_is_left_and_says_how_far_it_is(
    tenon: Tenon, registry: Registry
) -> None:
    more = pb2.RecoverEndpointResponse(count=5000, next_page_token="more")
    registry.answer("RecoverEndpoint", more, pb2.RecoverEndpointResponse(count=2))
    recover = ("deliveries", "recover", "acme", "ledger", "--since", "2026-05-02")
    said = tenon(*recover)
    assert said.code == 0 and said.words == "5002 deliveries are on their way again"
    assert said.err == "5000 are on their way again, and there are more\n"
    first, second = registry.requests("RecoverEndpoint")
    assert (first.endpoint, first.page_token) == ("tenants/acme/webhookEndpoints/ledger", "")
    assert first.since.ToJsonString() == "2026-05-02T00:00:00Z"
    assert second.page_token == "more" and second.since == first.since
    registry.answer("RecoverEndpoint", pb2.RecoverEndpointResponse(count=2))
    assert json.loads(tenon(*recover, "--output", "json").out) == [{"count": 2}]


def test_a_recovery_since_some_time_ago(tenon: Tenon, registry: Registry) -> None:
    registry.answer("RecoverEndpoint", pb2.RecoverEndpointResponse())
    recover = ("deliveries", "recover", "acme", "ledger")
    assert tenon(*recover).code == 2 and tenon(*recover, "--since", "soon").code == 2
    assert registry.asked == []
    assert tenon(*recover, "--since", "2h").code == 0
    ago = datetime.now(UTC) - registry.request.since.ToDatetime(tzinfo=UTC)
    assert timedelta(hours=2) <= ago < timedelta(hours=2, minutes=1)


def test_a_recovery_that_is_cut_short_says_how_far_it_came_and_why(
    tenon: Tenon, registry: Registry
) -> None:
    more = pb2.RecoverEndpointResponse(count=5000, next_page_token="more")
    registry.answer("RecoverEndpoint", more, ResourceExhausted("the quota is used up"))
    said = tenon("deliveries", "recover", "acme", "ledger", "--since", "2h")
    assert (said.code, said.out) == (1, "")
    assert said.err.splitlines() == [
        "5000 are on their way again, and there are more",
        "tenon: the quota is used up",
    ]


def endpoint(name: str, **fields: Any) -> pb2.EndpointState:
    lane = lane_pb2.Lane(breaker=lane_pb2.Lane.BREAKER_CLOSED)
    return pb2.EndpointState(name=f"tenants/acme/webhookEndpoints/{name}", lane=lane, **fields)


def test_endpoints_are_told_by_name_with_what_holds_each(tenon: Tenon, registry: Registry) -> None:
    good = endpoint("ledger", success=199, dead=1, retrying=2, queued=3, success_rate=0.995)
    good.duration_p50.FromMilliseconds(41)
    good.duration_p95.FromMilliseconds(380)
    good.last_success_time.FromJsonString("2026-05-02T08:30:00Z")
    good.last_failure_time.FromJsonString("2026-05-02T07:30:00Z")
    good.last_failure_reason = "HTTP_503"
    held = endpoint("billing")
    held.lane.breaker = lane_pb2.Lane.BREAKER_OPEN
    held.lane.open_until_time.FromJsonString("2026-05-02T08:31:00Z")
    held.lane.reasons.add(code="BREAKER_OPEN", message="the breaker is open\x1b[2J")
    first = pb2.ListEndpointStatesResponse(endpoint_states=[good], next_page_token="more")
    registry.answer(
        "ListEndpointStates", first, pb2.ListEndpointStatesResponse(endpoint_states=[held])
    )
    said = tenon("deliveries", "endpoints", "acme")
    assert said.code == 0 and "\x1b" not in said.out
    line = "ledger closed 5 199 0 1 99.5% 41 ms 380 ms 2026-05-02 08:30 2026-05-02 07:30 HTTP_503"
    assert line in said.words
    assert "billing open until 08:31 0 0 0 0 the breaker is open" in said.words
    assert said.words.index("billing") < said.words.index("ledger")
    one, two = registry.requests("ListEndpointStates")
    assert (one.parent, one.page_token, two.page_token) == ("tenants/acme", "", "more")
    registry.answer("ListEndpointStates", pb2.ListEndpointStatesResponse(endpoint_states=[good]))
    told = json.loads(tenon("deliveries", "endpoints", "acme", "--output", "json").out)
    assert told[0]["success_rate"] == 0.995


def test_a_breaker_is_reset(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ResetCircuit", lane_pb2.Lane(breaker=lane_pb2.Lane.BREAKER_CLOSED))
    said = tenon("deliveries", "reset", "acme", "ledger")
    assert (said.code, said.words) == (0, "the breaker of ledger is closed")
    assert registry.request.endpoint == "tenants/acme/webhookEndpoints/ledger"
    paused = lane_pb2.LaneReason(code="PAUSED", message="an operator resumes it")
    registry.answer("ResetCircuit", lane_pb2.Lane(reasons=[paused]))
    said = tenon("deliveries", "reset", "acme", "ledger")
    assert "PAUSED: an operator resumes it" in said.words


@pytest.mark.parametrize(
    "words",
    [
        ("deliveries", "recover", "acme", "hook", "--since", "999999d"),
        ("deliveries", "recover", "acme", "hook", "--since", "0001-01-01T00:00+14:00"),
        ("deliveries", "list", "acme", "--limit", "-9999999999"),
        ("deliveries", "list", "acme", "--limit", "0"),
        ("events", "publish", "acme", "invoice.paid", "--payload", "1" + "0" * 400),
    ],
)
def test_what_no_message_can_hold_is_said_so(tenon: Tenon, words: tuple[str, ...]) -> None:
    assert tenon(*words).code in {1, 2}
