"""What an action comes to as a call, by its provider's manifest, and what is wrong with it."""

from typing import Any

import pytest

from services.providers.calls import CallInvalid
from services.providers.catalog import Catalog
from services.providers.roles import Action, operation_of, placed, problems

CATALOG = Catalog.load()
SLACK, JIRA, ACTIONS, GITHUB = map(CATALOG.get, ("slack", "jira", "github_actions", "github"))


def faults(manifest: Any, action: Action, **settings: object) -> dict[str, str]:
    return dict(problems(manifest, action, settings))


def test_a_message_says_what_was_given_and_else_what_the_manifest_has() -> None:
    call = placed(SLACK, Action(input={"channel": "#ops", "text": "${event.id}"}), {})
    assert call.operation == "post_message"
    assert call.body == {"channel": "#ops", "text": "${event.id}"}
    call = placed(SLACK, Action(role="message"), {"channel": "C1"})
    assert call.body is not None
    assert call.body["channel"] == "${integration.config.channel}"
    assert "event.type" in call.body["text"]


def test_a_pipeline_fills_the_path_and_the_body() -> None:
    settings = {"owner": "acme", "repo": "shop", "workflow_id": "build.yml", "ref": "main"}
    call = placed(ACTIONS, Action(input={"inputs": {"v": "1"}, "repo": "app"}), settings)
    assert call.params == {
        "owner": "${integration.config.owner}",
        "repo": "app",
        "workflow_id": "${integration.config.workflow_id}",
    }
    assert call.body == {"ref": "${integration.config.ref}", "inputs": {"v": "1"}}


def test_what_has_no_value_is_left_out_with_all_that_is_made_of_it() -> None:
    call = placed(JIRA, Action(input={"project": "SHOP", "title": "T"}), {"issue_type": "Task"})
    assert call.body is not None
    fields = call.body["fields"]
    assert fields["project"] == {"key": "SHOP"} and fields["summary"] == "T"
    assert not {"parent", "labels"} & fields.keys()
    call = placed(JIRA, Action(input={"project": "SHOP", "parent": "SHOP-1"}), {})
    assert call.body is not None
    assert call.body["fields"]["parent"] == {"key": "SHOP-1"}


def test_an_operation_takes_its_input_by_its_own_names() -> None:
    action = Action(operation="create_issue_comment", input={"issue_number": 7, "body": "Hi"})
    assert faults(GITHUB, action, owner="acme", repo="shop") == {}
    call = placed(GITHUB, action, {"owner": "acme", "repo": "shop"})
    assert (call.params, call.body) == ({"issue_number": 7}, {"body": "Hi"})
    listing = Action(operation="list_issues", input={"state": "open", "owner": "acme"})
    call = placed(GITHUB, listing, {})
    assert (call.params, call.query, call.body) == ({"owner": "acme"}, {"state": "open"}, None)


@pytest.mark.parametrize(
    ("manifest", "action", "where", "words"),
    [
        (GITHUB, Action(), "role", "github, of category scm, has no role of its own"),
        (SLACK, Action(role="ticket"), "role", "of category communication, has no role ticket"),
        (SLACK, Action(role="message", operation="x"), "operation", "give one or the other"),
        (SLACK, Action(operation="post_mesage"), "operation", "(did you mean post_message?)"),
        (SLACK, Action(input={"txt": "a"}), "input.txt", "(did you mean text?)"),
        (SLACK, Action(), "input.channel", "or config.channel of the integration"),
        (GITHUB, Action(operation="list_issues"), "input.owner", "the operation's path has it"),
        (
            GITHUB,
            Action(operation="get_authenticated_user", input={"x": 1}),
            "input.x",
            "is not known",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(
    manifest: Any, action: Action, where: str, words: str
) -> None:
    assert words in faults(manifest, action)[where]


def test_a_role_that_is_not_there_any_more_is_no_call() -> None:
    assert operation_of(SLACK, Action(role="ticket")) == ""
    with pytest.raises(CallInvalid, match="slack has no operation for this"):
        placed(SLACK, Action(role="ticket"), {})
