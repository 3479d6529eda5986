"""The order in which kinds are shown and sent: what is referred to comes first."""

from typing import Final

KINDS: Final = (
    "Tenant",
    "ReviewPolicy",
    "Venue",
    "Credential",
    "Integration",
    "Connection",
    "Connector",
    "WebhookEndpoint",
    "Subscription",
    "EventType",
    "Role",
    "RoleBinding",
)


def position(kind: str) -> int:
    """A kind's place in the order; one we do not know comes last."""
    return KINDS.index(kind) if kind in KINDS else len(KINDS)
