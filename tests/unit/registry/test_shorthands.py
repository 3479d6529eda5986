"""What an integration's shorthands stand for."""

from typing import Any

from services.chassis.constraints import filled
from services.chassis.errors import Violation
from services.registry.messages.config import SCHEMAS
from services.registry.wanted.objects import LABELS, Complete, Declared, absent_fields
from services.registry.wanted.shorthands import (
    EXPANDED_FROM,
    blamed,
    check_automation,
    expanded,
    following,
    taken,
)

SCHEMA = SCHEMAS["Integration"]
(AUTOMATION,) = [rule for rule in SCHEMA if rule.name == "automation"]
CHAT = ("Integration", "chat")
NOTIFY = ("Subscription", "chat-notify")


def integration(name: str = "chat", **said: Any) -> Complete:
    automation = filled(AUTOMATION.fields, said)
    return Complete("Integration", name, absent_fields(SCHEMA) | {"spec.automation": automation})


def subscription(name: str, owner: str = "") -> Complete:
    labels = {EXPANDED_FROM: f"Integration/{owner}"} if owner else {}
    return Complete("Subscription", name, {LABELS: labels})


def known(*objects: Complete) -> dict[tuple[str, str], Complete]:
    return {each.key: each for each in objects}


def test_each_shorthand_is_a_subscription_to_its_role() -> None:
    all_three = integration(
        notify_on_events=["release.*", "build.failed"],
        channel="#ops",
        trigger_on_release=True,
        auto_create_epics=True,
        epic_template={"title": "Release ${event.payload.version}"},
    )
    found = {each.name: each.fields for _, each in expanded(all_three)}
    assert {name: each["spec.event_types"] for name, each in found.items()} == {
        "chat-notify": ["release.*", "build.failed"],
        "chat-release": ["release.started"],
        "chat-epic": ["release.started"],
    }
    assert {name: each["spec.action"] for name, each in found.items()} == {
        "chat-notify": {
            "integration": "chat",
            "role": "message",
            "input": {"channel": "#ops"},
        },
        "chat-release": {"integration": "chat", "role": "pipeline", "input": {}},
        "chat-epic": {
            "integration": "chat",
            "role": "ticket",
            "input": {"type": "Epic", "title": "Release ${event.payload.version}"},
        },
    }
    assert {each[LABELS][EXPANDED_FROM] for each in found.values()} == {"Integration/chat"}


def test_nothing_said_stands_for_nothing() -> None:
    assert list(expanded(integration())) == []
    assert list(expanded(integration(trigger_on_release=False))) == []
    story = integration(auto_create_epics=True, epic_template={"type": "Story"})
    ((_, each),) = expanded(story)
    assert each.fields["spec.action"]["input"] == {"type": "Story"}


def test_what_stands_for_itself_is_left_alone() -> None:
    chat = integration(notify_on_events=["a"])
    said = [Declared(*CHAT, {}, file="x.yaml", line=7)]
    (made,) = following(said, {}, known(chat))
    assert (made.key, made.file, made.line, made.absent) == (NOTIFY, "x.yaml", 7, False)
    own = subscription("chat-notify")
    assert following(said, known(own), known(chat, own)) == []
    assert following([*said, Declared(*NOTIFY, {})], {}, known(chat, own)) == []
    assert (
        "there is another one"
        in dict(check_automation(chat, known(own)))["spec.automation.notify_on_events"]
    )
    # Of another integration, by the same name.
    other = subscription("chat-notify", owner="other")
    assert following(said, known(other), known(chat)) == []
    assert following([], known(own), known(chat)) == []


def test_it_goes_with_its_shorthand_and_with_its_integration() -> None:
    said, there = [Declared(*CHAT, {})], known(subscription("chat-notify", owner="chat"))
    for left in (known(integration()), known(integration(trigger_on_release=True)), {}):
        gone = [each.key for each in following(said, there, left) if each.absent]
        assert gone == [NOTIFY]
    kept = following(said, there, known(integration(notify_on_events=["b"])))
    assert [(each.key, each.absent) for each in kept] == [(NOTIFY, False)]


def test_no_document_is_about_what_a_shorthand_stands_for() -> None:
    there = known(subscription("chat-notify", owner="chat"), subscription("own"))
    said = [Declared(*NOTIFY, {}), Declared("Subscription", "own", {}), Declared(*CHAT, {})]
    (fault,) = taken(said, there)
    assert fault.field == "Subscription/chat-notify#metadata.name"
    assert [each.field for each in taken([Declared(*NOTIFY, {}, absent=True)], there)] == [
        fault.field
    ]


def test_faults_are_told_where_they_are_written() -> None:
    there = known(
        *(subscription(f"chat-{name}", owner="chat") for name in ("notify", "release", "epic")),
        subscription("own"),
    )
    for field, expected in {
        "Subscription/chat-notify#spec.action.input.channel": "channel",
        "Subscription/chat-notify#spec.action.role": "notify_on_events",
        "Subscription/chat-release#spec.action.input.ref": "trigger_on_release",
        "Subscription/chat-epic#spec.action.input.title": "epic_template.title",
        "Subscription/chat-epic#spec.action.inputs": "auto_create_epics",
    }.items():
        told = blamed(Violation(field, "is wrong"), there)
        assert told == Violation(f"Integration/chat#spec.automation.{expected}", "is wrong")
    for field in ("Subscription/own#spec.action.role", "Subscription/gone#", "Tenant/acme#spec"):
        assert blamed(Violation(field, "is wrong"), there).field == field


def test_what_means_nothing_alone_and_names_too_long_are_refused() -> None:
    alone = integration(channel="#ops", epic_template={"title": "T"})
    assert set(dict(check_automation(alone, {}))) == {
        "spec.automation.channel",
        "spec.automation.epic_template",
    }
    long = integration("x" * 60, trigger_on_release=True)
    assert "a name is" in dict(check_automation(long, {}))["spec.automation.trigger_on_release"]
