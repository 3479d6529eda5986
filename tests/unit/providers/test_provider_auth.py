"""Credentials on requests."""

from base64 import b64decode
from typing import Any, get_args

import pytest

from services.chassis.secret import Secret
from services.providers.auth import (
    CREDENTIAL_TYPES,
    Credential,
    CredentialRefused,
    auth_headers,
    credential_parts,
)
from services.providers.catalog import Catalog
from services.providers.manifest import AuthRule, AuthType

HTTP = Catalog.load().get("http")


def headers(kind: str, /, settings: Any = None, **fields: str) -> dict[str, str]:
    rule = HTTP.auth_rule(kind)
    assert rule is not None
    credential = Credential(kind, {name: Secret(value) for name, value in fields.items()})
    return auth_headers(rule, credential, settings or {})


def test_each_type_goes_where_its_rule_says() -> None:
    assert headers("none") == {}
    assert headers("bearer", token="abc") == {"authorization": "Bearer abc"}
    assert headers("api_key", key="abc") == {"x-api-key": "abc"}
    assert headers("api_key", {"api_key_header": "X-Token"}, key="abc") == {"x-token": "abc"}


def test_basic_is_utf8_in_base64() -> None:
    value = headers("basic", username="é", password="p:w")["authorization"]
    assert b64decode(value.removeprefix("Basic ")).decode() == "é:p:w"


def test_every_type_a_manifest_may_name_has_fields() -> None:
    assert {*get_args(AuthType)} - {"none"} < {*CREDENTIAL_TYPES}
    assert credential_parts("basic").needed == {"username", "password"}
    with pytest.raises(CredentialRefused, match="api_key, bearer"):
        credential_parts("oauth9")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("bearer", {}),
        ("bearer", {"key": "canary"}),
        ("bearer", {"token": "canary", "more": "canary"}),
        ("bearer", {"token": ""}),
        ("bearer", {"token": "canary\r\nHost: evil"}),
        ("bearer", {"token": "canary\n"}),
        ("bearer", {"token": " canary"}),
        ("bearer", {"token": "canary\x00"}),
        ("basic", {"username": "canary:x", "password": "y"}),
    ],
)
def test_a_wrong_credential_is_refused_and_not_repeated(kind: str, fields: dict[str, str]) -> None:
    with pytest.raises(CredentialRefused) as refused:
        headers(kind, **fields)
    assert "canary" not in str(refused.value)


def test_bytes_that_are_no_text_are_refused_and_not_carried_along() -> None:
    rule = AuthRule(type="bearer", prefix="Bearer ")
    with pytest.raises(CredentialRefused) as refused:
        auth_headers(rule, Credential("bearer", {"token": Secret(b"canary\xff")}), {})
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_credential_of_another_type_is_refused() -> None:
    with pytest.raises(CredentialRefused, match="type bearer"):
        auth_headers(AuthRule(type="bearer"), Credential(), {})


def test_a_credential_shows_nothing() -> None:
    assert "canary" not in repr(Credential("bearer", {"token": Secret("canary")}))
