"""Reviews: a person looks at a risky event and signs that they have.

It changes nothing: what needs approval *before* it takes effect is a ReviewPolicy's matter.
"""

from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.chassis.database_errors import Constraints
from services.chassis.errors import FailedPrecondition, PermissionDenied, invalid
from services.chassis.rules import Risk
from services.registry.audit.log import Actor, Event, Log
from services.registry.audit.reading import Audit
from services.registry.store import audit as store
from services.registry.wanted.plan import NOTHING, FieldChange

LONGEST_NOTE: Final = 2000


def _reviewed(_: str) -> FailedPrecondition:
    return FailedPrecondition("this event has been reviewed", reason="ALREADY_REVIEWED")


CONSTRAINTS: Final[Constraints] = {
    "audit_reviews_pkey": _reviewed,
    "platform_audit_reviews_pkey": _reviewed,
}


class EventReviews:
    """Notes reviews, each of which is an event of its own."""

    def __init__(self, database: Database, audit: Audit, log: Log) -> None:
        self._database = database
        self._audit = audit
        self._log = log

    async def review(self, tenant_id: UUID | None, event_id: UUID, actor: Actor, note: str) -> Any:
        """Sign an event with a note; the event's row as it then is.

        Raises NotFound, PermissionDenied for who is no person or did it themselves, and
        FailedPrecondition for what waits for no review.
        """
        if not 0 < len(note.strip()) <= LONGEST_NOTE or "\0" in note:
            raise invalid("note", f"must say what was seen, in 1 to {LONGEST_NOTE} characters")
        row = await self._audit.get(tenant_id, event_id)
        _check(row, actor)
        if tenant_id is None:
            async with self._database.system() as transaction:
                await self._write(transaction, None, row, actor, note)
        else:
            async with self._database.tenant(tenant_id) as transaction:
                await self._write(transaction, tenant_id, row, actor, note)
        return await self._audit.get(tenant_id, event_id)

    async def _write(
        self, transaction: Transaction, tenant_id: UUID | None, row: Any, actor: Actor, note: str
    ) -> None:
        signed = {
            **store.scope_of(tenant_id),
            "event_id": row.id,
            "reviewer_id": actor.principal_id,
            "reviewer_name": actor.display_name,
            "note": note,
        }
        await transaction.pipeline([Bound(store.book_of(tenant_id).review, signed)])
        fields = (FieldChange("note", NOTHING, note),)
        event = Event("review", "AuditEvent", str(row.id), row.id, Risk.LOW, fields)
        await self._log.take(transaction, tenant_id, [(actor, event)])


def _check(row: Any, actor: Actor) -> None:
    if actor.kind != "user":
        raise PermissionDenied("only a person may review", reason="NOT_A_PERSON")
    if row.actor_id == actor.principal_id:
        raise PermissionDenied("who did it may not review it", reason="OWN_EVENT")
    if row.risk < store.REVIEWED or row.outcome != "done":
        raise FailedPrecondition("this event waits for no review", reason="NO_REVIEW_NEEDED")
    if row.reviewed_at is not None:
        raise _reviewed("")
