"""What people do here, told to the registry's audit log through an outbox.

An event is written down in the transaction of what it tells, so that neither is without the other,
and told by a leader (`audit_shipping`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from services.chassis.database import Bound
from services.chassis.ids import uuid7
from services.chassis.interceptors import Call
from services.executor.store.audit_outbox import Told, adding


@dataclass(frozen=True, slots=True)
class Doer:
    """Who does it, as they are now."""

    uid: UUID
    kind: str
    display_name: str
    role: str = ""
    address: str = ""
    user_agent: str = ""
    session: str = ""
    reason: str = ""
    method: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Deed:
    """What is done to what; `said` are fields of it with their values afterwards."""

    kind: str
    action: str
    object: str
    object_id: UUID | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


def doer_of(call: Call) -> Doer:
    """Whoever calls."""
    principal = call.principal
    return Doer(
        principal.principal_id,
        principal.kind,
        principal.display_name,
        call.role,
        call.address,
        call.user_agent,
        principal.session,
        call.reason,
        call.rule.method,
        call.request_id,
    )


def telling(tenant_id: UUID | None, doer: Doer, deed: Deed) -> Bound:
    """What writes an event down; the tenant is None for what is done to all of them."""
    actor = {name: str(getattr(doer, name)) for name in Doer.__slots__ if name != "request_id"}
    event_id = uuid7()
    words = {
        "uid": str(event_id),
        "create_time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "actor": actor,
        "action": deed.action,
        "kind": deed.kind,
        "object": deed.object,
        "object_uid": str(deed.object_id or ""),
        "fields": [{"path": path, "after": json.dumps(value)} for path, value in deed.said.items()],
        "request_id": doer.request_id,
    }
    return adding(Told(tenant_id, event_id, words))
