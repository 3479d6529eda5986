"""The stand-in identity provider does as the standards say, to the client and to the thief."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, quote_plus, urlsplit

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.chassis.secret import Secret
from services.sandbox.faults import Fault, FaultKind
from services.sandbox.grants import Settings
from services.sandbox.identity import CODE_LIFETIME_S, Identity
from services.sandbox.oauth import JWT_BEARER
from services.sandbox.server import Box, sandbox

CALLBACK = "https://tenon.example/callback?from=sandbox"
CLIENT, SECRET = "acme app", "s3cret:with/odd+signs%"
VERIFIER = secrets.token_urlsafe(32)
CHALLENGE = base64.urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
ISSUER = "robot@acme.example"
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.body["error"]


@dataclass(frozen=True)
class App:
    """A client of the provider, as its developers write it."""

    box: Box
    http: aiohttp.ClientSession

    async def send(self, method: str, path: str, **options: Any) -> Answer:
        async with self.http.request(method, path, allow_redirects=False, **options) as answer:
            is_json = answer.content_type == "application/json"
            body = await (answer.json() if is_json else answer.text())
            return Answer(answer.status, answer.headers, body)

    async def authorize(self, **changed: str | None) -> Answer:
        asked = {
            "response_type": "code",
            "client_id": CLIENT,
            "redirect_uri": CALLBACK,
            "scope": "openid read write",
            "state": "st&te",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
            "login_hint": "acct_ada",
            **changed,
        }
        query = {name: value for name, value in asked.items() if value is not None}
        return await self.send("GET", "/oauth/authorize", params=query)

    async def code(self, **changed: str | None) -> str:
        return returned(await self.authorize(**changed))["code"]

    async def post(self, path: str, form: Any, headers: Mapping[str, str] | None = None) -> Answer:
        headers = basic(CLIENT, SECRET) if headers is None else headers
        return await self.send("POST", path, data=form, headers=headers)

    async def redeem(self, code: str, **changed: str) -> Answer:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        return await self.post("/oauth/token", {**form, "code_verifier": VERIFIER, **changed})

    async def refresh(self, token: str, **more: str) -> Answer:
        form = {"grant_type": "refresh_token", "refresh_token": token, **more}
        return await self.post("/oauth/token", form)

    async def read(self, path: str, access_token: str) -> Answer:
        return await self.send("GET", path, headers={"Authorization": f"Bearer {access_token}"})


def basic(name: str, secret: str) -> dict[str, str]:
    pair = f"{quote_plus(name)}:{quote_plus(secret)}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def returned(answer: Answer) -> dict[str, str]:
    """What came back to the redirect URI, which keeps its own query."""
    assert answer.status == 302
    location = answer.headers["Location"]
    assert location.startswith(f"{CALLBACK}&")
    return dict(parse_qsl(urlsplit(location).query))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def app(clock: Clock) -> AsyncIterator[App]:
    identity = Identity(
        client_id=CLIENT,
        client_secret=Secret(SECRET),
        settings=Settings(redirect_uris=frozenset({CALLBACK})),
        clock=clock,
    )
    async with (
        sandbox("github-token", identity=identity) as box,
        aiohttp.ClientSession(box.url) as http,
    ):
        yield App(box, http)


async def test_a_code_becomes_tokens_that_open_the_account(app: App, clock: Clock) -> None:
    back = returned(await app.authorize(nonce="n1"))
    assert (back["state"], back["iss"]) == ("st&te", app.box.url)
    given = await app.redeem(back["code"])
    assert (given.status, given.headers["Cache-Control"]) == (200, "no-store")
    plain = {name: given.body[name] for name in ("token_type", "expires_in", "scope")}
    assert plain == {"token_type": "Bearer", "expires_in": 3600, "scope": "openid read write"}
    assert (given.body["account_id"], given.body["livemode"]) == ("acct_ada", False)

    keys = jwt.PyJWKSet.from_dict((await app.send("GET", "/oauth/jwks")).body)
    kid = jwt.get_unverified_header(given.body["id_token"])["kid"]
    options: Any = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(given.body["id_token"], keys[kid].key, ["ES256"], options, audience=CLIENT)
    assert (claims["iss"], claims["sub"]) == (app.box.url, "acct_ada")
    assert (claims["iat"], claims["nonce"]) == (clock.now, "n1")

    who = await app.read("/oauth/userinfo", given.body["access_token"])
    assert who.body == {"sub": "acct_ada", "account_id": "acct_ada"}
    records = await app.read("/oauth/api/records", given.body["access_token"])
    assert {each["account_id"] for each in records.body["records"]} == {"acct_ada"}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_verifier": VERIFIER[::-1]}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_request"),
        ({"code_verifier": "short"}, "invalid_request"),
        ({"redirect_uri": "https://tenon.example/callback"}, "invalid_grant"),
        ({"code": "ac_unknown"}, "invalid_grant"),
        ({"code": ""}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "invalid_request"),
    ],
)
async def test_a_code_is_worth_nothing_without_what_belongs_to_it(
    app: App, changed: dict[str, str], error: str
) -> None:
    code = await app.code()
    refused = await app.redeem(**{"code": code, **changed})
    assert refused.error == (400, error)
    assert refused.headers["Cache-Control"] == "no-store"
    assert app.box.identity.families == []
    assert (await app.redeem(code)).status == 200


async def test_a_code_lasts_a_minute(app: App, clock: Clock) -> None:
    code = await app.code()
    clock.now += CODE_LIFETIME_S
    assert (await app.redeem(code)).error == (400, "invalid_grant")


async def test_a_code_that_comes_again_takes_back_what_it_gave(app: App) -> None:
    code = await app.code()
    given = await app.redeem(code)
    assert (await app.redeem(code)).error == (400, "invalid_grant")
    assert (await app.read("/oauth/userinfo", given.body["access_token"])).status == 401
    assert (await app.refresh(given.body["refresh_token"])).error == (400, "invalid_grant")
    assert [family.revoked for family in app.box.identity.families] == ["code_replay"]


async def test_nobody_is_sent_where_the_client_is_not_registered(app: App) -> None:
    wrong: list[dict[str, str | None]] = [
        {"client_id": "other"},
        {"redirect_uri": f"{CALLBACK}&more=1"},
        {"redirect_uri": CALLBACK.replace("https", "HTTPS")},
        {"redirect_uri": None},
    ]
    for changed in wrong:
        answer = await app.authorize(**changed)
        assert (answer.status, "Location" in answer.headers) == (400, False)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge": VERIFIER + "="}, "invalid_request"),
        ({"deny": "1"}, "access_denied"),
    ],
)
async def test_what_an_account_does_not_give_is_an_error_at_the_client(
    app: App, changed: dict[str, str | None], error: str
) -> None:
    back = returned(await app.authorize(**changed))
    assert (back["error"], back["state"], back["iss"]) == (error, "st&te", app.box.url)
    assert "code" not in back


async def test_accounts_may_all_deny(app: App) -> None:
    app.box.identity.change(deny=True)
    assert returned(await app.authorize())["error"] == "access_denied"


async def test_a_form_of_another_type_or_with_a_parameter_twice_is_refused(app: App) -> None:
    twice = [("grant_type", "client_credentials")] * 2
    assert (await app.post("/oauth/token", twice)).error == (400, "invalid_request")
    in_parts = aiohttp.FormData({"grant_type": "client_credentials"}, default_to_multipart=True)
    refused = await app.post("/oauth/token", in_parts)
    assert refused.error == (400, "invalid_request")
    assert "application/x-www-form-urlencoded" in refused.body["error_description"]
    broken = {**basic(CLIENT, SECRET), "Content-Type": "application/x-www-form-urlencoded"}
    assert (await app.post("/oauth/token", b"\xff", broken)).error == (400, "invalid_request")


async def test_a_client_says_who_it_is_in_the_header_or_in_the_form(app: App) -> None:
    form = {"grant_type": "client_credentials", "scope": "read"}
    mine = {"client_id": CLIENT, "client_secret": SECRET}
    in_header = await app.post("/oauth/token", form)
    in_form = await app.post("/oauth/token", {**form, **mine}, headers={})
    for given in (in_header, in_form):
        assert (given.status, given.body["account_id"]) == (200, CLIENT)
        assert "refresh_token" not in given.body
    assert (await app.post("/oauth/token", {**form, **mine})).error == (400, "invalid_request")
    assert [each.client_auth for each in app.box.identity.requests] == ["basic", "post", "basic"]


async def test_a_wrong_client_gets_nothing(app: App) -> None:
    form = {"grant_type": "client_credentials"}
    unescaped = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
    headers = [
        basic(CLIENT, "wrong"),
        basic("other", SECRET),
        {"Authorization": f"Basic {unescaped}"},
        {"Authorization": "Basic ?"},
        {"Authorization": f"Bearer {SECRET}"},
        {},
    ]
    for each in headers:
        refused = await app.post("/oauth/token", form, each)
        assert refused.error == (401, "invalid_client")
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    wrong = {**form, "client_id": CLIENT, "client_secret": "wrong"}
    assert (await app.post("/oauth/token", wrong, {})).error == (401, "invalid_client")
    assert (await app.post("/oauth/revoke", wrong, {})).error == (401, "invalid_client")
    assert {each.outcome for each in app.box.identity.requests} == {"invalid_client"}


async def test_a_refresh_uses_its_token_up_and_gives_the_next(app: App) -> None:
    first = (await app.redeem(await app.code())).body
    second = (await app.refresh(first["refresh_token"])).body
    third = (await app.refresh(second["refresh_token"])).body
    assert len({each["refresh_token"] for each in (first, second, third)}) == 3
    assert (await app.read("/oauth/userinfo", third["access_token"])).status == 200
    family = app.box.identity.family_of(third["refresh_token"])
    assert family is not None
    assert [each.redeemed for each in family.refresh_tokens] == [1, 1, 0]
    assert (family.replays, family.revoked) == (0, None)
    seen = [(each.grant, each.family, each.outcome) for each in app.box.identity.requests]
    grants = ("authorization_code", "refresh_token", "refresh_token")
    assert seen == [(grant, family.id, "issued") for grant in grants]


async def test_a_refresh_token_that_comes_again_ends_its_family_alone(app: App) -> None:
    identity = app.box.identity
    other = identity.issue("acct_grace", "read")
    first = identity.issue("acct_ada", "read")
    assert first.refresh_token is not None
    assert other.refresh_token is not None
    second = (await app.refresh(first.refresh_token)).body
    assert (await app.refresh(first.refresh_token)).error == (400, "invalid_grant")
    assert (await app.refresh(second["refresh_token"])).error == (400, "invalid_grant")
    assert (await app.read("/oauth/userinfo", second["access_token"])).status == 401
    told = {family.account: (family.revoked, family.replays) for family in identity.families}
    assert told == {"acct_grace": (None, 0), "acct_ada": ("replay", 1)}
    assert identity.requests[-1].family == first.family
    assert (await app.refresh(other.refresh_token)).status == 200


async def test_a_window_of_grace_lets_a_used_token_refresh_again(app: App, clock: Clock) -> None:
    app.box.identity.change(grace_s=30)
    first = app.box.identity.issue("acct_ada", "read").refresh_token
    assert first is not None
    await app.refresh(first)
    clock.now += 29
    assert (await app.refresh(first)).status == 200
    clock.now += 1
    assert (await app.refresh(first)).error == (400, "invalid_grant")
    family = app.box.identity.families[0]
    assert (family.refresh_tokens[0].redeemed, family.replays, family.revoked) == (2, 1, "replay")


async def test_without_rotation_a_refresh_token_stays(app: App) -> None:
    app.box.identity.change(rotate=False)
    token = app.box.identity.issue("acct_ada", "read").refresh_token
    assert token is not None
    answers = [await app.refresh(token) for _ in range(2)]
    assert [(each.status, "refresh_token" in each.body) for each in answers] == [(200, False)] * 2
    assert app.box.identity.families[0].refresh_tokens[0].redeemed == 2


async def test_less_may_be_granted_than_was_asked(app: App) -> None:
    app.box.identity.change(scopes=["read", "write"])
    given = (await app.redeem(await app.code())).body
    assert given["scope"] == "read write"
    assert "id_token" not in given
    less = (await app.refresh(given["refresh_token"], scope="read")).body
    assert less["scope"] == "read"
    wider = await app.refresh(less["refresh_token"], scope="read openid")
    assert wider.error == (400, "invalid_scope")
    again = (await app.refresh(less["refresh_token"])).body
    assert again["scope"] == "read write"
    back = returned(await app.authorize(scope="admin"))
    assert back["error"] == "invalid_scope"


async def test_an_access_token_ends_with_its_time(app: App, clock: Clock) -> None:
    app.box.identity.change(expires_in=10)
    token = app.box.identity.issue("acct_ada").access_token
    clock.now += 9.9
    assert (await app.read("/oauth/api/records", token)).status == 200
    clock.now += 0.1
    for path in ("/oauth/api/records", "/oauth/userinfo"):
        refused = await app.read(path, token)
        assert refused.status == 401
        assert 'error="invalid_token"' in refused.headers["WWW-Authenticate"]
    nobody = await app.send("GET", "/oauth/userinfo")
    assert (nobody.status, nobody.headers["WWW-Authenticate"]) == (401, 'Bearer realm="sandbox"')


async def test_a_provider_that_states_no_expiry_has_none(app: App, clock: Clock) -> None:
    app.box.identity.change(expires_in=None)
    given = (await app.redeem(await app.code())).body
    assert "expires_in" not in given
    clock.now += 10**8
    assert (await app.read("/oauth/userinfo", given["access_token"])).status == 200


async def test_a_revoked_token_is_dead_and_a_refresh_token_takes_its_family(app: App) -> None:
    given = app.box.identity.issue("acct_ada", "read")
    assert given.refresh_token is not None
    second = (await app.refresh(given.refresh_token)).body
    for token in (given.access_token, "rt_unknown"):
        assert (await app.post("/oauth/revoke", {"token": token})).status == 200
    assert (await app.read("/oauth/userinfo", given.access_token)).status == 401
    assert (await app.read("/oauth/userinfo", second["access_token"])).status == 200
    form = {"token": second["refresh_token"], "token_type_hint": "access_token"}
    assert (await app.post("/oauth/revoke", form)).status == 200
    assert (await app.read("/oauth/userinfo", second["access_token"])).status == 401
    assert (await app.refresh(second["refresh_token"])).error == (400, "invalid_grant")
    assert app.box.identity.families[0].revoked == "revoked"
    assert (await app.post("/oauth/revoke", {})).error == (400, "invalid_request")


async def test_an_app_that_is_removed_loses_what_its_user_gave(app: App) -> None:
    identity = app.box.identity
    kept, gone = identity.issue("acct_grace"), identity.issue("acct_ada")
    assert identity.revoke_family("acct_ada") == 1
    assert (await app.read("/oauth/userinfo", gone.access_token)).status == 401
    assert (await app.read("/oauth/userinfo", kept.access_token)).status == 200
    assert [family.revoked for family in identity.families] == [None, "admin"]


def pem(key: PrivateKey) -> str:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


async def test_an_assertion_of_a_registered_issuer_is_a_grant(app: App, clock: Clock) -> None:
    keys: dict[str, PrivateKey] = {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    good = {
        "iss": ISSUER,
        "sub": "acct_ada",
        "aud": f"{app.box.url}/oauth/token",
        "exp": clock.now + 60,
    }
    for algorithm, key in keys.items():
        app.box.identity.change(issuers={ISSUER: pem(key)})
        form = {"grant_type": JWT_BEARER, "assertion": jwt.encode(good, key, algorithm)}
        given = await app.post("/oauth/token", {**form, "scope": "read"}, headers={})
        assert (given.status, given.body["account_id"], given.body["scope"]) == (
            200,
            "acct_ada",
            "read",
        )
        assert "refresh_token" not in given.body
    wrong_client = await app.post("/oauth/token", form, basic(CLIENT, "wrong"))
    assert wrong_client.error == (401, "invalid_client")


async def test_a_bad_assertion_grants_nothing(app: App, clock: Clock) -> None:
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    app.box.identity.change(issuers={ISSUER: pem(key), "broken": "no key"})
    good: dict[str, object] = {
        "iss": ISSUER,
        "sub": "acct_ada",
        "aud": f"{app.box.url}/oauth/token",
        "exp": clock.now + 60,
    }
    wrong: list[dict[str, object]] = [
        {"aud": app.box.url},
        {"exp": clock.now},
        {"exp": "soon"},
        {"nbf": clock.now + 1},
        {"iss": "somebody else"},
        {"iss": "broken"},
    ]
    claims = [{**good, **each} for each in wrong]
    claims += [{k: v for k, v in good.items() if k != missing} for missing in good]
    assertions = [jwt.encode(each, key, "ES256") for each in claims]
    unsigned = jwt.encode(good, "", "none")
    for assertion in (*assertions, jwt.encode(good, other, "ES256"), unsigned, "no token"):
        form = {"grant_type": JWT_BEARER, "assertion": assertion}
        assert (await app.post("/oauth/token", form, {})).error == (400, "invalid_grant")
    assert app.box.identity.families == []


async def test_a_late_request_is_handled_though_its_client_has_left(app: App) -> None:
    identity = app.box.identity
    token = identity.issue("acct_ada", "read").refresh_token
    assert token is not None
    app.box.faults.add(Fault(path="/oauth/token", kind="late", delay_s=0.3))
    form = {"grant_type": "refresh_token", "refresh_token": token}
    with pytest.raises(TimeoutError):
        async with app.http.post(
            "/oauth/token",
            data=form,
            headers=basic(CLIENT, SECRET),
            timeout=aiohttp.ClientTimeout(total=0.1),
        ):
            pass
    assert list(identity.requests) == []
    async with asyncio.timeout(5):
        while not identity.requests:
            await asyncio.sleep(0.01)
    assert [each.outcome for each in identity.requests] == ["issued"]
    assert identity.families[0].refresh_tokens[0].redeemed == 1
    assert (await app.refresh(token)).error == (400, "invalid_grant")


@pytest.mark.parametrize("kind", ["reset", "truncate"])
async def test_a_refresh_whose_answer_is_lost_used_its_token_up(app: App, kind: FaultKind) -> None:
    token = app.box.identity.issue("acct_ada", "read").refresh_token
    assert token is not None
    app.box.faults.add(Fault(path="/oauth/*", kind=kind))
    with pytest.raises(aiohttp.ClientError):
        await app.refresh(token)
    assert (await app.refresh(token)).error == (400, "invalid_grant")


async def test_other_processes_steer_it_over_http(app: App) -> None:
    settings = {"expires_in": 5, "scopes": ["read"], "grace_s": 1.5}
    changed = await app.send("POST", "/__oauth", json=settings)
    assert changed.body["settings"]["redirect_uris"] == [CALLBACK]
    issued = await app.send(
        "POST", "/__oauth/issue", json={"account": "acct_ada", "scope": "read write"}
    )
    assert (issued.body["expires_in"], issued.body["scope"]) == (5, "read")
    assert (await app.refresh(issued.body["refresh_token"])).status == 200
    removed = await app.send("POST", "/__oauth/revoke", json={"account": "acct_ada"})
    assert removed.body == {"revoked": 1}
    [family] = (await app.send("GET", "/__oauth")).body["families"]
    assert (family["account"], family["revoked"]) == ("acct_ada", "admin")
    assert [each["redeemed"] for each in family["refresh_tokens"]] == [1, 0]
    for path, wrong in (
        ("/__oauth", {"grace": 1}),
        ("/__oauth", []),
        ("/__oauth/issue", {}),
        ("/__oauth/issue", {"account": "acct_ada", "scope": "write"}),
        ("/__oauth/revoke", {}),
    ):
        assert (await app.send("POST", path, json=wrong)).status == 400


async def test_the_record_shows_no_token_and_no_secret(app: App) -> None:
    code = await app.code()
    first = (await app.redeem(code)).body
    second = (await app.refresh(first["refresh_token"])).body
    mine = {"client_id": CLIENT, "client_secret": SECRET}
    await app.post("/oauth/revoke", {"token": second["access_token"], **mine}, {})
    shown = str([(await app.send("GET", path)).body for path in ("/__oauth", "/__calls")])
    shown += repr(app.box.identity.families)
    assert [call.path for call in app.box.calls].count("/oauth/token") == 2
    names = ("access_token", "refresh_token", "id_token")
    hidden = [given[name] for given in (first, second) for name in names]
    assert not [each for each in (*hidden, code, SECRET, VERIFIER) if each in shown]
