"""A call never leaves its integration's base URL, whatever its path says."""

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from services.providers.urls import (
    UnsafePath,
    base_url_problem,
    expand_path,
    join,
    require_within,
)

BASE = "https://api.example.com/v1"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "user",
        "@evil.example",
        "//evil.example/x",
        "/\\evil.example",
        "\\\\evil.example",
        "https://evil.example/x",
        "/a//b",
        "/..",
        "/../admin",
        "/a/../../admin",
        "/a/./b",
        "/..%2fadmin",
        "/%2e%2e/admin",
        "/%2E%2e%2Fadmin",
        "/%252e%252e/admin",
        "/%25252e%25252e/admin",
        "/%5cevil",
        "/%2f%2fevil.example",
        "/..;/admin",
        "/..;x=y/admin",
        "/a?x=1",
        "/a#x",
        "/a\r\nHost: evil",
        "/a%0d%0ax",
        "/a%00",
        "/%",
        "/%zz",
        "/{Unknown}",
        "/{missing}",
        "/\ud800",
    ],
)
def test_a_path_that_would_leave_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        join(BASE, expand_path(path, {}))


@pytest.mark.parametrize(
    "value",
    [".", "..", "../x", "a/../../x", "", "a//b", "\\", "a\n", "%2e%2e", "..;", None, ["x"], {}],
)
def test_a_value_that_would_climb_is_refused(value: object) -> None:
    with pytest.raises(UnsafePath):
        expand_path("/repos/{owner}", {"owner": value})


@pytest.mark.parametrize(
    ("template", "params", "path"),
    [
        ("/", {}, "/"),
        ("/user", {"other": "x"}, "/user"),
        ("/issues/{n}", {"n": 7}, "/issues/7"),
        ("/issues/{n}", {"n": 7.0}, "/issues/7"),
        ("/v/{n}", {"n": 1.5}, "/v/1.5"),
        ("/flags/{on}", {"on": True}, "/flags/true"),
        ("/projects/{id}/x/", {"id": "group/project"}, "/projects/group%2Fproject/x/"),
        ("/q/{q}", {"q": "a b?c#d&é"}, "/q/a%20b%3Fc%23d%26%C3%A9"),
        ("/q/{q}", {"q": "100%"}, "/q/100%25"),
        ("/sp ace/é", {}, "/sp%20ace/%C3%A9"),
        ("/a%20b/@me/x:y", {}, "/a%20b/@me/x:y"),
    ],
)
def test_paths_that_stay(template: str, params: dict[str, object], path: str) -> None:
    assert expand_path(template, params) == path
    assert join(BASE, path) == BASE + path


@given(st.text(), st.one_of(st.text(), st.sampled_from(["..", "%2e", "%2f", "/", "\\", ";", "@"])))
def test_no_text_leaves(path: str, value: str) -> None:
    try:
        url = join(BASE, expand_path("/" + path, {"x": value}))
    except UnsafePath:
        return
    seen = URL(unquote(url))
    assert (seen.scheme, seen.host, seen.explicit_port) == ("https", "api.example.com", None)
    assert seen.path.startswith("/v1")
    assert ".." not in urlsplit(unquote(unquote(url))).path.split("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1/x",
        "https://api.example.com:444/v1/x",
        "https://api.example.com.evil.example/v1/x",
        "https://api.example.com@evil.example/v1/x",
        "https://user:pass@api.example.com/v1/x",
        "https://evil.example/v1/x",
        "https://api.example.com/v10/x",
        "https://api.example.com/v1/../admin",
        "https://api.example.com/v1\\@evil.example",
        "https://[::1/v1/x",
        "/v1/x",
    ],
)
def test_an_address_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(UnsafePath):
        require_within(BASE, url)


def test_an_address_below_the_base_stays_as_it_is() -> None:
    for url in (f"{BASE}/x?page=2&q=..", "https://API.example.com:443/v1/x", BASE):
        assert require_within(BASE, url) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://github.example.com/api/v3",
        "https://github.example.com:8443/",
        "http://127.0.0.1:8080",
        "http://[::1]:8080/x",
        "http://localhost",
    ],
)
def test_base_urls_to_use(url: str) -> None:
    assert base_url_problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.example.com",
        "ftp://github.example.com",
        "http://github.example.com",
        "https://user:canary@github.example.com",
        "https://@github.example.com",
        "https://github.example.com?token=canary",
        "https://github.example.com/#canary",
        "https://github.example.com/a/../b",
        "https://github.example.com\\x",
        "https://github.exämple.com",
        "https://github.example.com:99999",
        "https://[::1",
        "https://",
    ],
)
def test_base_urls_to_refuse_without_repeating_them(url: str) -> None:
    problem = base_url_problem(url)
    assert problem
    assert "canary" not in problem
