"""What the stand-in identity provider knows: its client, codes, token families, and requests.

A family is everything that one consent gave. A refresh token is used up by the first refresh, which
gives the next; one that comes again after that gives the whole family away (RFC 9700 §4.14.2).
Nothing here waits, so a request is handled whole before the next.
"""

import secrets
import time
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from services.chassis.secret import Secret
from services.sandbox.grants import (
    ClientAuth,
    Consent,
    Family,
    RefreshToken,
    Refused,
    Revoked,
    Settings,
    TokenRequest,
    Tokens,
)

CODE_LIFETIME_S: Final = 60
_KEPT_REQUESTS: Final = 10_000


@dataclass(slots=True)
class _Code:
    consent: Consent
    expires_at: float
    family: Family | None = None


@dataclass(slots=True)
class _Access:
    family: Family
    expires_at: float | None
    revoked: bool = False


class Identity:
    """The provider's state, with one confidential client; `clock` is in seconds since the epoch."""

    def __init__(
        self,
        *,
        client_id: str | None = None,
        client_secret: Secret | None = None,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client_id: Final = client_id or f"client-{secrets.token_hex(4)}"
        self.client_secret: Final = client_secret or Secret(secrets.token_urlsafe(24))
        self.settings = settings or Settings()
        self.clock: Final = clock
        self.requests: deque[TokenRequest] = deque(maxlen=_KEPT_REQUESTS)
        """Every request for tokens, oldest first."""
        self._families: dict[str, Family] = {}
        self._codes: dict[str, _Code] = {}
        self._access: dict[str, _Access] = {}
        self._refresh: dict[str, tuple[Family, RefreshToken]] = {}

    @property
    def families(self) -> list[Family]:
        """Every family, oldest first."""
        return list(self._families.values())

    def change(self, **settings: object) -> None:
        """Change these settings, keep the others. Raises ValidationError."""
        self.settings = Settings.model_validate({**self.settings.model_dump(), **settings})

    def consent(self, consent: Consent) -> str:
        """A code for what the account agreed to, narrowed to what is granted. Raises Refused."""
        if self.settings.deny:
            raise Refused("access_denied", "the account refused its consent")
        given = replace(consent, scope=self._narrowed(consent.scope))
        code = f"ac_{secrets.token_urlsafe(24)}"
        self._codes[code] = _Code(given, self.clock() + CODE_LIFETIME_S)
        return code

    def redeem_code(self, code: str, redirect_uri: str, verifier: str) -> Tokens:
        """The code's tokens, once; a code that comes again revokes them. Raises Refused."""
        held = self._codes.get(code)
        if held is None:
            raise Refused("invalid_grant", "the code is unknown")
        if held.family is not None:
            self._revoke(held.family, "code_replay")
            raise Refused("invalid_grant", "the code was used already", held.family.id)
        consent = held.consent
        faults = {
            "the code has expired": self.clock() >= held.expires_at,
            "redirect_uri is not where the code was sent": redirect_uri != consent.redirect_uri,
            "code_verifier does not fit code_challenge": not _fits(verifier, consent.challenge),
        }
        for description, found in faults.items():
            if found:
                raise Refused("invalid_grant", description)
        held.family = self._founded(consent.account, consent.scope, "authorization_code")
        return self._given(held.family, consent.scope, renew=True, nonce=consent.nonce)

    def refresh(self, token: str, scope: str = "") -> Tokens:
        """New tokens for a refresh token, for its scope or a part of it. Raises Refused."""
        if token not in self._refresh:
            raise Refused("invalid_grant", "the refresh token is unknown")
        family, held = self._refresh[token]
        if self._used_up(held):
            held.replays += 1
            self._revoke(family, "replay")
            raise Refused("invalid_grant", "the refresh token was used already", family.id)
        if family.revoked is not None:
            raise Refused("invalid_grant", "the refresh token is revoked", family.id)
        if not set(scope.split()) <= set(family.scope.split()):
            raise Refused("invalid_scope", "the scope is wider than what was granted", family.id)
        granted = self._narrowed(scope or family.scope, family.id)
        held.redeemed += 1
        if self.settings.rotate and held.used_up_at is None:
            held.used_up_at = self.clock()
        return self._given(family, granted, renew=self.settings.rotate)

    def issue(self, account: str, scope: str = "", grant: str = "authorization_code") -> Tokens:
        """Tokens of a new family as if the account had consented. Raises Refused.

        As RFC 6749 §4.4.3 and RFC 7521 §4.1 advise, only `authorization_code` has a refresh token.
        """
        granted = self._narrowed(scope)
        family = self._founded(account, granted, grant)
        return self._given(family, granted, renew=grant == "authorization_code")

    def holder(self, access_token: str) -> Family | None:
        """The family of an access token that is valid now."""
        held = self._access.get(access_token)
        if held is None or held.revoked or held.family.revoked is not None:
            return None
        alive = held.expires_at is None or self.clock() < held.expires_at
        return held.family if alive else None

    def family_of(self, token: str) -> Family | None:
        """The family of an access or refresh token, be it valid or not."""
        if token in self._access:
            return self._access[token].family
        return self._refresh[token][0] if token in self._refresh else None

    def revoke_token(self, token: str) -> None:
        """Revoke an access token alone, or a refresh token with its family (RFC 7009 §2.1)."""
        if token in self._access:
            self._access[token].revoked = True
        if token in self._refresh:
            self._revoke(self._refresh[token][0], "revoked")

    def revoke_family(self, account: str) -> int:
        """Revoke what the account gave, as when its owner removes the app; how many families."""
        mine = [f for f in self.families if f.account == account and f.revoked is None]
        for family in mine:
            self._revoke(family, "admin")
        return len(mine)

    def note(self, grant: str, auth: ClientAuth, family: str | None, outcome: str) -> None:
        """Remember a request for tokens."""
        self.requests.append(TokenRequest(grant, auth, family, outcome, self.clock()))

    def as_json(self) -> dict[str, object]:
        """All of it, without any token or secret."""
        return {
            "client_id": self.client_id,
            "settings": self.settings.model_dump(mode="json"),
            "families": [family.as_json() for family in self.families],
            "requests": [request.as_json() for request in self.requests],
        }

    def _narrowed(self, asked: str, family: str | None = None) -> str:
        most = self.settings.scopes
        granted = [each for each in asked.split() if most is None or each in most]
        if asked.split() and not granted:
            raise Refused("invalid_scope", "nothing of the scope is granted", family)
        return " ".join(granted)

    def _founded(self, account: str, scope: str, grant: str) -> Family:
        family = Family(secrets.token_hex(8), account, grant, scope, self.clock())
        self._families[family.id] = family
        return family

    def _given(
        self, family: Family, scope: str, *, renew: bool, nonce: str | None = None
    ) -> Tokens:
        now, lasts = self.clock(), self.settings.expires_in
        access = f"at_{secrets.token_urlsafe(24)}"
        self._access[access] = _Access(family, None if lasts is None else now + lasts)
        fresh = RefreshToken(f"rt_{secrets.token_urlsafe(24)}", now) if renew else None
        if fresh is not None:
            family.refresh_tokens.append(fresh)
            self._refresh[fresh.token] = family, fresh
        refresh = None if fresh is None else fresh.token
        return Tokens(family.id, family.account, scope, lasts, access, refresh, nonce)

    def _used_up(self, held: RefreshToken) -> bool:
        since = held.used_up_at
        return since is not None and self.clock() >= since + self.settings.grace_s

    def _revoke(self, family: Family, why: Revoked) -> None:
        if family.revoked is None:
            family.revoked, family.revoked_at = why, self.clock()


def _fits(verifier: str, challenge: str) -> bool:
    """RFC 7636 §4.6, method S256."""
    made = urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=")
    return compare_digest(made, challenge.encode())
