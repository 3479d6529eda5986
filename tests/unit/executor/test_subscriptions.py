"""Which subscriptions take an event."""

import logging
from collections.abc import Mapping
from uuid import UUID

import pytest

from services.chassis.evaluator import Evaluator
from services.executor.events.subscriptions import matching, of_types
from services.executor.store.projected import ProjectedObject

EVENT = {
    "id": "018f",
    "type": "issues.opened",
    "payload": {"action": "opened", "issue": {"labels": ["bug", "p1"], "number": 7}},
    "headers": {"x-github-event": "issues"},
}


def subscription(
    name: str = "s", *, types: tuple[str, ...] = (), where: str = "", active: bool = True
) -> ProjectedObject:
    spec = {"event_types": list(types), "filter": where, "is_active": active, "connector": "c"}
    return ProjectedObject("Subscription", UUID(int=1), name, 0, spec)


async def taken(each: ProjectedObject, event: Mapping[str, object] = EVENT) -> bool:
    return await matching([each], event, Evaluator().seeing({"event": event})) == [each]


@pytest.mark.parametrize(
    ("patterns", "event_type", "expected"),
    [
        ((), "push", True),
        (("push",), "push", True),
        (("push",), "push.forced", False),
        (("issues.opened",), "issues.opened", True),
        (("issues.opened",), "issues.closed", False),
        (("issues.*",), "issues.opened", True),
        (("issues.*",), "issues.a.b", True),
        (("issues.*",), "issues", True),
        (("issues.*",), "issues_extra.opened", False),
        (("pull_request.*",), "issues.opened", False),
        (("push", "issues.*"), "issues.opened", True),
        (("*",), "push", False),
        (("ISSUES.*",), "issues.opened", False),
    ],
)
def test_types(patterns: tuple[str, ...], event_type: str, expected: bool) -> None:
    assert of_types(patterns, event_type) is expected


async def test_an_inactive_subscription_takes_nothing() -> None:
    assert await taken(subscription())
    assert not await taken(subscription(active=False))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("event.payload.issue.number == 7", True),
        ("event.payload.issue.number > 7", False),
        ("'bug' in event.payload.issue.labels", True),
        ("event.type == 'issues.opened' && event.headers['x-github-event'] == 'issues'", True),
    ],
)
async def test_a_filter_decides(where: str, expected: bool) -> None:
    assert await taken(subscription(where=where)) is expected


@pytest.mark.parametrize(
    "where",
    ["event.payload.absent.deeper == 1", "event.payload.issue.number", "event.type +", "1/0 == 1"],
)
async def test_a_filter_without_an_answer_takes_nothing_and_is_logged_without_values(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not await taken(subscription("triage", where=where))
    assert "triage" in caplog.text and "018f" in caplog.text
    assert "p1" not in caplog.text


async def test_a_filter_sees_a_null_payload_when_the_body_was_not_json() -> None:
    event = {**EVENT, "payload": None}
    assert await taken(subscription(where="event.payload == null"), event)
    assert not await taken(subscription(where="event.payload.action == 'opened'"), event)


async def test_a_payload_with_half_a_surrogate_and_a_huge_number_is_only_data() -> None:
    event = {**EVENT, "payload": {"text": "\ud800", "n": 10**300, "ok": True}}
    assert await taken(subscription(where="event.payload.ok"), event)


async def test_many_subscriptions_keep_their_order() -> None:
    asked = [
        subscription("a", types=("issues.*",)),
        subscription("b", types=("push",)),
        subscription("c", where="event.payload.action == 'opened'"),
    ]
    found = await matching(asked, EVENT, Evaluator().seeing({"event": EVENT}))
    assert [each.name for each in found] == ["a", "c"]
