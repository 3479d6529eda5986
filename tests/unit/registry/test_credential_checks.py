"""What is wrong with a credential, an app and a connection, each fault at its field."""

from collections.abc import Mapping
from typing import Any, Final

import pytest

from services.chassis import constraints
from services.providers.auth import CREDENTIAL_TYPES
from services.providers.catalog import Catalog
from services.registry.messages.config import SCHEMAS
from services.registry.wanted.credential_checks import (
    check_app_of,
    check_connection,
    check_credential,
    check_provider_of,
)
from services.registry.wanted.objects import Complete, Key, absent_fields

CATALOG: Final = Catalog.load()
TOKEN_URL: Final = {"token_url": "https://login.example.com/token"}
GOOD: Final[Mapping[str, tuple[str, ...]]] = {
    "api_key": ("key",),
    "bearer": ("token",),
    "basic": ("username", "password"),
    "webhook_secret": (),
    "oauth2": (),
    "oauth2_client": ("client_id",),
    "jwt_key": ("private_key", "issuer"),
    "client_certificate": ("certificate", "private_key"),
}
OPTIONAL: Final[Mapping[str, tuple[str, ...]]] = {
    "api_key": ("secret",),
    "webhook_secret": ("secret",),
    "oauth2": ("access_token", "refresh_token", "id_token"),
    "oauth2_client": ("client_secret",),
    "jwt_key": ("key_id", "subject"),
}
# What a type cannot be without, besides its parts.
ALSO: Final[Mapping[str, Mapping[str, Any]]] = {
    "oauth2": {"app": "app"},
    "oauth2_client": {"provider": "http", "config": TOKEN_URL},
    "jwt_key": {"provider": "http", "config": TOKEN_URL},
}


def made(kind: str, name: str, **spec: Any) -> Complete:
    """An object with every field, as a draft has it."""
    rules = [rule for rule in SCHEMAS[kind] if rule.name in spec]
    said = {f"spec.{field}": value for field, value in constraints.filled(rules, spec).items()}
    return Complete(kind, name, {**absent_fields(SCHEMAS[kind]), **said})


def credential(kind: str = "bearer", name: str = "one", /, **spec: Any) -> Complete:
    parts = dict.fromkeys(GOOD.get(kind, ()), "")
    return made("Credential", name, **{"type": kind, "values": parts, **ALSO.get(kind, {}), **spec})


def known(*objects: Complete) -> dict[Key, Complete]:
    """Those, and an app of each kind."""
    apps = (credential("oauth2_client", "app"), credential("jwt_key", "jwt-app"))
    return {one.key: one for one in (*apps, *objects)}


def faults(one: Complete) -> dict[str, str]:
    found = list(check_credential(one, known(one), CATALOG))
    assert len({path for path, _ in found}) == len(found)
    return dict(found)


@pytest.mark.parametrize("kind", CREDENTIAL_TYPES)
def test_every_type_is_good_with_what_it_needs_and_with_all_it_may_have(kind: str) -> None:
    assert faults(credential(kind)) == {}
    everything = dict.fromkeys((*GOOD[kind], *OPTIONAL.get(kind, ())), "")
    assert faults(credential(kind, values=everything)) == {}


@pytest.mark.parametrize(
    ("kind", "part"), [(kind, part) for kind, parts in GOOD.items() for part in parts]
)
def test_every_part_that_is_needed_is_missed(kind: str, part: str) -> None:
    rest = {each: "" for each in GOOD[kind] if each != part}
    told = faults(credential(kind, values=rest))
    assert told == {"spec.values": f"a credential of type {kind} needs {part}"}


@pytest.mark.parametrize("kind", CREDENTIAL_TYPES)
def test_an_unknown_part_is_told_with_the_one_that_was_meant(kind: str) -> None:
    part = (*GOOD[kind], *OPTIONAL.get(kind, ()))[0]
    values = dict.fromkeys((*GOOD[kind], f"{part}x"), "")
    told = faults(credential(kind, values=values))
    assert told.keys() == {f"spec.values.{part}x"}
    assert told[f"spec.values.{part}x"].endswith(f"(did you mean {part}?)")


# What is said of a credential, and which field is at fault with which words.
FAULTS: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]]] = {
    "expires without a zone": (
        {"expires": "2027-01-31T00:00:00"},
        {"spec.expires": "with its zone"},
    ),
    "expires as words": ({"expires": "next year"}, {"spec.expires": "with its zone"}),
    "a rotation that is too quick": (
        {"rotation": {"every": "86399s", "overlap": "0s"}},
        {"spec.rotation.every": "24h to 3650 days"},
    ),
    "a rotation that never comes": (
        {"rotation": {"every": "315360001s"}},
        {"spec.rotation.every": "24h to 3650 days"},
    ),
    "an overlap that is too long": (
        {"rotation": {"overlap": "2592001s"}},
        {"spec.rotation.overlap": "0s to 30 days"},
    ),
    "an overlap below nothing": (
        {"rotation": {"overlap": "-1s"}},
        {"spec.rotation.overlap": "0s to 30 days"},
    ),
    "an overlap as long as the rotation": (
        {"rotation": {"every": "86400s", "overlap": "86400s"}},
        {"spec.rotation.overlap": "shorter than every"},
    ),
    "endpoints": (
        {"allowed_endpoints": ["https://api.example.com/*", "ftp://x", "https://*/x"]},
        {"spec.allowed_endpoints[1]": "", "spec.allowed_endpoints[2]": ""},
    ),
    "networks": (
        {"allowed_ranges": ["198.51.100.0/24", "198.51.100.1/24", "everywhere"]},
        {"spec.allowed_ranges[1]": "", "spec.allowed_ranges[2]": ""},
    ),
    "live in a sandbox": (
        {"environment": "sandbox", "provider_metadata": {"livemode": True}},
        {"spec.provider_metadata.livemode": "this is of production"},
    ),
    "a trial in production": (
        {"provider_metadata": {"livemode": False}},
        {"spec.provider_metadata.livemode": "this is of sandbox or development"},
    ),
    "perhaps live": (
        {"provider_metadata": {"livemode": "yes"}},
        {"spec.provider_metadata.livemode": "true or false"},
    ),
    "a provider nobody knows": (
        {"provider": "githup"},
        {"spec.provider": "did you mean github?"},
    ),
    "settings of what is no app": ({"config": TOKEN_URL}, {"spec.config": "is for apps"}),
    "an app of what gets no tokens": (
        {"app": "app", "grant": "jwt_bearer"},
        {"spec.app": "is for credentials of type oauth2", "spec.grant": "of type oauth2"},
    ),
    "an app of nobody": (
        {"type": "oauth2_client", "values": {"client_id": ""}},
        {"spec.provider": "is required"},
    ),
    "an app with settings that are none": (
        {
            "type": "oauth2_client",
            "values": {"client_id": ""},
            "provider": "http",
            "config": {"token_ulr": "https://login.example.com/token"},
        },
        {"spec.config.token_url": "required", "spec.config.token_ulr": "token_url"},
    ),
    "tokens of no app": ({"type": "oauth2", "values": {}}, {"spec.app": "is required"}),
    "tokens of what is no app": (
        {"type": "oauth2", "values": {}, "app": "one"},
        {"spec.app": "must be a Credential of type oauth2_client or jwt_key"},
    ),
    "tokens of another provider's app": (
        {"type": "oauth2", "values": {}, "app": "app", "provider": "github"},
        {"spec.app": "another provider"},
    ),
    "a client that signs nothing": (
        {"type": "oauth2", "values": {}, "app": "app", "grant": "jwt_bearer"},
        {"spec.grant": "an app of type oauth2_client comes by no tokens this way"},
    ),
    "a key without a browser": (
        {"type": "oauth2", "values": {}, "app": "jwt-app"},
        {"spec.grant": "an app of type jwt_key comes by no tokens this way"},
    ),
    "everything at once": (
        {
            "expires": "never",
            "rotation": {"every": "1s"},
            "allowed_endpoints": ["x"],
            "allowed_ranges": ["x"],
            "provider": "nobody",
            "config": {"a": 1},
            "values": {},
        },
        {
            "spec.expires": "",
            "spec.rotation.every": "",
            "spec.rotation.overlap": "",
            "spec.allowed_endpoints[0]": "",
            "spec.allowed_ranges[0]": "",
            "spec.provider": "",
            "spec.values": "needs token",
        },
    ),
}


@pytest.mark.parametrize(("spec", "expected"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_told_at_its_field(
    spec: Mapping[str, Any], expected: Mapping[str, str]
) -> None:
    told = faults(credential("bearer", "one", **spec))
    assert told.keys() == expected.keys()
    for path, words in expected.items():
        assert words in told[path]


@pytest.mark.parametrize(
    "spec",
    [
        {"expires": "2027-01-31T00:00:00Z"},
        {"expires": "2027-01-31T00:00:00+02:00"},
        {"rotation": {"every": "86400s", "overlap": "0s"}},
        {"rotation": {"every": "315360000s", "overlap": "2592000s"}},
        {
            "allowed_endpoints": ["https://api.github.com/repos/*"],
            "allowed_ranges": ["2001:db8::/32"],
        },
        {"provider_metadata": {"livemode": True}},
        {"environment": "development", "provider_metadata": {"livemode": False}},
        {"provider": "github"},
    ],
)
def test_what_is_within_reason_is_good(spec: Mapping[str, Any]) -> None:
    assert faults(credential(**spec)) == {}


def test_what_a_provider_does_not_offer_is_told_with_what_it_does() -> None:
    app = credential("oauth2_client", "gh-app", provider="github", config={})
    one = credential("oauth2", app="gh-app", grant="client_credentials")
    told = dict(check_credential(one, known(app, one), CATALOG))
    assert told == {"spec.grant": "github offers authorization_code"}


def integration(**spec: Any) -> Complete:
    return made("Integration", "shop", **{"provider": "http", "app": "app", **spec})


def test_an_integrations_app_is_an_app_of_its_provider() -> None:
    assert list(check_app_of(integration(), known())) == []
    no_app = dict(check_app_of(integration(app="token"), known(credential("bearer", "token"))))
    assert no_app == {"spec.app": "must be a Credential of type oauth2_client or jwt_key"}
    of_github = integration(provider="github")
    assert dict(check_app_of(of_github, known())) == {"spec.app": "is an app of another provider"}


def test_an_integrations_credential_is_of_its_provider_or_of_none() -> None:
    theirs = credential("bearer", "token", provider="github")
    both = known(theirs, credential("bearer", "any"))
    wrong = list(check_provider_of(integration(credential="token"), both))
    assert wrong == [("spec.credential", "is a credential of another provider")]
    assert list(check_provider_of(integration(credential="any"), both)) == []


def connection(name: str = "account", /, **spec: Any) -> Complete:
    said = {"integration": "shop", "credential": "token", "external_account_id": "42", **spec}
    return made("Connection", name, **said)


CONNECTIONS: Final[Mapping[str, tuple[Complete, Mapping[str, Any], Mapping[str, str]]]] = {
    "good": (credential("oauth2", "token"), {}, {}),
    "a key of the account": (credential("api_key", "token"), {}, {}),
    "another provider's": (
        credential("bearer", "token", provider="github"),
        {},
        {"spec.credential": "another provider"},
    ),
    "an app": (
        credential("oauth2_client", "token"),
        {},
        {"spec.credential": "of type oauth2_client is not an account's"},
    ),
    "a webhook's secret": (
        credential("webhook_secret", "token"),
        {},
        {"spec.credential": "of type webhook_secret is not an account's"},
    ),
    "a trial": (
        credential("bearer", "token"),
        {"provider_metadata": {"livemode": False}},
        {"spec.provider_metadata.livemode": "environment production"},
    ),
}


@pytest.mark.parametrize(("token", "spec", "expected"), CONNECTIONS.values(), ids=CONNECTIONS)
def test_a_connection_goes_with_its_integration_and_credential(
    token: Complete, spec: Mapping[str, Any], expected: Mapping[str, str]
) -> None:
    one = connection(**spec)
    told = dict(check_connection(one, known(integration(), token, one)))
    assert told.keys() == expected.keys()
    for path, words in expected.items():
        assert words in told[path]


def test_an_account_has_one_connection_of_a_provider_and_app() -> None:
    first, second = connection("first"), connection("second")
    token = credential("bearer", "token")
    told = dict(check_connection(second, known(integration(), token, first, second)))
    assert told == {"spec.external_account_id": "first is of this account already"}
    for other in (
        connection("other", external_account_id="43"),
        connection("o", external_account_id=""),
    ):
        assert list(check_connection(other, known(integration(), token, first, other))) == []


def test_what_tenon_makes_is_said_of_webhook_secrets_without_values_alone() -> None:
    assert faults(credential("webhook_secret", generate="ed25519")) == {}
    said = {"values": {"secret": ""}, "generate": "hmac"}
    for one in (credential("webhook_secret", **said), credential("bearer", generate="ed25519")):
        assert set(faults(one)) == {"spec.generate"}
