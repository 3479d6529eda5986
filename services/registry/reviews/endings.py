"""How a pending revision comes to its end, and what tells each step of its way."""

from typing import Any, Final
from uuid import UUID

from services.chassis.database import Transaction
from services.chassis.retention import Clock, utc_now
from services.chassis.rules import Risk
from services.registry.audit import log as audit
from services.registry.store import approvals as store
from services.registry.wanted.plan import NOTHING, FieldChange

KIND: Final = "PendingRevision"
# What is done to one that comes to such an end.
ACTIONS: Final = {
    "applied": "apply",
    "rejected": "reject",
    "expired": "expire",
    "stale": "stale",
}
# Who lets one go that waited too long.
CLOCK: Final = audit.Actor(UUID(int=0), "system", "tenon", "", "", "", "")


class Endings:
    """Ends pending revisions: nothing that was sealed with one opens again."""

    def __init__(self, log: audit.Log, clock: Clock = utc_now) -> None:
        self._log = log
        self._clock = clock

    async def end(
        self,
        transaction: Transaction,
        row: Any,
        state: str,
        actor: audit.Actor,
        *said: tuple[str, Any],
        note: str = "",
        revision: int = 0,
    ) -> None:
        """End one that waits; the event says the note and what is `said` besides."""
        now, by = self._clock(), actor.display_name
        ended = store.ending(row, state, now, by, note, revision)
        await transaction.pipeline([ended])
        words = (*said, ("note", note)) if note else said
        event = telling(row, ACTIONS[state], *words, revision=revision)
        await self._log.append(transaction, row.tenant_id, actor, [event])


def telling(row: Any, action: str, *said: tuple[str, Any], revision: int = 0) -> audit.Event:
    """What tells one step of a pending revision's way."""
    return audit.Event(
        action=action,
        kind=KIND,
        object=str(row.pending_id),
        object_id=row.pending_id,
        risk=Risk(row.risk),
        fields=[FieldChange(path, NOTHING, value) for path, value in said],
        revision=revision,
        source=row.source,
        commit=row.commit,
    )
