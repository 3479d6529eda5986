"""Submissions that wait for approval: sealed whole, each with a key of its own.

To end one is to destroy its key: what is left tells which fields it was about, and no value.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final
from uuid import UUID

from services.chassis import envelope
from services.chassis.database import Transaction
from services.chassis.ids import uuid7
from services.chassis.redaction import remember
from services.chassis.retention import Clock, utc_now
from services.chassis.secret import Secret
from services.registry.audit import log as audit
from services.registry.credentials.places import key_place
from services.registry.credentials.sealing import Sealing
from services.registry.reviews.demands import Demand, risk_of
from services.registry.reviews.endings import CLOCK, Endings, telling
from services.registry.store import approvals as store
from services.registry.store import keys
from services.registry.wanted.drafts import Draft, Submission
from services.registry.wanted.objects import Declared
from services.registry.wanted.plan import NOTHING, Change, FieldChange, Plan

TABLE: Final = "registry.pending_revisions"
COLUMN: Final = "sealed"
# Of one sending, not of what was sent; or bound to the plan anyway.
LEFT_OUT: Final = frozenset({"request_id", "digest", "tenant", "base_revision", "plan_hash"})


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is to wait: a submission with its draft, its author, and what it waits for.

    `made_by` is who stands behind the author's key, where that is somebody else.
    """

    tenant_id: UUID
    submission: Submission
    draft: Draft
    author: audit.Actor
    demand: Demand
    made_by: UUID | None


class Staging:
    """Takes submissions in, and opens them again."""

    def __init__(
        self,
        sealing: Sealing,
        endings: Endings,
        log: audit.Log,
        clock: Clock = utc_now,
    ) -> None:
        self._sealing = sealing
        self._endings = endings
        self._log = log
        self._clock = clock

    async def submit(self, transaction: Transaction, waiting: Waiting) -> Any:
        """Let a submission wait; the row of it, or of the same plan that waits already."""
        tenant_id, plan = waiting.tenant_id, waiting.draft.plan
        same = {"plan_hash": plan.digest(), "base_revision": plan.base_revision}
        earlier = await transaction.one(store.FIND_SAME, tenant_id=tenant_id, **same)
        if earlier is not None and earlier.expires_at > self._clock():
            return await get(transaction, tenant_id, earlier.pending_id)
        if earlier is not None:
            await self._endings.end(transaction, earlier, "expired", CLOCK)
        row = await self._sealed(transaction, waiting)
        await transaction.pipeline([store.adding(row)])
        found = await get(transaction, tenant_id, row["pending_id"])
        needs = (("policies", found.policies), ("approvals_needed", found.approvals_needed))
        event = telling(found, "submit", *needs)
        await self._log.append(transaction, tenant_id, waiting.author, [event])
        return found

    async def open(self, transaction: Transaction, tenant: str, row: Any) -> Submission:
        """The submission in a locked row, bound to the state and the plan it was made for."""
        place = {"tenant_id": row.tenant_id, "data_key_id": row.data_key_id}
        tenant_key = self._sealing.tenant_key(await transaction.one(keys.DATA_KEY_OF, **place))
        where = key_place(row.tenant_id, row.pending_id)
        key = envelope.unwrap(tenant_key.key, where, bytes(row.wrapped_key))
        place_of = _place(row.tenant_id, row.pending_id)
        opened = envelope.open_sealed(key, place_of, bytes(row.sealed))
        words = json.loads(opened.reveal())
        declared = tuple(_declared(one) for one in words.pop("declared"))
        bound = {"base_revision": row.base_revision, "plan_hash": row.plan_hash}
        return Submission(**words, **bound, tenant=tenant, declared=declared)

    async def _sealed(self, transaction: Transaction, waiting: Waiting) -> dict[str, Any]:
        """The row of a new pending revision."""
        plan, author, demand = waiting.draft.plan, waiting.author, waiting.demand
        pending_id = uuid7()
        keyring = await self._sealing.keyring(transaction, waiting.tenant_id)
        await transaction.pipeline(keyring.adding)
        key, words = envelope.new_key(), json.dumps(_words(waiting.submission)).encode()
        return {
            "tenant_id": waiting.tenant_id,
            "pending_id": pending_id,
            "state": "pending",
            "base_revision": plan.base_revision,
            "plan_hash": plan.digest(),
            "plan": _shown(plan),
            "risk": int(risk_of(plan)),
            "source": plan.source,
            "commit": waiting.submission.commit,
            "author_id": author.principal_id,
            "author": asdict(author) | {"principal_id": str(author.principal_id)},
            "author_made_by": waiting.made_by,
            "policies": list(demand.policies),
            "approvals_needed": demand.approvals,
            "self_approval": demand.self_approval,
            "expires_at": self._clock() + demand.expires,
            "data_key_id": keyring.key.data_key_id,
            "wrapped_key": envelope.wrap(
                keyring.key.key, key_place(waiting.tenant_id, pending_id), key
            ),
            "sealed": envelope.seal(key, _place(waiting.tenant_id, pending_id), words),
        }


async def get(transaction: Transaction, tenant_id: UUID, pending_id: UUID) -> Any:
    """The row of a pending revision with its approvals; None: there is none."""
    return await transaction.one(store.GET, tenant_id=tenant_id, pending_id=pending_id)


def _words(submission: Submission) -> dict[str, Any]:
    """A submission as JSON, whatever fields it has."""
    words = {
        each.name: getattr(submission, each.name)
        for each in fields(submission)
        if each.name not in LEFT_OUT
    }
    return {**words, "declared": [_document(one) for one in submission.declared]}


def _document(one: Declared) -> dict[str, Any]:
    words = {each.name: getattr(one, each.name) for each in fields(one)}
    secrets = {part: base64.b64encode(s.reveal()).decode() for part, s in one.secrets.items()}
    return {**words, "secrets": secrets}


def _declared(words: Mapping[str, Any]) -> Declared:
    secrets = {
        part: remember(Secret(base64.b64decode(text))) for part, text in words["secrets"].items()
    }
    return Declared(**{**words, "secrets": secrets})


def _shown(plan: Plan) -> dict[str, Any]:
    """A plan as people may see it while it waits."""
    return {"changes": [_change(one) for one in plan.changes], "unchanged": plan.unchanged}


def _change(change: Change) -> dict[str, Any]:
    return {
        "action": change.action,
        "kind": change.after.kind,
        "name": change.after.name,
        "risk": int(change.risk),
        "fields": [_field(one) for one in change.fields],
    }


def _field(change: FieldChange) -> dict[str, Any]:
    before, after = audit.masked(change)
    words = {"path": change.path, "owner": change.owner}
    return words | {k: v for k, v in (("before", before), ("after", after)) if v is not NOTHING}


def _place(tenant_id: UUID, pending_id: UUID) -> envelope.Place:
    """Bound to itself alone: the tenant's data key that wraps its key may be replaced."""
    return envelope.Place(tenant_id, TABLE, pending_id, COLUMN, pending_id, pending_id)
