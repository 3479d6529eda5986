"""What goes to OAuth 2.0 endpoints, and what is read out of their answers."""

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.egress import Request, Response
from services.chassis.errors import TenonError
from services.chassis.secret import Secret
from services.providers import oauth2
from services.providers.catalog import Catalog
from services.providers.manifest import OAuth2
from services.providers.oauth2 import AnswerUnclear, App, NotOAuth, TokensRefused

TOKEN_URL: Final = "https://login.example.com/token"
# Whatever a form or a header treats in its own way.
RESERVED: Final = "a:b/c+d e%f&g=hä"
CANARY: Final = "very-secret-canary"
JSON: Final = {"content-type": "application/json; charset=utf-8"}
FORM: Final = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}


def spec(**said: Any) -> OAuth2:
    urls = {"authorization_url": "https://login.example.com/authorize", "token_url": TOKEN_URL}
    return OAuth2(**{**urls, **said})


def app(of: OAuth2 | None = None, **settings: Any) -> App:
    return App(of or spec(), settings, f"id-{RESERVED}", Secret(f"secret-{RESERVED}"))


def form_of(request: Request) -> dict[str, str]:
    return dict(parse_qsl((request.body or b"").decode(), strict_parsing=True))


def answered(words: Any, status: int = 200, headers: Mapping[str, str] = JSON) -> Response:
    body = words if isinstance(words, bytes) else json.dumps(words).encode()
    return Response(status, dict(headers), body)


def given_for(words: Any, of: OAuth2 | None = None, **more: Any) -> oauth2.Tokens:
    return oauth2.tokens_of(app(of), answered(words, **more))


def test_both_halves_of_basic_are_form_encoded_before_they_are_joined() -> None:
    form = oauth2.refresh_form(Secret(RESERVED))
    request = oauth2.token_request(app(), form)
    kind, _, pair = request.headers["authorization"].partition(" ")
    halves = b64decode(pair).decode().split(":")
    assert (kind, [unquote_plus(each) for each in halves]) == (
        "Basic",
        [f"id-{RESERVED}", f"secret-{RESERVED}"],
    )
    assert form_of(request) == {"grant_type": "refresh_token", "refresh_token": RESERVED}
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert (request.method, request.url) == ("POST", TOKEN_URL)


def test_an_app_that_posts_has_its_credential_in_the_form() -> None:
    request = oauth2.token_request(app(spec(client_auth="post")), {"grant_type": "x"})
    assert "authorization" not in request.headers
    assert form_of(request) == {
        "grant_type": "x",
        "client_id": f"id-{RESERVED}",
        "client_secret": f"secret-{RESERVED}",
    }


def test_a_public_app_says_its_id_alone_and_a_key_nothing() -> None:
    public = oauth2.token_request(App(spec(), {}, "public"), {"grant_type": "x"})
    assert (form_of(public)["client_id"], "authorization" in public.headers) == ("public", False)
    assert form_of(oauth2.token_request(App(spec(), {}), {"grant_type": "x"})) == {
        "grant_type": "x"
    }


def test_a_code_goes_with_its_verifier_and_where_it_was_sent() -> None:
    form = oauth2.code_form(Secret("the-code"), "https://us.example/callback?x=1&y", Secret("v"))
    assert form_of(oauth2.token_request(app(), form)) == {
        "grant_type": "authorization_code",
        "code": "the-code",
        "redirect_uri": "https://us.example/callback?x=1&y",
        "code_verifier": "v",
    }


def test_scopes_are_joined_as_the_provider_wants_them() -> None:
    commas = app(spec(scope_separator=","))
    assert oauth2.client_form(commas, ("read", "write")) == {
        "grant_type": "client_credentials",
        "scope": "read,write",
    }
    assert oauth2.client_form(commas, ()) == {"grant_type": "client_credentials"}
    assert oauth2.assertion_form(app(), Secret("signed"), ("read", "write")) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": "signed",
        "scope": "read write",
    }


def test_the_challenge_is_the_standards_own_example() -> None:
    # RFC 7636, appendix B.
    verifier = Secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert oauth2.challenge(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_an_owner_is_sent_with_all_that_is_asked_and_nothing_that_is_not() -> None:
    of = spec(authorize_params={"access_type": "offline", "state": "not-ours"})
    where = {"redirect_uri": "https://us.example/c", "challenge": "ch", "state": "the state/&"}
    url = oauth2.authorization_url(app(of), scopes=("a", "b"), hint="", **where)
    assert parse_qs(urlsplit(url).query, strict_parsing=True) == {
        "access_type": ["offline"],
        "response_type": ["code"],
        "client_id": [f"id-{RESERVED}"],
        "redirect_uri": ["https://us.example/c"],
        "scope": ["a b"],
        # What a manifest adds does not take the place of what guards the flow.
        "state": ["the state/&"],
        "code_challenge": ["ch"],
        "code_challenge_method": ["S256"],
    }
    hinted = oauth2.authorization_url(app(of), scopes=(), hint="ada@example.com", **where)
    assert "login_hint=ada%40example.com" in hinted and "scope=" not in hinted


def test_taking_back_names_the_token_and_its_sort() -> None:
    of = spec(revocation_url="https://login.example.com/revoke")
    request = oauth2.revocation_request(app(of), Secret("tok"), "refresh_token")
    assert request.url == "https://login.example.com/revoke"
    assert form_of(request) == {"token": "tok", "token_type_hint": "refresh_token"}
    with pytest.raises(NotOAuth, match="needs the setting for this endpoint"):
        oauth2.revocation_request(app(), Secret("tok"), "refresh_token")


ENDPOINTS: Final = spec(
    authorization_url="{authorization_url}",
    token_url="{token_url}",
    config={name: {"description": "x"} for name in ("authorization_url", "token_url")},
)


def test_a_setting_that_is_missing_is_named() -> None:
    with pytest.raises(NotOAuth, match="needs the setting token_url"):
        oauth2.token_request(app(ENDPOINTS), {})


@pytest.mark.parametrize(
    "url",
    [
        f"http://login.example.com/{CANARY}",
        f"ftp://login.example.com/{CANARY}",
        f"https://user:{CANARY}@login.example.com/",
        f"https://login.example.com/\r\n{CANARY}",
        f"https://login.example.com/?{CANARY}#x",
        CANARY,
    ],
)
def test_an_endpoint_is_an_https_url_and_no_fault_repeats_it(url: str) -> None:
    with pytest.raises(NotOAuth, match="an endpoint of the app") as caught:
        oauth2.token_request(app(ENDPOINTS, token_url=url), {})
    assert CANARY not in str(caught.value)


def test_only_the_machine_itself_may_be_asked_without_tls() -> None:
    request = oauth2.token_request(app(ENDPOINTS, token_url="http://127.0.0.1:9/token"), {})
    assert request.url == "http://127.0.0.1:9/token"


def test_an_answer_by_the_standard() -> None:
    tokens = given_for(
        {
            "access_token": "at",
            "token_type": "Bearer",
            "refresh_token": "rt",
            "id_token": "it",
            "expires_in": 3600,
            "refresh_token_expires_in": "86400",
            "scope": "read write",
        }
    )
    assert {name: value.reveal_text() for name, value in tokens.values().items()} == {
        "access_token": "at",
        "refresh_token": "rt",
        "id_token": "it",
    }
    assert (tokens.expires_in_s, tokens.refresh_expires_in_s) == (3600.0, 86400.0)
    assert tokens.scopes == ("read", "write")


def test_what_is_not_said_is_not_made_up() -> None:
    tokens = given_for({"access_token": "at", "refresh_token": "", "id_token": None, "scope": " "})
    assert tokens.values().keys() == {"access_token"}
    assert (tokens.expires_in_s, tokens.refresh_expires_in_s, tokens.scopes) == (None, None, None)


def test_githubs_answer_in_a_forms_words() -> None:
    github = Catalog.load().get("github").oauth2
    body = b"access_token=gho_1%2B2&scope=repo%2Cgist&token_type=bearer&expires_in=28800"
    tokens = given_for(body, github, headers=FORM)
    assert tokens.access_token.reveal_text() == "gho_1+2"
    assert (tokens.scopes, tokens.expires_in_s) == (("repo", "gist"), 28800.0)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"error": "bad_refresh_token", "error_description": "very-secret-canary"}', JSON),
        (b"error=bad_refresh_token&error_description=very-secret-canary", FORM),
    ],
)
def test_githubs_refusal_comes_with_status_200(body: bytes, headers: Mapping[str, str]) -> None:
    with pytest.raises(TokensRefused, match="bad_refresh_token") as caught:
        given_for(body, headers=headers)
    assert caught.value.is_final and CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        ("invalid_grant", True),
        ("token_revoked", True),
        ("invalid_client", False),
        ("temporarily_unavailable", False),
    ],
)
def test_only_what_is_dead_is_final(error: str, final: bool) -> None:
    with pytest.raises(TokensRefused) as caught:
        given_for({"error": error}, status=400)
    assert (caught.value.error, caught.value.is_final) == (error, final)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, TokensRefused),
        (401, TokensRefused),
        (404, TokensRefused),
        (408, AnswerUnclear),
        (425, AnswerUnclear),
        (429, AnswerUnclear),
        (500, AnswerUnclear),
        (503, AnswerUnclear),
    ],
)
def test_an_error_without_a_code_counts_by_its_status(status: int, kind: type[TenonError]) -> None:
    for body in (b"", b"<html>very-secret-canary</html>"):
        with pytest.raises(kind, match=f"status {status}") as caught:
            given_for(body, status=status)
        assert not getattr(caught.value, "is_final", False) and CANARY not in str(caught.value)


def test_a_server_that_failed_has_refused_nothing_whatever_code_it_gives() -> None:
    for status in (429, 500, 503):
        with pytest.raises(AnswerUnclear, match=f"status {status}"):
            given_for({"error": "invalid_grant"}, status=status)


def test_a_code_that_is_no_code_is_not_repeated() -> None:
    for error in (f"{CANARY}\n", f"{CANARY}" * 20, f'"{CANARY}"', f"ä{CANARY}"):
        with pytest.raises(TokensRefused, match="an error without a name") as caught:
            given_for({"error": error}, status=400)
        assert CANARY not in repr(caught.value)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (3600, 3600.0),
        ("3600", 3600.0),
        (" 3600 ", 3600.0),
        (0.5, 0.5),
        (0, 0.0),
        (-1, None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        (None, None),
        (True, None),
        ([3600], None),
        (1e300, oauth2.LONGEST_LIFE_S),
        (10**400, None),
        ("9" * 400, None),
    ],
)
def test_durations_are_read_however_they_are_written(said: Any, seconds: float | None) -> None:
    assert given_for({"access_token": "at", "expires_in": said}).expires_in_s == seconds


def test_a_token_that_is_no_text_is_no_token() -> None:
    for token in ("\ud800", "at\udfff", "at\0", 1, True, ["at"], {"at": 1}, ""):
        with pytest.raises(AnswerUnclear, match="no access token"):
            given_for({"access_token": token})
    halves = given_for({"access_token": "at", "refresh_token": "\ud800", "scope": "a \ud800"})
    assert halves.values().keys() == {"access_token"} and halves.scopes is None


def test_what_no_row_can_keep_costs_no_tokens() -> None:
    of = spec(account="id", metadata={"name": "name", "most": "most", "live": "live"})
    words = {"access_token": "at", "refresh_token": "rt", "scope": "read\0", "id": "acct\0"}
    tokens = given_for({**words, "name": "Ac\0me", "most": 1e300, "live": True}, of)
    assert tokens.values().keys() == {"access_token", "refresh_token"}
    assert (tokens.scopes, tokens.account) == (None, "")
    assert tokens.metadata == {"most": 1e300, "live": True}
    body = b'{"access_token": "at", "most": 1e999}'
    answer = Response(200, {"content-type": "application/json"}, body)
    assert oauth2.tokens_of(app(of), answer).metadata == {}


def test_account_and_metadata_are_found_by_their_paths() -> None:
    of = spec(
        account="team.id",
        metadata={"name": "team.name", "live": "livemode", "plan": "team.plan", "raw": "team"},
    )
    words = {"access_token": "at", "team": {"id": 42, "name": "Acme"}, "livemode": False}
    tokens = given_for(words, of)
    assert (tokens.account, tokens.metadata) == ("42", {"name": "Acme", "live": False})
    for team in ({"id": True}, {"id": {"id": 1}}, {"id": "\ud800"}, "x", None):
        assert given_for({"access_token": "at", "team": team}, of).account == ""
    assert len(given_for({"access_token": "at", "team": {"id": "x" * 999}}, of).account) == 255


def test_tokens_do_not_show() -> None:
    tokens = given_for({"access_token": CANARY, "refresh_token": CANARY, "id_token": CANARY})
    assert CANARY not in f"{tokens!r} {tokens} {app()!r}"
    request = oauth2.token_request(app(), oauth2.refresh_form(Secret(CANARY)))
    assert CANARY not in repr(request)


ANY_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["access_token", "refresh_token", "error", "expires_in", "scope", "account_id"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)


@given(
    words=ANY_JSON.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=60),
    tail=st.sampled_from([b"", CANARY.encode(), b"\xff\xfe"]),
    status=st.integers(200, 599),
    headers=st.sampled_from([JSON, FORM, {"content-type": "text/html"}, {}]),
)
def test_whatever_is_answered_is_tokens_or_an_error_of_ours_that_repeats_nothing(
    words: bytes, tail: bytes, status: int, headers: Mapping[str, str]
) -> None:
    told = outcome(words + tail, status=status, headers=headers)
    if isinstance(told, oauth2.Tokens):
        assert status < 400 and told.access_token.reveal()
        assert told.expires_in_s is None or 0 <= told.expires_in_s <= oauth2.LONGEST_LIFE_S
    else:
        # A code of the standard's form is the one thing that is repeated.
        code = told.error if isinstance(told, TokensRefused) else ""
        shown = f"{told!r} {told.message} {told.__cause__!r} {told.__context__!r}"
        assert CANARY not in shown.replace(code, "") if code else CANARY not in shown


def outcome(words: bytes, **more: Any) -> oauth2.Tokens | TenonError:
    """Tokens, or the one error of ours."""
    try:
        return given_for(words, Catalog.load().get("http").oauth2, **more)
    except (TokensRefused, AnswerUnclear) as error:
        return error
