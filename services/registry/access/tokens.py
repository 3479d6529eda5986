"""Whose a signed token is: a JWT in its compact form, and nothing else that calls itself one.

Which key, and with it which algorithm, comes from the deployment's list of issuers and from what
those publish; a token's own words only choose among them.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from services.registry.access.issuers import Issuer
from services.registry.access.jwks import Keys

LARGEST: Final = 8 * 1024
LEEWAY: Final = timedelta(seconds=30)
"""How far the issuer's clock may be from ours."""
LONGEST_SUBJECT: Final = 500
FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
TOKEN_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
REQUIRED: Final = ("iss", "aud", "sub", "exp")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom somebody we trust says it is; `expires_at` is when their word ends."""

    kind: str
    issuer: str
    subject: str
    session: str
    display_name: str = ""
    email: str = ""
    expires_at: datetime | None = None


class Tokens:
    """Checks tokens against the deployment's issuers."""

    def __init__(self, issuers: Sequence[tuple[Issuer, Keys]] = ()) -> None:
        self._issuers = {issuer.issuer: (issuer, keys) for issuer, keys in issuers}

    async def identify(self, token: str) -> Identity | None:
        """Whose it is; None for one that does not hold, for whatever reason.

        Raises Unavailable where its issuer cannot be asked for the key.
        """
        parts = _opened(token)
        if parts is None:
            return None
        header, claims = parts
        named = claims.get("iss")
        issuer, keys = self._issuers.get(named if isinstance(named, str) else "", (None, None))
        if issuer is None or keys is None:
            return None
        kid = header.get("kid", "")
        key = await keys.find(kid) if isinstance(kid, str) else None
        if key is None or not holds(token, key, issuer):
            return None
        return _identity(token, issuer, claims)


def holds(token: str, key: PyJWK, issuer: Issuer) -> bool:
    """Whether a token is signed by a key and says what its issuer's tokens must say."""
    try:
        jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=issuer.audience,
            issuer=issuer.issuer,
            leeway=LEEWAY,
            options={"require": list(REQUIRED)},
        )
    except (PyJWTError, ValueError, TypeError, OverflowError):
        return False
    return True


def _opened(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Header and claims, not yet believed. A name that stands twice means two things: neither."""
    if len(token) > LARGEST or not FORM.fullmatch(token):
        return None
    header, claims, _ = token.split(".")
    try:
        return _object(header), _object(claims)
    except (ValueError, RecursionError):
        return None


def _object(part: str) -> Mapping[str, Any]:
    try:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("not base64 of UTF-8") from None
    found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - one kind of fault, whatever it is
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _identity(token: str, issuer: Issuer, claims: Mapping[str, Any]) -> Identity | None:
    subject = claims["sub"]
    try:
        expires_at = datetime.fromtimestamp(int(claims["exp"]), UTC) + LEEWAY
    except (ValueError, OverflowError, OSError):
        return None
    if not 0 < len(subject) <= LONGEST_SUBJECT or not subject.isprintable():
        return None
    return Identity(
        kind=issuer.kind,
        issuer=issuer.issuer,
        subject=subject,
        session=f"token {_token_id(token, claims)}",
        display_name=_text(claims, "name") or subject,
        email=_text(claims, "email"),
        expires_at=expires_at,
    )


def _token_id(token: str, claims: Mapping[str, Any]) -> str:
    """Its own id, or the beginning of its hash."""
    own = claims.get("jti")
    if isinstance(own, str) and TOKEN_ID.fullmatch(own):
        return own
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def _text(claims: Mapping[str, Any], name: str) -> str:
    found = claims.get(name)
    return found[:200] if isinstance(found, str) and found.isprintable() else ""
