"""What the stand-in identity provider deals in: settings, consents, tokens, and their record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

Revoked = Literal["replay", "code_replay", "revoked", "admin"]
ClientAuth = Literal["basic", "post", "none"]


class Settings(BaseModel):
    """How the provider behaves from now on.

    redirect_uris: those of the client, compared exactly.
    issuers: issuer of JWT bearer assertions → its public key as PEM.
    expires_in: seconds an access token lasts; None: for ever, and the answer does not say.
    grace_s: seconds from its first use for which a used-up refresh token still refreshes.
    scopes: the most that is granted; None: what was asked.
    rotate: whether a refresh uses its token up and gives the next; if not, it answers without one.
    deny: whether accounts refuse their consent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    redirect_uris: frozenset[str] = frozenset()
    issuers: Mapping[str, str] = {}
    expires_in: int | None = 3600
    grace_s: float = 0
    scopes: frozenset[str] | None = None
    rotate: bool = True
    deny: bool = False


class Refused(Exception):
    """An OAuth error (RFC 6749 §4.1.2.1, §5.2): its code, a sentence, the family it is about."""

    def __init__(self, error: str, description: str, family: str | None = None) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.family = family


@dataclass(frozen=True, slots=True)
class Consent:
    """What an account agreed to; it becomes a code. `challenge` is PKCE's, of method S256."""

    account: str
    scope: str
    redirect_uri: str
    challenge: str
    nonce: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one request was given. `scope` has spaces between; `expires_in` is in seconds."""

    family: str
    account: str
    scope: str
    expires_in: int | None
    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    nonce: str | None = None


@dataclass(slots=True)
class RefreshToken:
    """What became of one refresh token; times in seconds since the epoch."""

    token: str = field(repr=False)
    made_at: float
    redeemed: int = 0
    """How often it refreshed."""
    replays: int = 0
    """How often it came when it was used up."""
    used_up_at: float | None = None

    def as_json(self) -> dict[str, object]:
        """All but the token."""
        return {
            "made_at": self.made_at,
            "redeemed": self.redeemed,
            "replays": self.replays,
            "used_up_at": self.used_up_at,
        }


@dataclass(slots=True)
class Family:
    """Everything that one consent, or one grant without consent, gave."""

    id: str
    account: str
    grant: str
    scope: str
    made_at: float
    refresh_tokens: list[RefreshToken] = field(default_factory=list)
    """Oldest first."""
    revoked: Revoked | None = None
    revoked_at: float | None = None

    @property
    def replays(self) -> int:
        """How often one of its refresh tokens came when it was used up."""
        return sum(each.replays for each in self.refresh_tokens)

    def as_json(self) -> dict[str, object]:
        """The family without its tokens."""
        return {
            "id": self.id,
            "account": self.account,
            "grant": self.grant,
            "scope": self.scope,
            "made_at": self.made_at,
            "refresh_tokens": [each.as_json() for each in self.refresh_tokens],
            "replays": self.replays,
            "revoked": self.revoked,
            "revoked_at": self.revoked_at,
        }


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request for tokens. `outcome` is "issued" or the OAuth error; an unknown grant is ""."""

    grant: str
    client_auth: ClientAuth
    family: str | None
    outcome: str
    at: float

    def as_json(self) -> dict[str, object]:
        """The request as a JSON object."""
        return asdict(self)
