"""Signed statements of the identity provider: those it makes, and those it is given."""

import secrets
from collections.abc import Mapping
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from jwt.exceptions import PyJWTError

_ALGORITHMS: Final = ("ES256", "RS256")
_CLAIMS: Final = ("iss", "sub", "aud", "exp")
# Times are compared with the provider's own clock, which a test may move.
_OPTIONS: Final[Any] = {
    "require": _CLAIMS,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}


class AssertionRefused(ValueError):
    """An assertion that grants nothing; the message says why, and repeats nothing of it."""


class Signer:
    """Signs ID tokens with a P-256 key of its own, made anew for each sandbox."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._kid = secrets.token_hex(8)

    def sign(self, claims: Mapping[str, object]) -> str:
        """The claims as an ES256 token."""
        return jwt.encode(dict(claims), self._key, "ES256", {"kid": self._kid})

    def published(self) -> dict[str, object]:
        """The public key as a JWK set (RFC 7517)."""
        key = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": self._kid, "use": "sig", "alg": "ES256"}]}


def subject(assertion: str, keys: Mapping[str, str], audience: str, now: float) -> str:
    """Whom an assertion speaks for (RFC 7523 §3). Raises AssertionRefused.

    `keys`: issuer → its public key as PEM. `now`: in seconds since the epoch.
    """
    try:
        issuer = str(jwt.decode(assertion, options={"verify_signature": False}).get("iss"))
        claims = jwt.decode(assertion, keys[issuer], _ALGORITHMS, _OPTIONS, audience=audience)
    except KeyError:
        raise AssertionRefused("the assertion's issuer is not registered") from None
    except (PyJWTError, ValueError, TypeError) as error:
        raise AssertionRefused(f"the assertion is refused: {type(error).__name__}") from None
    if not _current(claims, now):
        raise AssertionRefused("the assertion has expired or is not valid yet")
    return str(claims["sub"])


def _current(claims: Mapping[str, object], now: float) -> bool:
    until, since = claims["exp"], claims.get("nbf", 0)
    return (
        isinstance(until, int | float) and isinstance(since, int | float) and since <= now < until
    )
