"""Whoever submits, and what of theirs counts in a tenant that is there."""

from uuid import UUID

from services.chassis.tenancy import PLATFORM, Access, Grant, Principal
from services.registry.audit.log import Actor
from services.registry.wanted.apply import Caller


def test_a_tenant_made_meanwhile_is_entered_with_a_reason_or_not_at_all() -> None:
    allowed = frozenset({"config.apply"})
    owner = Principal(
        UUID(int=1),
        "user",
        "owner",
        {PLATFORM: Access(PLATFORM, None, (Grant("SUPER_ADMIN", allowed, needs_reason=True),))},
    )
    for reason, may in (("", False), ("a test", True)):
        actor = Actor(UUID(int=1), "user", "owner", "SUPER_ADMIN", "", "", "", reason=reason)
        inside = Caller(actor, owner, "config.apply").inside()
        assert inside.principal.may("config.apply", "acme") is may
