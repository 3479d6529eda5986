"""What people make of pending revisions: they look at them, approve them, reject them.

The last approval applies the change in its own transaction, by the one write path: the same plan
over the same revision, by an author who still may. What cannot be had so is stale, and ends.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Database, Transaction
from services.chassis.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TenonError,
)
from services.chassis.retention import Clock, utc_now
from services.chassis.secret import Secret
from services.registry.access.authority import Authority
from services.registry.access.control import AccessControl
from services.registry.answers import Asked, Once
from services.registry.audit import log as audit
from services.registry.reviews.endings import CLOCK, Endings, telling
from services.registry.reviews.staging import Staging, get
from services.registry.store import approvals as store
from services.registry.store import tenants
from services.registry.wanted.apply import Config

APPLY: Final = "config.apply"
APPROVE: Final = "config.approve"
BY_METHOD: Final = dict.fromkeys(("BeginOAuth", "CreateConnectLink"), "connections.manage")
"""By which permission a change was submitted that came by another call than ApplyConfig."""

BEGUN = failpoints.declare("approve.begun", "nothing is written: the revision waits as before")
BEFORE_COMMIT = failpoints.declare(
    "approve.before_commit", "all is written, not committed: the revision waits as before"
)
AFTER_COMMIT = failpoints.declare(
    "approve.after_commit", "committed, not answered: the same request_id answers"
)

Answer = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one person says of one pending revision; `digest` is of all their words.

    `lent` tells that somebody else made the key they say it with, and may be who says it.
    """

    tenant_id: UUID
    pending_id: UUID
    actor: audit.Actor
    note: str
    request_id: UUID | None
    digest: Secret
    lent: bool = False

    def asked(self, method: str) -> Asked | None:
        """The request as it may come again."""
        if self.request_id is None:
            return None
        return Asked(self.tenant_id, self.actor.principal_id, method, self.request_id, self.digest)


# What a verdict comes to: an error to be told once all is committed, or nothing.
Decide = Callable[[Transaction, Any, Any, Verdict], Awaitable[TenonError | None]]


class Approvals:
    """The use cases on pending revisions."""

    def __init__(
        self,
        database: Database,
        config: Config,
        staging: Staging,
        endings: Endings,
        access: AccessControl,
        once: Once,
        log: audit.Log,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._config = config
        self._staging = staging
        self._endings = endings
        self._access = access
        self._once = once
        self._log = log
        self._clock = clock

    async def page(self, tenant_id: UUID, before: UUID, size: int, state: str | None) -> list[Any]:
        """Rows below an id, the newest first; in one state, or in any."""
        return await self._database.read(
            tenant_id, store.LIST, tenant_id=tenant_id, before=before, size=size, state=state
        )

    async def get(self, tenant_id: UUID, pending_id: UUID) -> Any:
        """One row with its approvals."""
        rows = await self._database.read(
            tenant_id, store.GET, tenant_id=tenant_id, pending_id=pending_id
        )
        if not rows:
            raise _absent(pending_id)
        return rows[0]

    async def approve(self, verdict: Verdict, answer: Answer) -> bytes:
        """Approve; the last approval that is needed applies the change.

        Raises PermissionDenied for the author, AlreadyExists for a second approval of the same
        person, FailedPrecondition where it no longer waits, Aborted where it became stale.
        """
        return await self._decide("ApproveRevision", verdict, answer, self._approve)

    async def reject(self, verdict: Verdict, answer: Answer) -> bytes:
        """Reject; the change and its secrets are gone. Raises as `approve` does."""
        return await self._decide("RejectRevision", verdict, answer, self._reject)

    async def _decide(self, method: str, verdict: Verdict, answer: Answer, decide: Decide) -> bytes:
        _check_sign_in(verdict)
        asked, tenant_id = verdict.asked(method), verdict.tenant_id
        async with self._database.tenant(tenant_id) as transaction:
            tenant = await tenants.lock(transaction, tenant_id)
            kept = await self._once.kept(transaction, asked)
            if kept is not None:
                return kept
            BEGUN.hit()
            row = await _waiting(transaction, tenant_id, verdict.pending_id)
            if row.expires_at <= self._clock():
                decide = self._expire
            fault = await decide(transaction, tenant, row, verdict)
            body = answer(await get(transaction, tenant_id, verdict.pending_id))
            if fault is None:
                await transaction.pipeline(self._once.keeping(asked, body))
            BEFORE_COMMIT.hit()
        AFTER_COMMIT.hit()
        if fault is not None:
            raise fault
        return body

    async def _expire(
        self, transaction: Transaction, tenant: Any, row: Any, verdict: Verdict
    ) -> TenonError | None:
        await self._endings.end(transaction, row, "expired", CLOCK)
        return _over("expired")

    async def _reject(
        self, transaction: Transaction, tenant: Any, row: Any, verdict: Verdict
    ) -> TenonError | None:
        await self._endings.end(transaction, row, "rejected", verdict.actor, note=verdict.note)
        return None

    async def _approve(
        self, transaction: Transaction, tenant: Any, row: Any, verdict: Verdict
    ) -> TenonError | None:
        place = {"tenant_id": row.tenant_id, "pending_id": row.pending_id}
        earlier = await transaction.all(store.APPROVERS, **place)
        _check_approver(row, verdict.actor, earlier)
        if not await self._may_approve(tenant, row, verdict.actor):
            raise PermissionDenied(
                "you have no config.approve here for every kind and the source of this change"
            )
        approver = {
            "principal_id": verdict.actor.principal_id,
            "principal_name": verdict.actor.display_name,
        }
        await transaction.run(store.APPROVE, **place, **approver, note=verdict.note)
        # An earlier approval does not count if who gave it could not give it now.
        counted = [
            one.principal_name for one in earlier if await self._may_approve(tenant, row, one)
        ]
        counted.append(verdict.actor.display_name)
        fault = None
        if len(counted) >= row.approvals_needed:
            fault = await self._settle(transaction, tenant, row, verdict.actor, counted)
        said = [("note", verdict.note)] if verdict.note else []
        event = telling(row, "approve", ("approvals", len(counted)), *said)
        await self._log.append(transaction, row.tenant_id, verdict.actor, [event])
        return fault

    async def _may_approve(self, tenant: Any, row: Any, approver: Any) -> bool:
        """Whether somebody may, by the grants of this moment, for every kind the plan changes."""
        principal = await self._access.current(approver.principal_id)
        return principal is not None and all(
            principal.may_change(APPROVE, tenant.slug, change["kind"], row.source)
            for change in row.plan["changes"]
        )

    async def _settle(
        self,
        transaction: Transaction,
        tenant: Any,
        row: Any,
        approver: audit.Actor,
        approvers: Sequence[str],
    ) -> TenonError | None:
        """Make the change in its author's name, or end it where it is no longer what it was."""
        submission, author = await self._staging.open(transaction, tenant.slug, row), _author(row)
        try:
            authority = await self._authority(tenant.slug, author)
            authority.check(submission.declared, submission.source)
            draft = await self._config.draft(transaction, submission, tenant)
            authority.check(draft.declared, submission.source)
            authority.check_gifts(draft.plan.changes, draft.known, draft.built_in)
        except PermissionDenied:
            return await self._stale(transaction, row, approver, "its author may not make it now")
        except (Aborted, InvalidArgument, FailedPrecondition) as error:
            return await self._stale(transaction, row, approver, error.message)
        applied = await self._config.write(transaction, row.tenant_id, submission, draft, author)
        said = ("approved_by", approvers)
        await self._endings.end(
            transaction, row, "applied", author, said, revision=applied.revision
        )
        return None

    async def _stale(
        self, transaction: Transaction, row: Any, approver: audit.Actor, why: str
    ) -> TenonError:
        await self._endings.end(transaction, row, "stale", approver, note=why)
        return Aborted(f"the change cannot take effect any more: {why}", reason="STALE_REVISION")

    async def _authority(self, tenant: str, author: audit.Actor) -> Authority:
        """What the author may do by the grants of this moment."""
        principal = await self._access.current(author.principal_id)
        if principal is None:
            raise PermissionDenied("its author is no longer known", reason="AUTHOR_UNKNOWN")
        method = author.method.rpartition("/")[2]
        return Authority(principal, BY_METHOD.get(method, APPLY), tenant)


async def _waiting(transaction: Transaction, tenant_id: UUID, pending_id: UUID) -> Any:
    row = await transaction.one(store.LOCK, tenant_id=tenant_id, pending_id=pending_id)
    if row is None:
        raise _absent(pending_id)
    if row.state != "pending":
        raise _over(row.state)
    return row


def _check_sign_in(verdict: Verdict) -> None:
    """Who makes a key for somebody must not be two persons by it."""
    if verdict.lent:
        raise PermissionDenied(
            "approve with your own sign-in, not by a key that somebody made for you",
            reason="LENT_KEY",
        )


def _check_approver(row: Any, actor: audit.Actor, earlier: Sequence[Any]) -> None:
    if actor.principal_id in {row.author_id, row.author_made_by} and not row.self_approval:
        raise PermissionDenied(
            "who submitted a change, or made the key that it came by, cannot approve it; "
            "somebody else must",
            reason="SELF_APPROVAL",
        )
    if any(one.principal_id == actor.principal_id for one in earlier):
        raise AlreadyExists("you have approved it already", reason="ALREADY_APPROVED")


def _author(row: Any) -> audit.Actor:
    """Who submitted, as they were then."""
    return audit.Actor(**{**row.author, "principal_id": row.author_id})


def _over(state: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the revision does not wait any more: it is {state}",
        reason="REVISION_NOT_PENDING",
        metadata={"state": state},
    )


def _absent(pending_id: UUID) -> NotFound:
    return NotFound(f"there is no pending revision {pending_id}")
