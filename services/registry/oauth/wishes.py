"""What is wished of an authorisation, in whose name, what it comes to, where browsers may go."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from yarl import URL

from services.chassis.endpoint_limits import Only
from services.chassis.errors import FailedPrecondition, invalid
from services.chassis.secret import Secret
from services.registry.audit.log import Actor

CALLBACK: Final = "/oauth/callback"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where browsers may be sent: our own front door, and what the deployment allows besides."""

    public_url: str
    allowed: Only
    names_any: bool

    def callback(self) -> str:
        """The ingress's own address for what providers send back."""
        if not self.public_url:
            raise FailedPrecondition(
                "the deployment has no public address: set TENON_REGISTRY_PUBLIC_URL",
                reason="NO_PUBLIC_URL",
            )
        return f"{self.public_url}{CALLBACK}"

    def check(self, field_name: str, url: str) -> None:
        """Raise InvalidArgument for an address that is not allowed."""
        try:
            good = self.names_any and self.allowed.permits_url(URL(url, encoded=True))
        except ValueError:
            good = False
        if not good:
            raise invalid(
                field_name,
                "is not an address that the deployment allows (TENON_REGISTRY_RETURN_URLS)",
            )


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be connected, and where the browser goes afterwards; empty is not said."""

    integration: str
    connection: str = ""
    venue: str = ""
    user: str = ""
    scopes: tuple[str, ...] = ()
    return_url: str = ""
    redirect_url: str = ""
    app_id: str = ""
    """The app's credential, once it has begun."""


@dataclass(frozen=True, slots=True)
class Starter:
    """In whose name a flow goes, in which tenant; `link_id` where a link began it.

    `lent_by` is who stands behind a key that somebody else made for them.
    """

    tenant_id: UUID
    actor: Actor
    link_id: UUID | None = None
    lent_by: UUID | None = None

    def written(self) -> dict[str, Any]:
        """Who it is, for a row; `starter_of` reads it."""
        ids = {"principal_id": self.actor.principal_id, "lent_by": self.lent_by}
        return asdict(self.actor) | {name: str(id_ or "") for name, id_ in ids.items()}


def starter_of(row: Any) -> Starter:
    """Who began a flow or made a link."""
    said = dict(row.actor)
    lent_by = said.pop("lent_by", "")
    actor = Actor(**{**said, "principal_id": row.principal_id})
    return Starter(row.tenant_id, actor, lent_by=UUID(lent_by) if lent_by else None)


@dataclass(frozen=True, slots=True)
class Begun:
    """Where the account's owner goes, and what must come back."""

    url: str = field(repr=False)
    state: str = field(repr=False)
    expires_at: datetime
    browser: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Returned:
    """What the provider sent back; `browser` is what the visitor's browser showed with it."""

    state: str = field(repr=False)
    code: Secret = field(repr=False)
    error: str = ""
    issuer: str = ""
    browser: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Completed:
    """What a flow came to: a connection, or a pending revision that would make it."""

    tenant: str
    connection: str
    pending_id: str
    return_url: str


def wishes_of(row: Any) -> Wishes:
    """What a flow or a link was begun with."""
    kept: Mapping[str, Any] = row.wishes
    scopes: Sequence[str] = kept["scopes"]
    return Wishes(**{**kept, "scopes": tuple(scopes)})
