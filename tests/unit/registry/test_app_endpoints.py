"""What is wrong with an endpoint that owns an app's stream, or receives from one."""

from typing import Any

import pytest

from services.chassis import constraints
from services.providers.catalog import Catalog
from services.registry.messages.config import SCHEMAS
from services.registry.wanted.checks import check_declared
from services.registry.wanted.endpoint_checks import check_endpoint, stream_of
from services.registry.wanted.objects import Complete, Declared, absent_fields

CATALOG = Catalog.load()
OWNER: dict[str, Any] = {"integration": "chat", "secret": "hook", "app": "main", "tenants": ["*"]}
RECEIVER: dict[str, Any] = {"integration": "chat", "app": "main", "app_owner": "acme"}


def made(kind: str, name: str, **spec: Any) -> Complete:
    rules = [rule for rule in SCHEMAS[kind] if rule.name in spec]
    said = {f"spec.{field}": value for field, value in constraints.filled(rules, spec).items()}
    return Complete(kind, name, {**absent_fields(SCHEMAS[kind]), **said})


def faults(*others: Complete, **spec: Any) -> list[tuple[str, str]]:
    """The faults of an endpoint beside others."""
    endpoint = made("WebhookEndpoint", "in", **spec)
    objects = [
        made("Integration", "chat", provider="slack"),
        made("Integration", "code", provider="github"),
        made("Credential", "hook", type="webhook_secret"),
        *(endpoint, *others),
    ]
    known = {each.key: each for each in objects}
    return list(check_endpoint(endpoint, known, CATALOG))


def test_an_owner_and_a_receiver_are_right() -> None:
    assert faults(**OWNER) == []
    assert faults(**RECEIVER) == []
    assert faults(**(OWNER | {"tenants": ["bolt", "crux"]})) == []
    # Both in one tenant, too.
    assert faults(made("WebhookEndpoint", "other", **RECEIVER), **OWNER) == []
    known = {("Integration", "chat"): made("Integration", "chat", provider="slack")}
    assert stream_of(made("WebhookEndpoint", "in", **OWNER), known) == ("slack", "main")
    assert stream_of(made("WebhookEndpoint", "in", **RECEIVER), known) is None


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (RECEIVER | {"tenants": ["bolt"]}, "spec.tenants"),
        ({"integration": "chat", "secret": "hook", "tenants": ["bolt"]}, "spec.tenants"),
        (OWNER | {"tenants": ["bolt", "Not a slug"]}, "spec.tenants[1]"),
        (OWNER | {"app": "Main"}, "spec.app"),
        (OWNER | {"integration": "code"}, "spec.app"),
        (RECEIVER | {"integration": "code"}, "spec.app"),
        (RECEIVER | {"app_owner": ""}, "spec.app_owner"),
        (RECEIVER | {"app_owner": "*"}, "spec.app_owner"),
        (OWNER | {"app_owner": "acme"}, "spec.app_owner"),
        ({"integration": "chat", "secret": "hook", "app_owner": "acme"}, "spec.app_owner"),
        (OWNER | {"auth": "NONE"}, "spec.auth"),
        (
            {"direction": "OUTBOUND", "url": "https://a.example", "secret": "hook", "app": "main"},
            "spec.app",
        ),
    ],
)
def test_what_cannot_be_is_said_at_its_field(spec: dict[str, Any], field: str) -> None:
    assert [path for path, _ in faults(**spec)] == [field]


@pytest.mark.parametrize("spec", [OWNER, RECEIVER])
def test_a_second_one_that_does_the_same_is_refused(spec: dict[str, Any]) -> None:
    ((field, sentence),) = faults(made("WebhookEndpoint", "other", **spec), **spec)
    assert (field, "other does the same" in sentence) == ("spec.app", True)
    assert faults(made("WebhookEndpoint", "other", **(spec | {"app": "another"})), **spec) == []


def test_no_tenant_takes_the_place_of_streams_in_an_url() -> None:
    (fault,) = check_declared([Declared("Tenant", "app", {})], "app", SCHEMAS)
    assert fault.field == "Tenant/app#metadata.name"
    assert check_declared([Declared("Tenant", "apps", {})], "apps", SCHEMAS) == []
