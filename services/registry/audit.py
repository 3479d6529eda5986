"""Audit events: written in the transaction of the change they tell, masked by schema."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database
from services.chassis.ids import uuid7
from services.chassis.redaction import SECRET_NAME, redact
from services.chassis.secret import MASK
from services.registry.plan import NOTHING, Change, FieldChange, top_field
from services.registry.store import audit as store
from services.registry.wanted import SECRET_VALUES

LAST: Final = UUID(int=2**128 - 1)
SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, as they are now; the log keeps it so."""

    principal_id: UUID
    kind: str
    display_name: str
    role: str
    address: str
    user_agent: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Occasion:
    """What all events of one apply have in common."""

    tenant_id: UUID
    actor: Actor
    revision: int
    source: str
    commit: str


def telling(occasion: Occasion, change: Change, object_id: UUID) -> Bound:
    """What tells one change."""
    actor = occasion.actor
    event = {
        "tenant_id": occasion.tenant_id,
        "id": uuid7(),
        "actor_id": actor.principal_id,
        "actor_kind": actor.kind,
        "actor_name": actor.display_name,
        "actor_role": actor.role,
        "address": actor.address,
        "user_agent": actor.user_agent,
        "action": change.action,
        "kind": change.after.kind,
        "object": change.after.name,
        "object_id": object_id,
        "fields": store.as_fields([_masked(field) for field in change.fields]),
        "risk": int(change.risk),
        "revision": occasion.revision,
        "request_id": actor.request_id,
        "source": occasion.source,
        "commit": occasion.commit,
        "file": change.declared.file,
        "line": change.declared.line,
    }
    return Bound(store.APPEND, event)


class Audit:
    """Reads the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        tenant_id: UUID,
        before: UUID | None,
        size: int,
        kind: str | None,
        name: str | None,
        min_risk: int,
    ) -> list[Any]:
        """Rows of events, the newest first."""
        return await self._database.read(
            tenant_id,
            store.LIST,
            tenant_id=tenant_id,
            before=before or LAST,
            size=size,
            kind=kind,
            object=name,
            min_risk=min_risk,
        )


def masked(change: FieldChange) -> tuple[Any, Any]:
    """Before and after as people may see them.

    Secrets are short fingerprints; inside free-form fields, what is named like a secret is hidden;
    texts are redacted.
    """
    if change.path.startswith(SECRET_VALUES):
        return _fingerprints(change.before), _fingerprints(change.after)
    inner = change.path.removeprefix(top_field(change.path))
    if SECRET_NAME.search(inner):
        return _hidden(change.before), _hidden(change.after)
    return _shown(change.before), _shown(change.after)


def _masked(change: FieldChange) -> dict[str, Any]:
    before, after = masked(change)
    words = {"path": change.path}
    return words | {k: v for k, v in (("before", before), ("after", after)) if v is not NOTHING}


def _fingerprints(value: Any) -> Any:
    if isinstance(value, dict):
        return {part: _fingerprints(mark) for part, mark in value.items()}
    return value if value is NOTHING else f"fingerprint {str(value)[:SHOWN]}"


def _hidden(value: Any) -> Any:
    return value if value is NOTHING else MASK


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: MASK if SECRET_NAME.search(key) and inner else _shown(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value
