"""Manifests and the catalog: what loads, what is refused, and how that is said."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from services.providers.catalog import Catalog, ManifestInvalid, UnknownProvider
from services.providers.manifest import Challenge

CATALOG = Catalog.load()
GOOD: dict[str, Any] = {
    "provider": "acme",
    "display_name": "Acme",
    "category": "crm",
    "docs": "https://docs.acme.example",
    "base_url": {"default": "https://api.acme.example", "override": False, "required": False},
    "auth": [{"type": "bearer", "prefix": "Bearer "}],
    "verify": "me",
    "operations": {
        "me": {
            "method": "GET",
            "path": "/me",
            "description": "Me.",
            "safe": True,
            "idempotent": True,
        }
    },
}


def load(root: Path, place: str = "crm/acme.yaml", **changes: Any) -> Catalog:
    file = root / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return Catalog.load(root)


def test_a_good_manifest_loads(tmp_path: Path) -> None:
    assert [each.provider for each in load(tmp_path)] == ["acme"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"category": "toys"}, "category"),
        ({"docs": "http://docs.acme.example"}, "docs"),
        ({"auth": []}, "auth"),
        ({"auth": [{"type": "magic"}]}, "auth.0.type"),
        ({"auth": [{"type": "bearer"}, {"type": "bearer"}]}, "auth"),
        ({"auth": [{"type": "api_key", "header_setting": "gone"}]}, "header_setting"),
        ({"verify": "nothing"}, "verify"),
        ({"verify": None}, "verify"),
        ({"base_url": {"override": True, "required": False}}, "base_url"),
        (
            {
                "base_url": {
                    "default": "http://api.acme.example",
                    "override": True,
                    "required": False,
                }
            },
            "base_url.default",
        ),
        ({"config": {"x": {"description": "X.", "pattern": "("}}}, "config.x"),
        (
            {"config": {"x": {"description": "X.", "type": "integer", "default": "1"}}},
            "config.x",
        ),
        ({"webhook": {"signature": {"scheme": "rot13"}}}, "webhook.signature.scheme"),
        ({"failures": {"rules": [{"kind": "sad"}]}}, "failures.rules.0.kind"),
    ],
)
def test_a_bad_manifest_fails_loudly_with_file_and_field(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(ManifestInvalid) as refused:
        load(tmp_path, **changes)
    assert "crm/acme.yaml" in str(refused.value)
    assert field in str(refused.value)


def test_a_path_names_the_variables_it_declares(tmp_path: Path) -> None:
    operation = {**GOOD["operations"]["me"], "path": "/users/{id}"}
    with pytest.raises(ManifestInvalid, match=r"operations\.me: .*path_params"):
        load(tmp_path, operations={"me": operation})


@pytest.mark.parametrize("place", ["scm/acme.yaml", "crm/other.yaml"])
def test_a_manifest_stands_where_it_says(tmp_path: Path, place: str) -> None:
    with pytest.raises(ManifestInvalid, match="place"):
        load(tmp_path, place)


def test_yaml_that_is_none_fails_loudly(tmp_path: Path) -> None:
    (tmp_path / "crm").mkdir()
    (tmp_path / "crm" / "acme.yaml").write_text("a: [")
    with pytest.raises(ManifestInvalid, match=r"crm/acme\.yaml"):
        Catalog.load(tmp_path)


def test_an_unknown_provider_comes_with_the_nearest_known() -> None:
    with pytest.raises(UnknownProvider, match="did you mean github"):
        CATALOG.get("githubb")


def test_settings_are_checked_all_at_once_without_repeating_them() -> None:
    found = CATALOG.get("github").config_violations(
        {"owner": "canary/../x", "repos": "canary", "repo": 7}
    )
    told = {each.field: each.description for each in found}
    assert set(told) == {"owner", "repos", "repo"}
    assert "did you mean repo" in told["repos"]
    assert "canary" not in str(told)


@pytest.mark.parametrize(
    ("value", "good"),
    [(7, True), (7.0, True), (7.5, False), (True, False), ("7", False), (float("inf"), False)],
)
def test_a_whole_number_is_an_integer_however_it_came(value: object, *, good: bool) -> None:
    number = CATALOG.get("github").operations["create_issue_comment"].path_params["issue_number"]
    assert (number.problem(value) is None) == good


def test_defaults_stand_where_nothing_was_given() -> None:
    http = CATALOG.get("http")
    assert http.config_with_defaults({}) == {"api_key_header": "X-API-Key"}
    assert http.config_with_defaults({"api_key_header": "X-Token"}) == {"api_key_header": "X-Token"}


def test_who_must_give_a_base_url_and_who_may() -> None:
    assert CATALOG.get("http").base_url_problem(None) is not None
    assert CATALOG.get("http").base_url_problem("https://any.example") is None
    assert CATALOG.get("github").base_url_problem(None) is None
    assert CATALOG.get("github").base_url_problem("https://ghe.example/api/v3") is None


@pytest.mark.parametrize(
    ("headers", "body", "event"),
    [
        ({"x-github-event": "issues"}, {"action": "opened"}, "issues.opened"),
        ({"x-github-event": "push"}, {"ref": "x"}, "push"),
        ({"x-github-event": "push"}, ["not", "an", "object"], "push"),
        ({"x-github-event": "issues"}, {"action": 7}, "issues"),
        ({}, {"action": "opened"}, None),
    ],
)
def test_github_event_types(headers: dict[str, str], body: object, event: str | None) -> None:
    webhook = CATALOG.get("github").webhook
    assert webhook is not None
    assert webhook.event_type.read(headers, body) == event


def test_standard_webhooks_name_the_event_in_the_body() -> None:
    webhook = CATALOG.get("http").webhook
    assert webhook is not None
    assert webhook.event_type.read({}, {"type": "order.paid"}) == "order.paid"
    assert webhook.event_type.read({}, {}) is None


def test_the_reconciler_reads_the_catalog_without_an_http_stack() -> None:
    code = (
        "import sys, services.providers.catalog as c; c.Catalog.load();"
        "sys.exit(any(m in sys.modules for m in ('aiohttp', 'grpc', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SLACKS = Challenge(by="body", field="challenge", when={"type": "url_verification"})
METAS = Challenge(by="query", field="hub.challenge", when={"hub.mode": "subscribe"})


@pytest.mark.parametrize(
    ("challenge", "asked", "answer"),
    [
        (SLACKS, {"type": "url_verification", "challenge": "3eZbrw1a", "token": "x"}, "3eZbrw1a"),
        (SLACKS, {"type": "event_callback", "challenge": "3eZbrw1a"}, None),
        (SLACKS, {"challenge": "3eZbrw1a"}, None),
        (SLACKS, {"type": "url_verification"}, None),
        (SLACKS, {"type": "url_verification", "challenge": 7}, None),
        (SLACKS, {"type": "url_verification", "challenge": ""}, None),
        (SLACKS, {"type": "url_verification", "challenge": "a\r\nb"}, None),
        (SLACKS, {"type": "url_verification", "challenge": "a" * 501}, None),
        (SLACKS, ["url_verification"], None),
        (SLACKS, None, None),
        (METAS, {"hub.mode": "subscribe", "hub.challenge": "1158201444"}, "1158201444"),
        (METAS, {"hub.mode": "unsubscribe", "hub.challenge": "1158201444"}, None),
    ],
)
def test_a_challenge_is_answered_with_its_own_words_and_nothing_else_is(
    challenge: Challenge, asked: object, answer: str | None
) -> None:
    assert challenge.answer(asked) == answer


@pytest.mark.parametrize(
    "said",
    [
        {"by": "body", "field": "challenge"},
        {"by": "body", "field": "challenge", "when": {"type": "x"}, "token": "token"},
        {"by": "form", "field": "challenge"},
        {"by": "query", "field": "a b"},
    ],
)
def test_a_challenge_that_could_be_something_else_is_none(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Challenge.model_validate(said)
