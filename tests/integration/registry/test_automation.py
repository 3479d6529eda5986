"""An integration's shorthands as plans and applies see them, and subscriptions to actions."""

from typing import Any

import psycopg
import pytest
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import integration_service_pb2 as integration_pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis import errors
from services.registry.wanted.shorthands import EXPANDED_FROM
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import TOKEN, credential, tenant

NOTIFY = ("subscription", "chat-notify")
ACTIONS = config_pb2.Change.Action


def chat(**spec: Any) -> wanted_pb2.Resource:
    said = {"provider": "slack", "config": {"channel": "#ops"}}
    return documents.integration("chat", **(said | spec))


def telling(*events: str, **automation: Any) -> wanted_pb2.Resource:
    return chat(automation={"notify_on_events": events, **automation})


def routed(name: str, **action: Any) -> wanted_pb2.Resource:
    said = {"integration": "chat", **action}
    return documents.resource("subscription", name, event_types=["a"], action=said)


def shown(plan: config_pb2.Plan) -> list[tuple[str, str, str]]:
    words = [(ACTIONS.Name(each.action), each.kind, each.name) for each in plan.changes]
    return [(action.removeprefix("ACTION_").lower(), kind, name) for action, kind, name in words]


@pytest.fixture
async def acme(owner: Caller) -> None:
    await owner.apply("acme", [tenant(), credential("token", token=TOKEN)])


async def faults(owner: Caller, *resources: wanted_pb2.Resource) -> dict[str, str]:
    with refused(errors.InvalidArgument, "INVALID_CONFIG") as held:
        await owner.plan("acme", resources)
    return {each.field: each.description for each in held[0].violations}


@pytest.mark.usefixtures("acme")
async def test_a_plan_shows_what_a_shorthand_stands_for(owner: Caller) -> None:
    plan = await owner.plan("acme", [telling("release.*")], source="git")
    assert shown(plan) == [
        ("create", "Integration", "chat"),
        ("create", "Subscription", "chat-notify"),
    ]
    said = {field.path: field.after for field in plan.changes[1].fields}
    assert said["spec.event_types"] == '["release.*"]'
    assert said["spec.action.integration"] == '"chat"'
    done = await owner.apply("acme", [telling("release.*")], source="git", plan_hash=plan.plan_hash)
    assert done.plan == plan
    found = (await owner.snapshot("acme"))[NOTIFY].resource
    assert found.metadata.labels == {EXPANDED_FROM: "Integration/chat"}
    assert found.subscription.action.role == "message"
    assert found.subscription.action.retry.max_attempts == 3
    again = await owner.plan("acme", [telling("release.*")], source="git")
    assert not again.changes
    request = integration_pb2.GetIntegrationRequest(name="tenants/acme/integrations/chat")
    kept = await owner.integrations.GetIntegration(request, timeout=20)
    assert list(kept.spec.automation.notify_on_events) == ["release.*"]


@pytest.mark.usefixtures("acme")
async def test_it_changes_and_goes_with_its_shorthand(owner: Caller) -> None:
    await owner.apply("acme", [telling("release.*")], source="git")
    changed = await owner.apply("acme", [telling("build.failed", channel="#dev")], source="git")
    assert shown(changed.plan)[1:] == [("update", "Subscription", "chat-notify")]
    found = (await owner.snapshot("acme"))[NOTIFY].resource.subscription
    assert list(found.event_types) == ["build.failed"]
    assert found.action.input["channel"] == "#dev"
    # Another source, which says nothing of it, leaves it as it is and takes nothing.
    other = await owner.apply("acme", [chat(display_name="Ours")], source="desk")
    assert shown(other.plan) == [("update", "Integration", "chat")]
    assert other.plan.unchanged == 0
    assert not (await owner.plan("acme", [telling("build.failed", channel="#dev")])).changes
    plan = await owner.plan("acme", [chat()], source="git")
    assert shown(plan) == [
        ("update", "Integration", "chat"),
        ("delete", "Subscription", "chat-notify"),
    ]
    await owner.apply("acme", [chat()], source="git")
    assert NOTIFY not in await owner.snapshot("acme")


@pytest.mark.usefixtures("acme")
async def test_another_source_may_take_the_shorthand_away(owner: Caller) -> None:
    await owner.apply("acme", [telling("release.*")], source="git")
    done = await owner.apply("acme", [telling()], source="desk")
    assert shown(done.plan)[1:] == [("delete", "Subscription", "chat-notify")]
    assert NOTIFY not in await owner.snapshot("acme")


@pytest.mark.usefixtures("acme")
async def test_it_goes_with_its_integration(owner: Caller) -> None:
    await owner.apply("acme", [telling("release.*")])
    name = "tenants/acme/integrations/chat"
    request = config_pb2.DeleteObjectRequest(name=name, force=True)
    done = await owner.config.DeleteObject(request, timeout=20)
    assert shown(done.plan) == [
        ("delete", "Subscription", "chat-notify"),
        ("delete", "Integration", "chat"),
    ]
    assert not {key for key in await owner.snapshot("acme") if key[0] != "credential"}


@pytest.mark.usefixtures("acme")
async def test_what_is_told_of_a_tenant_makes_it_again(owner: Caller) -> None:
    """All but what shorthands stand for, applied again: nothing changes."""
    wanted = [
        telling("release.*", channel="#dev"),
        routed("by-hand", input={"channel": "#a", "text": "${event.id}"}),
    ]
    await owner.apply("acme", wanted, source="git")
    objects = [each.resource for each in (await owner.snapshot("acme")).values()]
    told = [each for each in objects if EXPANDED_FROM not in each.metadata.labels]
    told = [each for each in told if each.WhichOneof("spec") != "credential"]
    assert len(told) == 2
    assert not (await owner.plan("acme", told, source="git")).changes
    assert not (await owner.apply("acme", told, source="git")).plan.changes
    assert NOTIFY in await owner.snapshot("acme")


@pytest.mark.usefixtures("acme")
async def test_no_document_is_about_it(owner: Caller) -> None:
    told = await faults(owner, telling("a"), routed("chat-notify", input={"text": "x"}))
    assert set(told) == {"Integration/chat#spec.automation.notify_on_events"}
    await owner.apply("acme", [telling("a")])
    told = await faults(owner, routed("chat-notify"))
    assert "a shorthand of Integration chat" in told["Subscription/chat-notify#metadata.name"]
    with refused(errors.InvalidArgument, "INVALID_CONFIG"):
        name = "tenants/acme/subscriptions/chat-notify"
        request = config_pb2.DeleteObjectRequest(name=name, force=True)
        await owner.config.DeleteObject(request, timeout=20)
    labelled = routed("mine")
    labelled.metadata.labels[EXPANDED_FROM] = "Integration/chat"
    assert set(await faults(owner, labelled)) == {"Subscription/mine#metadata.labels"}


@pytest.mark.usefixtures("acme")
async def test_faults_stand_where_they_are_written(owner: Caller) -> None:
    epics = {"auto_create_epics": True, "epic_template": {"titel": "x", "title": "${nope}"}}
    told = await faults(
        owner,
        documents.integration("github", automation={"notify_on_events": ["a"]}),
        documents.integration("bare", provider="slack", automation={"notify_on_events": ["a"]}),
        chat(automation={"trigger_on_release": True, "channel": "#x"}),
        documents.integration(
            "jira",
            provider="jira",
            base_url="https://acme.atlassian.net",
            config={"project_key": "SHOP"},
            automation=epics,
        ),
    )
    where = "spec.automation"
    assert set(told) == {
        f"Integration/github#{where}.notify_on_events",
        f"Integration/bare#{where}.channel",
        f"Integration/chat#{where}.trigger_on_release",
        f"Integration/chat#{where}.channel",
        f"Integration/jira#{where}.epic_template.titel",
        f"Integration/jira#{where}.epic_template.title",
    }
    assert "category scm" in told[f"Integration/github#{where}.notify_on_events"]
    # What a changed integration makes wrong of one that stands.
    await owner.apply("acme", [telling("a")])
    told = await faults(owner, chat(config={}, automation={"notify_on_events": ["a"]}))
    assert set(told) == {f"Integration/chat#{where}.channel"}


@pytest.mark.usefixtures("acme")
async def test_an_action_must_be_one_the_provider_has(owner: Caller) -> None:
    told = await faults(
        owner,
        chat(),
        routed("two-targets", input={"text": "x"}),
        routed("gone", integration="chatt"),
        routed("word", input={"txt": "x"}),
        routed("role", role="ticket"),
        routed("both", role="message", operation="post_message"),
        routed("operation", operation="post"),
        routed("template", input={"text": "${nobody.id}"}),
        routed("retries", retry={"max_attempts": 11}),
        documents.resource("subscription", "none", event_types=["a"]),
        documents.resource(
            "subscription", "transformed", action={"integration": "chat"}, transform={"a": 1}
        ),
    )
    assert set(told) == {
        "Subscription/gone#spec.action.integration",
        "Subscription/word#spec.action.input.txt",
        "Subscription/role#spec.action.role",
        "Subscription/both#spec.action.operation",
        "Subscription/operation#spec.action.operation",
        "Subscription/template#spec.action.input.text",
        "Subscription/retries#spec.action.retry.max_attempts",
        "Subscription/none#spec.connector",
        "Subscription/transformed#spec.transform",
    }


@pytest.mark.usefixtures("acme")
async def test_what_is_called_is_not_deleted(owner: Caller) -> None:
    await owner.apply("acme", [chat(), routed("by-hand")])
    name = "tenants/acme/integrations/chat"
    with refused(errors.FailedPrecondition, "IN_USE") as held:
        request = config_pb2.DeleteObjectRequest(name=name, force=True)
        await owner.config.DeleteObject(request, timeout=20)
    assert "spec.action.integration" in held[0].violations[0].description


@pytest.mark.usefixtures("acme")
async def test_who_may_not_change_subscriptions_has_no_shorthands(
    owner: Caller, calling: Calls, rows: psycopg.AsyncConnection[tuple[object, ...]]
) -> None:
    source = await calling("ADMIN", "acme")
    await rows.execute("UPDATE registry.role_bindings SET kinds = '{Integration}'")
    await source.apply("acme", [chat()])
    for ask in (source.plan, source.apply):
        with refused(errors.PermissionDenied) as held:
            await ask("acme", [telling("a")])
        assert [each.field for each in held[0].violations] == ["Subscription/chat-notify#"]
    assert NOTIFY not in await owner.snapshot("acme")


@pytest.mark.usefixtures("acme")
async def test_a_policy_for_subscriptions_is_one_for_shorthands(
    owner: Caller, calling: Calls
) -> None:
    policy = {"min_risk": "MEDIUM", "kinds": ["Subscription"]}
    await owner.apply("acme", [chat(), documents.resource("review_policy", "four", **policy)])
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    waiting = await author.apply("acme", [telling("a")])
    assert waiting.HasField("pending") and NOTIFY not in await owner.snapshot("acme")
    request = config_pb2.ApproveRevisionRequest(name=waiting.pending.name)
    done = await other.config.ApproveRevision(request, timeout=20)
    assert done.state == config_pb2.PendingRevision.STATE_APPLIED
    assert NOTIFY in await owner.snapshot("acme")
