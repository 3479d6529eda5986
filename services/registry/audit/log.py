"""Audit events: appended in the transaction of what they tell, masked by schema, chained by key."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from services.chassis.database import Bound, Transaction
from services.chassis.ids import uuid7
from services.chassis.redaction import SECRET_NAME, redact
from services.chassis.rules import Risk
from services.chassis.secret import MASK
from services.registry.audit.chain import Chains, same
from services.registry.audit.masks import SHOWN, Masks
from services.registry.store import audit as store
from services.registry.wanted.objects import SECRET_VALUES, top_field
from services.registry.wanted.plan import NOTHING, Change, FieldChange

log = logging.getLogger(__name__)

Outcome = Literal["done", "refused", "failed"]

ITSELF: Final = "registry"
DISTRUST: Final = "distrust"
# What proves nothing, and is no stranger's word any more: the log knows that its head was spoilt.
SPOILT: Final = b""

SEVERITIES: Final = {"done": "info", "refused": "warning", "failed": "error"}
"""How loud an event is, by how it ended; the loudest last."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, as they are now; the log keeps it so. `method` is the RPC they called."""

    principal_id: UUID
    kind: str
    display_name: str
    role: str
    address: str
    user_agent: str
    request_id: str
    session: str = ""
    reason: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that was done, refused or failed; what came from a file says where it stood.

    `object_id` is that of the thing itself where it has one; `error` the reason code of what was
    not done, `repeats` how often the same was refused before without an event of its own;
    `provider` the one whose settings an integration holds, by whose manifest they are masked;
    `told_id` the id by which another service told it, which says nothing of when. What is
    `alarming` makes a notice, as all does that is critical and done.
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
    error: str = ""
    repeats: int = 0
    provider: str = ""
    told_id: UUID | None = None
    alarming: bool = False
    event_id: UUID = field(default_factory=uuid7)
    happened_at: datetime = field(default_factory=lambda: datetime.now(UTC))


Told = tuple[Actor, Event]


class Log:
    """Appends events in the transaction of what they tell, as its last statements.

    The head of the log is locked last of all, so that whoever appends waits for nobody who waits
    for something else of theirs.
    """

    def __init__(self, chains: Chains, masks: Masks) -> None:
        self._chains = chains
        self._masks = masks

    async def append(
        self, transaction: Transaction, tenant_id: UUID, actor: Actor, events: Sequence[Event]
    ) -> None:
        """Append to a tenant's log, in a transaction inside the tenant."""
        await self.take(transaction, tenant_id, [(actor, event) for event in events])

    async def append_platform(
        self, transaction: Transaction, actor: Actor, events: Sequence[Event]
    ) -> None:
        """Append to the platform's log, in a transaction of the system login."""
        await self.take(transaction, None, [(actor, event) for event in events])

    async def take(
        self, transaction: Transaction, tenant_id: UUID | None, told: Sequence[Told]
    ) -> None:
        """Append what several actors did to one log; None is the platform's."""
        if not told:
            return
        book, scope = store.book_of(tenant_id), store.scope_of(tenant_id)
        chain = self._chains(tenant_id)
        head = await self.hold(transaction, tenant_id)
        seq, mac, sound = head.seq, bytes(head.mac), self.is_ours(tenant_id, head)
        if not sound and bytes(head.proof) != SPOILT:
            told = [_distrust(seq), *told]
        calls = []
        for actor, event in told:
            seq += 1
            row = {**scope, **self._row(actor, event), "seq": seq, "previous": mac}
            mac = row["mac"] = chain.mac(row)
            row["fields"] = store.as_fields(row["fields"])
            calls.append(Bound(book.append, row))
        # A proof of ours would make whole what somebody cut off.
        proof = chain.proof(seq, mac) if sound else SPOILT
        moved = {"new_seq": seq, "new_mac": mac, "new_proof": proof}
        calls.append(Bound(book.move_head, {**scope, **moved}))
        await transaction.pipeline(calls + _notices(tenant_id, told))

    async def hold(self, transaction: Transaction, tenant_id: UUID | None) -> Any:
        """Hold a log against whoever else appends until the transaction ends; its head."""
        book, scope = store.book_of(tenant_id), store.scope_of(tenant_id)
        chain = self._chains(tenant_id)
        first = {"seq": 0, "mac": chain.start, "proof": chain.proof(0, chain.start)}
        # Two statements, so that the second one sees the head that another made meanwhile.
        _, (head,) = await transaction.pipeline(
            [Bound(book.ensure_head, {**scope, **first}), Bound(book.lock_head, scope)]
        )
        return head

    def is_ours(self, tenant_id: UUID | None, head: Any) -> bool:
        """Whether a head was moved by us, which the log says aloud where it was not.

        To stop there would let whoever spoilt it stop every change, too.
        """
        ours = same(head.proof, self._chains(tenant_id).proof(head.seq, bytes(head.mac)))
        if not ours:
            log.error("the head of the audit log of %s is not ours", tenant_id or "the platform")
        return ours

    def _row(self, actor: Actor, event: Event) -> dict[str, Any]:
        return {
            "id": event.event_id,
            "told_id": event.told_id,
            "created_at": event.happened_at,
            "actor_id": actor.principal_id,
            "actor_kind": actor.kind,
            "actor_name": actor.display_name,
            "actor_role": actor.role,
            "session": actor.session,
            "address": actor.address,
            "user_agent": actor.user_agent,
            "reason": redact(actor.reason),
            "method": actor.method,
            "action": event.action,
            "kind": event.kind,
            "object": event.object,
            "object_id": event.object_id,
            "outcome": event.outcome,
            "severity": SEVERITIES[event.outcome],
            "error": event.error,
            "repeats": event.repeats,
            "fields": [self._masks.kept(event.kind, one, event.provider) for one in event.fields],
            "risk": int(event.risk),
            "revision": event.revision,
            "request_id": actor.request_id,
            "source": event.source,
            "commit": event.commit,
            "file": event.file,
            "line": event.line,
        }


def _distrust(seq: int) -> Told:
    """What tells that a head was found which is not ours, before all that is appended to it."""
    actor = Actor(UUID(int=0), "service", ITSELF, "", address="", user_agent="", request_id="")
    return actor, Event(DISTRUST, "AuditLog", f"head at {seq}", UUID(int=0), Risk.CRITICAL)


def _notices(tenant_id: UUID | None, told: Sequence[Told]) -> list[Bound]:
    """What tells at once, by the feed and in words, that something critical was done, or alarms."""
    loud = [
        (actor, event)
        for actor, event in told
        if event.alarming or (event.risk == Risk.CRITICAL and event.outcome == "done")
    ]
    for actor, event in loud:
        log.warning(
            "%s: %s %s %s by %s (audit event %s)",
            event.risk.name.lower(),
            *(event.action, event.kind, event.object, actor.display_name, event.event_id),
        )
    if tenant_id is None:
        return []
    place = {"tenant_id": tenant_id, "kind": "notice", "revision": 0}
    return [
        Bound(store.NOTICE, {**place, "subject": f"auditEvents/{event.event_id}"})
        for _, event in loud
    ]


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
            provider=_provider(change),
        )


def _provider(change: Change) -> str:
    """The provider of an integration; none while it changes, since settings of both are shown."""
    after = change.after.fields.get("spec.provider", "")
    before = change.before.fields.get("spec.provider", "") if change.before else after
    return str(after) if before == after else ""


def masked(change: FieldChange) -> tuple[Any, Any]:
    """Before and after as a plan shows them to its author.

    Secrets are short fingerprints; inside free-form fields, what is named like a secret is hidden;
    texts are redacted.
    """
    if change.path.startswith(SECRET_VALUES):
        return _fingerprints(change.before), _fingerprints(change.after)
    inner = change.path.removeprefix(top_field(change.path))
    if SECRET_NAME.search(inner):
        return _hidden(change.before), _hidden(change.after)
    return _shown(change.before), _shown(change.after)


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
