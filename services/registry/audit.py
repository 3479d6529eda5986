"""Audit events: written in the transaction of the change they tell, masked by schema."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.chassis.ids import uuid7
from services.chassis.redaction import SECRET_NAME, redact
from services.chassis.rules import Risk
from services.chassis.secret import MASK
from services.registry.plan import NOTHING, Change, FieldChange, top_field
from services.registry.store import audit as store
from services.registry.wanted import SECRET_VALUES

LAST: Final = UUID(int=2**128 - 1)
SHOWN: Final = 12

Outcome = Literal["done", "refused", "failed"]


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
    session: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that was done, refused or failed; what came from a file says where it stood.

    `object_id` is that of the thing itself where it has one.
    """

    action: str
    kind: str
    object: str
    object_id: UUID
    risk: Risk
    fields: Sequence[FieldChange] = ()
    outcome: Outcome = "done"
    revision: int = 0
    source: str = ""
    commit: str = ""
    file: str = ""
    line: int = 0


class Log:
    """Appends events in the transaction of what they tell, as its last statements."""

    async def append(
        self, transaction: Transaction, tenant_id: UUID, actor: Actor, events: Sequence[Event]
    ) -> None:
        """Append to a tenant's log."""
        await transaction.pipeline([_appending(tenant_id, actor, event) for event in events])


@dataclass(frozen=True, slots=True)
class Occasion:
    """What all events of one apply have in common."""

    tenant_id: UUID
    actor: Actor
    revision: int
    source: str
    commit: str

    def event(self, change: Change, object_id: UUID) -> Event:
        """What tells one change."""
        return Event(
            action=change.action,
            kind=change.after.kind,
            object=change.after.name,
            object_id=object_id,
            risk=change.risk,
            fields=change.fields,
            revision=self.revision,
            source=self.source,
            commit=self.commit,
            file=change.declared.file,
            line=change.declared.line,
        )


def _appending(tenant_id: UUID, actor: Actor, event: Event) -> Bound:
    row = {
        "tenant_id": tenant_id,
        "id": uuid7(),
        "actor_id": actor.principal_id,
        "actor_kind": actor.kind,
        "actor_name": actor.display_name,
        "actor_role": actor.role,
        "address": actor.address,
        "user_agent": actor.user_agent,
        "action": event.action,
        "kind": event.kind,
        "object": event.object,
        "object_id": event.object_id,
        "fields": store.as_fields([_masked(field) for field in event.fields]),
        "risk": int(event.risk),
        "revision": event.revision,
        "request_id": actor.request_id,
        "source": event.source,
        "commit": event.commit,
        "file": event.file,
        "line": event.line,
    }
    return Bound(store.APPEND, row)


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
