"""When a credential wants attention, and what a credential shows that people should look at."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from services.chassis.database import Bound
from services.registry.store import credential_status as store

LEAD: Final = timedelta(minutes=5)
"""Tokens are refreshed so long before they end."""
WARNING: Final = timedelta(days=14)
"""It is told so long before that a credential ends which does not refresh itself."""
UNUSED: Final = timedelta(days=30)

Finding = Literal[
    "unused",
    "expiring",
    "never_validated",
    "over_scoped",
    "rotation_due",
    "reconnect",
    "invalid",
    "expired",
]


def planning(tenant_id: UUID, credential_id: UUID) -> Bound:
    """What says anew when a credential wants attention, after it or its version has changed."""
    place = {"the_tenant_id": tenant_id, "the_credential_id": credential_id}
    return Bound(store.PLAN, {**place, "lead": LEAD, "warning": WARNING})


def beginning(tenant_id: UUID, credential_id: UUID) -> Bound:
    """What lets the status of a credential begin, or begin anew with other values."""
    return Bound(store.BEGIN_STATUS, {"tenant_id": tenant_id, "credential_id": credential_id})


def keeping(tenant_id: UUID, credential_id: UUID) -> Bound:
    """What sees that a credential has a status."""
    return Bound(store.KEEP_STATUS, {"tenant_id": tenant_id, "credential_id": credential_id})


def findings(row: Any) -> Iterator[Finding]:
    """What a credential's row shows, reckoned by the time it was read."""
    now: datetime = row.now
    if row.status == "revoked":
        return
    if (row.used_at or row.created_at) < now - UNUSED:
        yield "unused"
    all_ends = (row.expires_at, row.refresh_expires_at, row.app_expires_at)
    ends = [end for end in all_ends if end is not None]
    if ends and min(ends) < now + WARNING:
        yield "expiring"
    if ends and min(ends) <= now:
        yield "expired"
    if row.validated_at is None:
        yield "never_validated"
    if row.scopes and set(row.granted_scopes or ()) - set(row.scopes):
        yield "over_scoped"
    if "rotation_due" in row.noticed or (row.rotate_at is not None and row.rotate_at <= now):
        yield "rotation_due"
    if row.status == "reconnect":
        yield "reconnect"
    if row.status == "invalid":
        yield "invalid"


def ends_at(row: Any) -> datetime | None:
    """When a credential ends: by what was declared, or by its token."""
    ends = [end for end in (row.expires_at, row.token_expires_at) if end is not None]
    return min(ends) if ends else None
