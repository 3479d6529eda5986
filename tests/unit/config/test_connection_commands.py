"""`connections`: how accounts are looked at, connected and disconnected."""

import json

import pytest
from tenon.registry.v1 import connection_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2

from tests.unit.config.conftest import Registry, Tenon

NAME = "tenants/acme/connections/crm-berlin"
URL = "https://provider.example/authorize?client_id=a&state=" + "s" * 200
ASKED = (
    *("--connection", "crm-berlin", "--venue", "berlin", "--user", "u-7"),
    *("--scope", "read", "--scope", "write", "--return-url", "https://app.example/done"),
)


def connection() -> pb2.Connection:
    one = pb2.Connection(
        name=NAME,
        uid="n-1",
        status=credential_service_pb2.Credential.STATUS_EXPIRED,
        status_reason="it has ended",
        provider="hubspot",
    )
    spec = one.spec
    spec.integration, spec.credential, spec.venue, spec.user = "crm", "crm-token", "berlin", "u-7"
    spec.external_account_id = "account-42"
    spec.scopes.extend(["read", "write"])
    spec.provider_metadata["region"] = "eu"
    return one


def test_the_list_says_whose_each_is_and_how_it_stands(tenon: Tenon, registry: Registry) -> None:
    registry.answer(
        "ListConnections",
        pb2.ListConnectionsResponse(connections=[connection()], next_page_token="more"),
        pb2.ListConnectionsResponse(),
    )
    only = ("--integration", "crm", "--venue", "berlin", "--user", "u-7")
    said = tenon("connections", "list", "acme", *only)
    assert said.code == 0
    assert "crm-berlin crm hubspot account-42 berlin u-7 expired" in said.words
    for request in registry.requests("ListConnections"):
        assert (request.integration, request.venue, request.user) == ("crm", "berlin", "u-7")
        assert request.parent == "tenants/acme"


def test_links_are_listed_and_taken_back(tenon: Tenon, registry: Registry) -> None:
    link = pb2.ConnectLink(
        name="tenants/acme/connectLinks/018f-1", integration="crm", user="u-7", creator="Ada"
    )
    link.expire_time.FromJsonString("2026-05-02T08:30:00Z")
    registry.answer("ListConnectLinks", pb2.ListConnectLinksResponse(connect_links=[link]))
    said = tenon("connections", "links", "acme")
    assert "018f-1 crm u-7 Ada 2026-05-02 08:30" in said.words
    registry.answer("RevokeConnectLink", link)
    assert tenon("connections", "unlink", "acme", "018f-1").code == 0
    (asked,) = registry.requests("RevokeConnectLink")
    assert asked.name == "tenants/acme/connectLinks/018f-1"


def test_one_is_shown_with_all_that_is_known(tenon: Tenon, registry: Registry) -> None:
    registry.answer("GetConnection", connection())
    said = tenon("connections", "show", "acme", "crm-berlin")
    for fact in (
        f"connection {NAME}",
        "provider hubspot",
        "status expired: it has ended",
        "credential crm-token",
        "external account id account-42",
        "scopes read, write",
        "provider metadata region eu",
    ):
        assert fact in said.words, fact
    assert registry.request.name == NAME
    said = tenon("connections", "show", "acme", "crm-berlin", "--output", "json")
    assert json.loads(said.out)[0]["spec"]["integration"] == "crm"


def test_one_ends_with_a_reason(tenon: Tenon, registry: Registry) -> None:
    registry.answer("Disconnect", connection())
    disconnect = ("connections", "disconnect", "acme", "crm-berlin")
    assert tenon(*disconnect).code == 2 and registry.asked == []
    assert tenon(*disconnect, "--why", "they left").code == 0
    assert (registry.request.name, registry.request.reason) == (NAME, "they left")
    assert registry.request.request_id


def test_a_links_address_is_all_of_standard_output(tenon: Tenon, registry: Registry) -> None:
    made = pb2.ConnectLink(url=URL)
    made.expire_time.FromJsonString("2026-05-02T08:30:00Z")
    registry.answer("CreateConnectLink", made)
    said = tenon("connections", "link", "acme", "crm", *ASKED, "--expires-in", "2d")
    assert (said.code, said.out) == (0, f"{URL}\n")
    assert "until 2026-05-02 08:30 UTC" in said.err and URL not in said.err
    wanted = pb2.CreateConnectLinkRequest(
        integration="tenants/acme/integrations/crm",
        connection="crm-berlin",
        venue="berlin",
        user="u-7",
        scopes=["read", "write"],
        return_url="https://app.example/done",
    )
    wanted.ttl.seconds = 2 * 86_400
    assert registry.request == wanted


def test_what_is_not_said_is_left_to_the_registry(tenon: Tenon, registry: Registry) -> None:
    registry.answer("CreateConnectLink", pb2.ConnectLink(url=URL))
    said = tenon("connections", "link", "acme", "crm", "--output", "json")
    assert json.loads(said.out) == [{"url": URL}]
    assert registry.request == pb2.CreateConnectLinkRequest(
        integration="tenants/acme/integrations/crm"
    )


@pytest.mark.parametrize("output", ["table", "json"])
def test_where_the_owner_is_sent_is_said_with_the_state(
    tenon: Tenon, registry: Registry, output: str
) -> None:
    begun = pb2.BeginOAuthResponse(authorization_url=URL, state="st-1")
    registry.answer("BeginOAuth", begun)
    more = ("--login-hint", "ada@acme.example", "--redirect-url", "https://app.example/back")
    said = tenon("connections", "begin", "acme", "crm", *ASKED, *more, "--output", output)
    assert said.code == 0 and URL not in said.err
    if output == "json":
        assert json.loads(said.out) == [{"authorization_url": URL, "state": "st-1"}]
    else:
        assert said.out == f"{URL}\nst-1\n"
    assert (registry.request.integration, registry.request.connection) == (
        "tenants/acme/integrations/crm",
        "crm-berlin",
    )
    assert (registry.request.login_hint, registry.request.redirect_url) == (more[1], more[3])


@pytest.mark.parametrize("days", ["soon", "1w", "99999999999999d"])
def test_a_stretch_of_time_has_a_unit_and_a_sensible_length(
    tenon: Tenon, registry: Registry, days: str
) -> None:
    said = tenon("connections", "link", "acme", "crm", "--expires-in", days)
    assert said.code == 2 and "such as 90d" in said.err and registry.asked == []
