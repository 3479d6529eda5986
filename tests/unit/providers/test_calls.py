"""From an integration and a call to the request that goes out."""

import json

import pytest

from services.chassis.errors import InvalidArgument
from services.chassis.secret import Secret
from services.providers.auth import Credential, CredentialRefused
from services.providers.calls import Call, CallInvalid, Integration, operation_call, request_for
from services.providers.catalog import Catalog

CATALOG = Catalog.load()
GITHUB = CATALOG.get("github")
HTTP = CATALOG.get("http")
TOKEN = Credential("bearer", {"token": Secret("canary")})
ON_GITHUB = Integration("github", config={"owner": "acme"}, credential=TOKEN)
ON_HTTP = Integration("http", "https://shop.example/api/", credential=Credential())


def test_an_operation_becomes_a_request() -> None:
    call = operation_call(
        GITHUB,
        "create_issue_comment",
        params={"repo": "shop", "issue_number": 7},
        body={"body": "é"},
        config=ON_GITHUB.config,
    )
    request = request_for(GITHUB, ON_GITHUB, call)
    assert request.method == "POST"
    assert request.url == "https://api.github.com/repos/acme/shop/issues/7/comments"
    assert request.headers == {
        "accept": "application/vnd.github+json",
        "x-github-api-version": "2022-11-28",
        "user-agent": "Tenon",
        "content-type": "application/json",
        "authorization": "Bearer canary",
    }
    assert request.body == '{"body":"é"}'.encode()
    assert "canary" not in repr((request, ON_GITHUB))


def test_an_operations_query_has_its_defaults() -> None:
    call = operation_call(GITHUB, "list_issues", params={"owner": "a", "repo": "b"})
    assert request_for(GITHUB, ON_GITHUB, call).url.endswith("/issues?state=open&per_page=100")


@pytest.mark.parametrize(
    ("name", "given", "fields"),
    [
        ("list_issues", {}, {"params.owner", "params.repo"}),
        (
            "list_issues",
            {"params": {"owner": "a", "repo": 7, "number": 1}, "query": {"stat": "x"}},
            {"params.repo", "params.number", "query.stat"},
        ),
        ("get_authenticated_user", {"body": {}}, {"body"}),
        (
            "create_issue_comment",
            {"params": {"owner": "a", "repo": "b", "issue_number": "canary"}},
            {"params.issue_number", "body"},
        ),
    ],
)
def test_a_wrong_operation_says_all_at_once(
    name: str, given: dict[str, dict[str, object]], fields: set[str]
) -> None:
    with pytest.raises(CallInvalid) as refused:
        operation_call(GITHUB, name, **given)
    assert {each.field for each in refused.value.violations} == fields
    assert "canary" not in str(refused.value)


def test_an_unknown_operation_comes_with_the_nearest() -> None:
    with pytest.raises(CallInvalid, match="did you mean list_issues"):
        operation_call(GITHUB, "list_issue")


def test_a_call_by_method_and_path() -> None:
    call = Call(
        "post",
        "/orders/{id}/",
        {"id": "a b"},
        {"x": ["1", 2.0, None], "on": True, "gone": None, "q": "a&b"},
        {"Accept": "text/csv", "X-Trace": "1"},
        [1, None],
    )
    request = request_for(HTTP, ON_HTTP, call)
    assert (request.method, request.url) == (
        "POST",
        "https://shop.example/api/orders/a%20b/?x=1&x=2&on=true&q=a%26b",
    )
    assert request.headers["accept"] == "text/csv"
    assert json.loads(request.body or b"") == [1, None]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer canary"},
        {"HOST": "canary"},
        {"X-api-KEY": "canary"},
        {"Cookie": "canary"},
        {"Content-Length": "1"},
        {"X-A\r\nHost": "canary"},
        {"X-A": "canary\r\nHost: evil"},
        {"X-A": "canary\x00"},
        {"X A": "canary"},
        {"": "canary"},
        {"X-A": 7},
    ],
)
def test_headers_a_call_may_not_set(headers: dict[str, str]) -> None:
    with pytest.raises(CallInvalid) as refused:
        request_for(HTTP, ON_HTTP, Call("GET", "/", headers=headers))
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "call",
    [
        Call("TRACE", "/"),
        Call("CONNECT", "/"),
        Call("GET /x HTTP/1.1\r\n", "/"),
        Call("GET", "//evil.example"),
        Call("GET", "/", query={"x": {"canary": 1}}),
        Call("POST", "/", body=float("nan")),
        Call("POST", "/", body={"x": object()}),
        Call("POST", "/", body="\ud800"),
    ],
)
def test_calls_that_are_not_made(call: Call) -> None:
    with pytest.raises(InvalidArgument) as refused:
        request_for(HTTP, ON_HTTP, call)
    assert "canary" not in str(refused.value)


def test_the_base_url_is_checked_each_time() -> None:
    for url in (None, "http://shop.example", "https://u:canary@shop.example"):
        with pytest.raises(CallInvalid) as refused:
            request_for(HTTP, Integration("http", url), Call("GET", "/"))
        assert "canary" not in str(refused.value)


def test_a_provider_gets_only_the_types_it_takes() -> None:
    with pytest.raises(CredentialRefused, match="github takes a credential of type: bearer"):
        request_for(GITHUB, Integration("github"), Call("GET", "/user"))
