"""The one write path: plan and apply one tenant's wanted state.

An apply is one transaction: objects, sealed credentials, ownership, audit events, the revision, the
feed and the answer to this request. Whatever is thrown leaves nothing. A plan that needs approval
writes none of that but what lets it wait (`registry.staging`, then `registry.approvals`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Database, Transaction
from services.chassis.errors import Aborted, AlreadyExists, NotFound, PermissionDenied
from services.chassis.ids import uuid7
from services.chassis.tenancy import PLATFORM, Principal
from services.registry import answers
from services.registry.access.authority import Authority
from services.registry.audit import log as audit
from services.registry.audit.refusals import Attempt, Refusals
from services.registry.reviews.demands import Demand, demanded
from services.registry.reviews.staging import Staging, Waiting
from services.registry.store import tenants
from services.registry.store.tenants import Tenants
from services.registry.wanted.drafts import Draft, Drafts, Submission
from services.registry.wanted.plan import Plan
from services.registry.wanted.writing import Writer

BEGUN = failpoints.declare("apply.begun", "nothing is written: nothing changes")
HALF_WRITTEN = failpoints.declare("apply.half_written", "some objects are written: nothing changes")
BEFORE_COMMIT = failpoints.declare(
    "apply.before_commit", "all is written, not committed: nothing changes"
)
AFTER_COMMIT = failpoints.declare(
    "apply.after_commit", "committed, not answered: the same request_id answers"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who submits, by the permission of which call."""

    actor: audit.Actor
    principal: Principal
    permission: str

    @property
    def may_create(self) -> bool:
        """Whether they may make a tenant that is not there."""
        return self.principal.may("tenants.create", PLATFORM)

    def authority(self, tenant: str) -> Authority:
        """What they may do to one tenant's wanted state."""
        return Authority(self.principal, self.permission, tenant)

    def inside(self) -> "Caller":
        """They in a tenant that is there, where some grants count only with a reason."""
        if self.actor.reason:
            return self
        return replace(self, principal=self.principal.without_reason())


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did: the revision now, and the plan it followed.

    Nothing but the row of a pending revision where the plan waits for approval.
    """

    revision: int
    plan: Plan
    pending: Any = None


@dataclass(frozen=True, slots=True)
class Planned:
    """What an apply would do, and what that needs before it takes effect."""

    plan: Plan
    demand: Demand | None


Answer = Callable[[Applied], bytes]


class Config:
    """Plans and applies."""

    def __init__(
        self,
        database: Database,
        drafts: Drafts,
        writer: Writer,
        once: answers.Once,
        known: Tenants,
        log: audit.Log,
        staging: Staging,
    ) -> None:
        self._database = database
        self._drafts = drafts
        self._writer = writer
        self._once = once
        self._tenants = known
        self._log = log
        self._refusals = Refusals(database, log)
        self._staging = staging

    async def plan(self, submission: Submission, tenant_id: UUID | None, caller: Caller) -> Planned:
        """What an apply would do, by the same checks; keeps nothing."""
        authority = caller.authority(submission.tenant)
        if tenant_id is None:
            _allow_making(submission, caller)
            await self._tenants.check_unused(submission.tenant)
            authority.check(submission.declared, submission.source)
            draft = await self._drafts.first(submission)
        else:
            authority.check(submission.declared, submission.source)
            async with self._database.snapshot(tenant_id) as transaction:
                row = await tenants.read(transaction, tenant_id)
                draft = await self._drafts.make(transaction, submission, row)
        authority.check(draft.declared, submission.source)
        authority.check_gifts(draft.plan.changes, draft.known, draft.built_in)
        return _planned(draft)

    async def apply(
        self, submission: Submission, tenant_id: UUID | None, caller: Caller, answer: Answer
    ) -> bytes:
        """Apply; the answer's bytes, which a repeated request_id gets again."""
        if tenant_id is None:
            _allow_making(submission, caller)
        attempt = Attempt(tenant_id, caller.actor, "apply", submission.source, submission.commit)
        async with self._refusals.telling(attempt):
            return await self._applied(submission, tenant_id, caller, answer)

    async def _applied(
        self, submission: Submission, tenant_id: UUID | None, caller: Caller, answer: Answer
    ) -> bytes:
        if tenant_id is not None:
            return await self._apply(submission, tenant_id, caller, answer)
        try:
            return await self._apply(submission, uuid7(), caller, answer)
        except AlreadyExists:
            # Another apply made it meanwhile, perhaps this very request, sent twice.
            found = await self._tenants.find(submission.tenant)
            if found is None or found.state == "purged":
                raise
            return await self._apply(submission, found.tenant_id, caller.inside(), answer)

    async def _apply(
        self, submission: Submission, tenant_id: UUID, caller: Caller, answer: Answer
    ) -> bytes:
        actor, authority = caller.actor, caller.authority(submission.tenant)
        authority.check(submission.declared, submission.source)
        asked = self._asked(submission, tenant_id, actor)
        async with self._database.tenant(tenant_id) as transaction:
            row = await tenants.lock(transaction, tenant_id)
            kept = await self._once.kept(transaction, asked)
            if kept is not None:
                return kept
            BEGUN.hit()
            draft = await self.draft(transaction, submission, row)
            authority.check(draft.declared, submission.source)
            authority.check_gifts(draft.plan.changes, draft.known, draft.built_in)
            applied = await self._take(transaction, tenant_id, submission, draft, caller)
            body = answer(applied)
            await transaction.pipeline(self._once.keeping(asked, body))
            BEFORE_COMMIT.hit()
        AFTER_COMMIT.hit()
        return body

    def _asked(
        self, submission: Submission, tenant_id: UUID, actor: audit.Actor
    ) -> answers.Asked | None:
        if submission.request_id is None:
            return None
        return answers.Asked(
            tenant_id,
            actor.principal_id,
            submission.method,
            submission.request_id,
            submission.digest,
        )

    async def draft(self, transaction: Transaction, submission: Submission, row: Any) -> Draft:
        """What a submission would do to a tenant's locked row, if that is what was looked at.

        Raises Aborted for another plan or state, InvalidArgument with every fault.
        """
        draft = await self._drafts.make(transaction, submission, row)
        _same_plan(submission, draft)
        return draft

    async def _take(
        self,
        transaction: Transaction,
        tenant_id: UUID,
        submission: Submission,
        draft: Draft,
        caller: Caller,
    ) -> Applied:
        """Write a draft, or let it wait for the approval that it needs."""
        demand = demanded(draft.plan, draft.known)
        if demand is None:
            return await self.write(transaction, tenant_id, submission, draft, caller.actor)
        behind = caller.principal.lent_by
        waiting = Waiting(tenant_id, submission, draft, caller.actor, demand, behind)
        pending = await self._staging.submit(transaction, waiting)
        return Applied(draft.plan.base_revision, draft.plan, pending)

    async def write(
        self,
        transaction: Transaction,
        tenant_id: UUID,
        submission: Submission,
        draft: Draft,
        actor: audit.Actor,
    ) -> Applied:
        """Everything but the answer, in few round trips: others wait for this tenant."""
        plan = draft.plan
        revision = plan.base_revision + bool(plan.changes)
        occasion = audit.Occasion(tenant_id, actor, revision, plan.source, submission.commit)
        statements, events = await self._writer.statements(transaction, draft, occasion)
        half = len(statements) // 2
        await transaction.pipeline(statements[:half])
        HALF_WRITTEN.hit()
        await transaction.pipeline(statements[half:])
        await self._log.append(transaction, tenant_id, actor, events)
        return Applied(revision, plan)


def _planned(draft: Draft) -> Planned:
    return Planned(draft.plan, demanded(draft.plan, draft.known))


def _allow_making(submission: Submission, caller: Caller) -> None:
    """Whether the tenant, which is not there, may be made; asked before anything is checked."""
    if not caller.may_create:
        raise PermissionDenied(f"permission tenants.create denied on tenants/{submission.tenant}")
    if all(one.key != ("Tenant", submission.tenant) for one in submission.declared):
        raise NotFound(
            f"tenants/{submission.tenant} does not exist; a Tenant document would make it"
        )


def _same_plan(submission: Submission, draft: Draft) -> None:
    """Refuse to apply another plan than the one that was looked at."""
    if submission.plan_hash not in {"", draft.plan.digest()}:
        raise Aborted("the plan would now be another one; plan again", reason="PLAN_CHANGED")
