"""The identity provider's endpoints, as the standards describe them, under /oauth.

/oauth/authorize      RFC 6749 §4.1.1 with PKCE (RFC 7636, S256 alone) and `iss` (RFC 9207);
                      the account `login_hint` consents at once, or refuses with `deny=1`
/oauth/token          authorization_code, refresh_token, client_credentials, JWT bearer (RFC 7523)
/oauth/revoke         RFC 7009
/oauth/userinfo       whose access token it is (RFC 6750)
/oauth/api/records    what an access token opens
/oauth/jwks           the key that signs ID tokens

The issuer is the origin that a request was sent to.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote_plus, urlencode

from aiohttp import web
from multidict import MultiMapping

from services.chassis.secret import Secret
from services.sandbox.assertions import AssertionRefused, Signer, subject
from services.sandbox.grants import ClientAuth, Consent, Family, Refused, Tokens
from services.sandbox.identity import Identity

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ACCOUNT: Final = "acct_sandbox"
_ID_TOKEN_S: Final = 300
_RECORDS: Final = 3
_FORM: Final = "application/x-www-form-urlencoded"
_PRIVATE: Final = {"Cache-Control": "no-store"}
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")

_Form = Mapping[str, str]


class OAuth:
    """The handlers, over one provider's state."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._signer = Signer()

    def routes(self) -> list[web.RouteDef]:
        """All routes; they check their callers themselves."""
        return [
            web.get("/oauth/authorize", self.authorize),
            web.post("/oauth/token", self.token),
            web.post("/oauth/revoke", self.revoke),
            web.get("/oauth/userinfo", self.userinfo),
            web.get("/oauth/api/records", self.records),
            web.get("/oauth/jwks", self.jwks),
        ]

    async def authorize(self, request: web.Request) -> web.Response:
        """GET: back to the client with a code or an error; 400 where it is not sure to be it."""
        query = request.query
        uri = query.get("redirect_uri", "")
        known = (
            query.getall("client_id", []) == [self._identity.client_id]
            and uri in self._identity.settings.redirect_uris
            and len(query.getall("redirect_uri")) == 1
        )
        if not known:
            return web.Response(text="Unknown client_id or redirect_uri.", status=400)
        try:
            answer = {"code": self._consented(_once(query))}
        except Refused as refused:
            answer = _told(refused)
        state = {"state": query["state"]} if "state" in query else {}
        told = urlencode({**answer, **state, "iss": _issuer(request)})
        where = f"{uri}{'&' if '?' in uri else '?'}{told}"
        return web.Response(status=302, headers={**_PRIVATE, "Location": where})

    async def token(self, request: web.Request) -> web.Response:
        """POST: tokens for a grant, or an error of RFC 6749 §5.2; either is noted."""
        form: _Form = {}
        try:
            form = await _posted(request)
            tokens = self._granted(request, form)
        except Refused as refused:
            self._note(request, form, refused.family, refused.error)
            return _refusal(refused)
        self._note(request, form, tokens.family, "issued")
        return self.given(request, tokens)

    async def revoke(self, request: web.Request) -> web.Response:
        """POST: 200 whether or not there was such a token."""
        try:
            form = await _posted(request)
            self._authenticate(request, form)
            self._identity.revoke_token(_required(form, "token"))
        except Refused as refused:
            return _refusal(refused)
        return web.Response(headers=_PRIVATE)

    async def userinfo(self, request: web.Request) -> web.Response:
        """GET: whose access token it is."""
        family = self._holder(request)
        if family is None:
            return _unauthorized(request)
        return web.json_response({"sub": family.account, "account_id": family.account})

    async def records(self, request: web.Request) -> web.Response:
        """GET: what only an access token opens."""
        family = self._holder(request)
        if family is None:
            return _unauthorized(request)
        records = [{"id": n, "account_id": family.account} for n in range(1, _RECORDS + 1)]
        return web.json_response({"records": records})

    async def jwks(self, _request: web.Request) -> web.Response:
        """GET: the public key as a JWK set."""
        return web.json_response(self._signer.published())

    def given(self, request: web.Request, tokens: Tokens) -> web.Response:
        """A successful answer (RFC 6749 §5.1) with what providers add to it."""
        answer = {
            "access_token": tokens.access_token,
            "token_type": "Bearer",
            "expires_in": tokens.expires_in,
            "refresh_token": tokens.refresh_token,
            "scope": tokens.scope or None,
            "id_token": self._id_token(request, tokens),
            "account_id": tokens.account,
            "livemode": False,
        }
        told = {name: value for name, value in answer.items() if value is not None}
        return web.json_response(told, headers=_PRIVATE)

    def _consented(self, query: _Form) -> str:
        if _required(query, "response_type") != "code":
            raise Refused("unsupported_response_type", "response_type must be code")
        challenge = _required(query, "code_challenge")
        if query.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(challenge):
            raise Refused("invalid_request", "code_challenge must be of the method S256")
        if query.get("deny") == "1":
            raise Refused("access_denied", "the account refused its consent")
        account, scope = query.get("login_hint", _ACCOUNT), query.get("scope", "")
        consent = Consent(account, scope, query["redirect_uri"], challenge, query.get("nonce"))
        return self._identity.consent(consent)

    def _granted(self, request: web.Request, form: _Form) -> Tokens:
        grant = _required(form, "grant_type")
        # RFC 7523 §3.1: the assertion speaks for itself.
        if grant != JWT_BEARER or _client_auth(request, form) != "none":
            self._authenticate(request, form)
        if grant not in _GRANTS:
            raise Refused("unsupported_grant_type", "there is no such grant here")
        return _GRANTS[grant](self._identity, form, f"{_issuer(request)}/oauth/token")

    def _authenticate(self, request: web.Request, form: _Form) -> None:
        """Raises Refused unless the client is who it says (RFC 6749 §2.3.1)."""
        basic = "Authorization" in request.headers
        if basic and "client_secret" in form:
            raise Refused("invalid_request", "a client authenticates in one way, not in two")
        name, secret = (
            _basic(request.headers["Authorization"])
            if basic
            else (form.get("client_id", ""), form.get("client_secret", ""))
        )
        same = form.get("client_id", name) == name == self._identity.client_id
        if not same or Secret(secret) != self._identity.client_secret:
            raise Refused("invalid_client", "the client is unknown or its secret is wrong")

    def _note(self, request: web.Request, form: _Form, family: str | None, outcome: str) -> None:
        asked = form.get("grant_type", "")
        grant = asked if asked in _GRANTS else ""
        self._identity.note(grant, _client_auth(request, form), family, outcome)

    def _holder(self, request: web.Request) -> Family | None:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        return self._identity.holder(value) if scheme.lower() == "bearer" else None

    def _id_token(self, request: web.Request, tokens: Tokens) -> str | None:
        if "openid" not in tokens.scope.split():
            return None
        now = int(self._identity.clock())
        claims: dict[str, object] = {
            "iss": _issuer(request),
            "sub": tokens.account,
            "aud": self._identity.client_id,
            "iat": now,
            "exp": now + _ID_TOKEN_S,
        }
        nonce = {} if tokens.nonce is None else {"nonce": tokens.nonce}
        return self._signer.sign({**claims, **nonce})


def _code(identity: Identity, form: _Form, _audience: str) -> Tokens:
    verifier = _required(form, "code_verifier")
    if not _VERIFIER.fullmatch(verifier):
        raise Refused("invalid_request", "code_verifier must be 43 to 128 unreserved characters")
    code, uri = _required(form, "code"), _required(form, "redirect_uri")
    return identity.redeem_code(code, uri, verifier)


def _refresh(identity: Identity, form: _Form, _audience: str) -> Tokens:
    return identity.refresh(_required(form, "refresh_token"), form.get("scope", ""))


def _client(identity: Identity, form: _Form, _audience: str) -> Tokens:
    return identity.issue(identity.client_id, form.get("scope", ""), "client_credentials")


def _assertion(identity: Identity, form: _Form, audience: str) -> Tokens:
    assertion = _required(form, "assertion")
    try:
        account = subject(assertion, identity.settings.issuers, audience, identity.clock())
    except AssertionRefused as error:
        raise Refused("invalid_grant", str(error)) from None
    return identity.issue(account, form.get("scope", ""), JWT_BEARER)


_GRANTS: Final[Mapping[str, Callable[[Identity, _Form, str], Tokens]]] = {
    "authorization_code": _code,
    "refresh_token": _refresh,
    "client_credentials": _client,
    JWT_BEARER: _assertion,
}


async def _posted(request: web.Request) -> _Form:
    if request.content_type != _FORM:
        raise Refused("invalid_request", f"the body must be {_FORM}")
    try:
        form = await request.post()
    except ValueError:
        raise Refused("invalid_request", "the body is not text") from None
    return _once(form)  # type: ignore[arg-type]  # no files in such a form


def _once(given: MultiMapping[str]) -> _Form:
    """The parameters that have a value, each of them once (RFC 6749 §3.1, §3.2)."""
    if len(given) != len(set(given)):
        raise Refused("invalid_request", "a parameter is repeated")
    return {name: value for name, value in given.items() if value}


def _required(form: _Form, name: str) -> str:
    if name not in form:
        raise Refused("invalid_request", f"{name} is missing")
    return form[name]


def _client_auth(request: web.Request, form: _Form) -> ClientAuth:
    if "Authorization" in request.headers:
        return "basic"
    return "post" if "client_secret" in form else "none"


def _basic(header: str) -> tuple[str, str]:
    """Client id and secret; both are form-urlencoded before they are joined."""
    scheme, _, value = header.partition(" ")
    try:
        name, _, secret = b64decode(value, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return (unquote_plus(name), unquote_plus(secret)) if scheme.lower() == "basic" else ("", "")


def _issuer(request: web.Request) -> str:
    return str(request.url.origin())


def _told(refused: Refused) -> dict[str, str]:
    return {"error": refused.error, "error_description": refused.description}


def _refusal(refused: Refused) -> web.Response:
    headers = dict(_PRIVATE)
    if refused.error != "invalid_client":
        return web.json_response(_told(refused), status=400, headers=headers)
    headers["WWW-Authenticate"] = 'Basic realm="sandbox", charset="UTF-8"'
    return web.json_response(_told(refused), status=401, headers=headers)


def _unauthorized(request: web.Request) -> web.Response:
    """RFC 6750 §3.1: nothing is said of a token to those who sent none."""
    wrong = ', error="invalid_token"' if "Authorization" in request.headers else ""
    challenge = f'Bearer realm="sandbox"{wrong}'
    return web.Response(status=401, headers={"WWW-Authenticate": challenge})
