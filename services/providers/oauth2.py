"""What goes to a provider's OAuth 2.0 endpoints, and what their answers mean: no input, no output.

Sources: RFC 6749 (the framework), RFC 7636 (PKCE), RFC 7009 (revocation), RFC 7523 (JWT bearer
grants), RFC 8414 (names of endpoints).
"""

import hashlib
import json
import math
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard
from urllib.parse import parse_qsl, quote_plus, urlencode

from services.chassis import strict_json
from services.chassis.egress import Request, Response
from services.chassis.endpoint_limits import Only
from services.chassis.errors import FailedPrecondition, Unavailable
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.providers.bodies import at
from services.providers.manifest import OAuth2, with_defaults
from services.providers.urls import base_url_problem

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LONGEST_LIFE_S: Final = 400 * 86_400.0
_SETTING: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_ERROR: Final = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]{1,100}")
_ASK_AGAIN: Final = frozenset({408, 425, 429})
_UNKEEPABLE: Final = re.compile(r"[\x00\ud800-\udfff]")
_FORM: Final = {
    "accept": "application/json",
    "content-type": "application/x-www-form-urlencoded",
    "user-agent": "Tenon",
}

DEAD: Final = frozenset(
    {"invalid_grant", "bad_refresh_token", "token_revoked", "invalid_refresh_token"}
)
"""Errors after which a refresh token serves no more; all but the first are providers' own words."""


class TokensRefused(FailedPrecondition):
    """The provider answered, and gave no tokens; `error` is its own code for why.

    `is_final`: the grant is used up or taken back, and the same request never works again.
    """

    reason = "TOKENS_REFUSED"

    def __init__(self, error: str) -> None:
        super().__init__(f"the provider gave no tokens: {error}")
        self.error = error
        self.is_final = error in DEAD


class AnswerUnclear(Unavailable):
    """The provider answered with something that tells neither yes nor no."""

    reason = "ANSWER_UNCLEAR"


class NotOAuth(FailedPrecondition):
    """An app whose endpoints cannot be called as they are; the message names the setting."""

    reason = "OAUTH_NOT_CONFIGURED"


@dataclass(frozen=True, slots=True)
class App:
    """An app that a provider gives tokens to: the manifest's words, its settings, its client.

    `only` limits where its client's values may be sent; None is no limit.
    """

    spec: OAuth2
    settings: Mapping[str, Any]
    client_id: str = ""
    client_secret: Secret | None = None
    only: Only | None = None

    def url(self, template: str) -> str:
        """An endpoint's URL. Raises NotOAuth where a setting is missing or makes no good URL."""
        settings = with_defaults(self.spec.config, self.settings)
        missing = sorted(set(_SETTING.findall(template)) - settings.keys())
        if missing or not template:
            raise NotOAuth(f"the app needs the setting {', '.join(missing) or 'for this endpoint'}")
        url = _SETTING.sub(lambda found: str(settings[found[1]]), template)
        if problem := base_url_problem(url):
            raise NotOAuth(f"an endpoint of the app {problem}")
        return url


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a provider gave; durations in seconds, None where it does not say."""

    access_token: Secret = field(repr=False)
    refresh_token: Secret | None = field(default=None, repr=False)
    id_token: Secret | None = field(default=None, repr=False)
    expires_in_s: float | None = None
    refresh_expires_in_s: float | None = None
    scopes: tuple[str, ...] | None = None
    account: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Secret]:
        """The secret parts, as a credential keeps them."""
        parts = {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "id_token": self.id_token,
        }
        return {name: value for name, value in parts.items() if value is not None}


def challenge(verifier: Secret) -> str:
    """The S256 code challenge of a verifier (RFC 7636, section 4.2)."""
    digest = hashlib.sha256(verifier.reveal()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def authorization_url(
    app: App, *, redirect_uri: str, scopes: tuple[str, ...], state: str, challenge: str, hint: str
) -> str:
    """Where an account's owner is sent (RFC 6749, section 4.1.1)."""
    asked = {
        **app.spec.authorize_params,
        "response_type": "code",
        "client_id": app.client_id,
        "redirect_uri": redirect_uri,
        "scope": app.spec.scope_separator.join(scopes),
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "login_hint": hint,
    }
    given = {name: value for name, value in asked.items() if value}
    return f"{app.url(app.spec.authorization_url)}?{urlencode(given)}"


def code_form(code: Secret, redirect_uri: str, verifier: Secret) -> dict[str, str]:
    """A code and its verifier for tokens (RFC 6749, section 4.1.3)."""
    return {
        "grant_type": "authorization_code",
        "code": code.reveal_text(),
        "redirect_uri": redirect_uri,
        "code_verifier": verifier.reveal_text(),
    }


def refresh_form(refresh_token: Secret) -> dict[str, str]:
    """A refresh token for new tokens (RFC 6749, section 6)."""
    return {"grant_type": "refresh_token", "refresh_token": refresh_token.reveal_text()}


def client_form(app: App, scopes: tuple[str, ...]) -> dict[str, str]:
    """The app for itself (RFC 6749, section 4.4.2)."""
    scope = app.spec.scope_separator.join(scopes)
    return {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})


def assertion_form(app: App, assertion: Secret, scopes: tuple[str, ...]) -> dict[str, str]:
    """A signed assertion for tokens (RFC 7523, section 2.1)."""
    scope = app.spec.scope_separator.join(scopes)
    words = {"grant_type": JWT_BEARER, "assertion": assertion.reveal_text()}
    return words | ({"scope": scope} if scope else {})


def token_request(app: App, form: Mapping[str, str]) -> Request:
    """A request to the token endpoint, with the app's own credential on it."""
    return _request(app, app.spec.token_url, form)


def revocation_request(app: App, token: Secret, hint: str) -> Request:
    """A request that takes a token back (RFC 7009, section 2.1)."""
    form = {"token": token.reveal_text(), "token_type_hint": hint}
    return _request(app, app.spec.revocation_url, form)


def _request(app: App, template: str, form: Mapping[str, str]) -> Request:
    headers, words = dict(_FORM), dict(form)
    if app.client_secret is not None and app.spec.client_auth == "basic":
        # Both halves are form-urlencoded before they are joined (RFC 6749, section 2.3.1).
        halves = (app.client_id, app.client_secret.reveal_text())
        pair = ":".join(map(quote_plus, halves)).encode()
        headers["authorization"] = f"Basic {b64encode(pair).decode()}"
    elif app.client_id:
        words["client_id"] = app.client_id
        if app.client_secret is not None:
            words["client_secret"] = app.client_secret.reveal_text()
    return Request("POST", app.url(template), headers, urlencode(words).encode(), app.only)


def tokens_of(app: App, answer: Response) -> Tokens:
    """What a token endpoint answered.

    Raises TokensRefused where it says no, AnswerUnclear where it says nothing that can be read.
    """
    if answer.status in _ASK_AGAIN or answer.status >= 500:
        # Whatever else it says, nothing was decided.
        raise AnswerUnclear(f"the provider answered with status {answer.status}")
    words = _words(answer)
    error = words.get("error")
    if isinstance(error, str) and error:
        raise TokensRefused(error if _ERROR.fullmatch(error) else "an error without a name")
    if answer.status >= 400:
        raise TokensRefused(f"status {answer.status}")
    access_token = _secret(words.get("access_token"))
    if access_token is None:
        raise AnswerUnclear(f"the answer with status {answer.status} has no access token")
    scope = words.get("scope")
    return Tokens(
        access_token=access_token,
        refresh_token=_secret(words.get("refresh_token")),
        id_token=_secret(words.get("id_token")),
        expires_in_s=_duration(words.get("expires_in")),
        refresh_expires_in_s=_duration(
            words.get("refresh_token_expires_in") or words.get("refresh_expires_in")
        ),
        scopes=tuple(re.split(r"[ ,]+", scope.strip()))
        if _is_text(scope) and scope.strip()
        else None,
        account=_text(at(words, app.spec.account)) if app.spec.account else "",
        metadata={
            name: found
            for name, path in app.spec.metadata.items()
            if _is_text(found := at(words, path)) or _is_number(found)
        },
    )


def _words(answer: Response) -> Mapping[str, Any]:
    """The answer's fields; JSON by the standard, though some providers answer in a form's words."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return dict(parse_qsl(answer.body.decode(errors="replace")))
    try:
        found = strict_json.parse(answer.body)
    except (ValueError, json.JSONDecodeError):
        found = None
    return found if isinstance(found, dict) else {}


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether it is a text that can be kept: JSON can spell halves of characters and NUL, too."""
    return isinstance(value, str) and not _UNKEEPABLE.search(value)


def _is_number(value: Any) -> bool:
    """Whether it is a number that can be kept; what is too large for a double is read as none."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _text(value: Any) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value)[:255] if is_number or _is_text(value) else ""


def _secret(value: Any) -> Secret | None:
    return remember(Secret(value)) if value and _is_text(value) else None


def _duration(value: Any) -> float | None:
    """Seconds; some providers write them as a text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        # Nothing that can be waited for: the tokens are good all the same.
        return None
    return min(seconds, LONGEST_LIFE_S) if 0 <= seconds < float("inf") else None
