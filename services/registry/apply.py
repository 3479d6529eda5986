"""The one write path: plan and apply one tenant's wanted state.

An apply is one transaction: objects, sealed credentials, ownership, audit events, the revision, the
feed and the answer to this request. Whatever is thrown leaves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Database, Transaction
from services.chassis.errors import Aborted, AlreadyExists, NotFound, PermissionDenied
from services.chassis.ids import uuid7
from services.registry import answers, audit
from services.registry.drafts import Draft, Drafts, Submission
from services.registry.plan import Plan
from services.registry.store import tenants
from services.registry.store.tenants import Tenants
from services.registry.vault import Vault
from services.registry.writing import Writer

METHOD: Final = "ApplyConfig"

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
    """Who submits, and whether they may make a tenant that is not there."""

    actor: audit.Actor
    may_create: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did: the revision now, and the plan it followed."""

    revision: int
    plan: Plan


Answer = Callable[[Applied], bytes]


class Config:
    """Plans and applies."""

    def __init__(
        self,
        database: Database,
        drafts: Drafts,
        writer: Writer,
        vault: Vault,
        known: Tenants,
        log: audit.Log,
    ) -> None:
        self._database = database
        self._drafts = drafts
        self._writer = writer
        self._vault = vault
        self._tenants = known
        self._log = log

    async def plan(self, submission: Submission, tenant_id: UUID | None, caller: Caller) -> Plan:
        """What an apply would do, by the same checks; keeps nothing."""
        if tenant_id is None:
            _allow_making(submission, caller)
            return self._drafts.first(submission).plan
        async with self._database.snapshot(tenant_id) as transaction:
            row = await tenants.read(transaction, tenant_id)
            return (await self._drafts.make(transaction, submission, row)).plan

    async def apply(
        self, submission: Submission, tenant_id: UUID | None, caller: Caller, answer: Answer
    ) -> bytes:
        """Apply; the answer's bytes, which a repeated request_id gets again."""
        if tenant_id is not None:
            return await self._apply(submission, tenant_id, caller.actor, answer)
        _allow_making(submission, caller)
        try:
            return await self._apply(submission, uuid7(), caller.actor, answer)
        except AlreadyExists:
            # Another apply made it meanwhile, perhaps this very request, sent twice.
            found = await self._tenants.find(submission.tenant)
            if found is None:
                raise
            return await self._apply(submission, found.tenant_id, caller.actor, answer)

    async def _apply(
        self, submission: Submission, tenant_id: UUID, actor: audit.Actor, answer: Answer
    ) -> bytes:
        asked = self._asked(submission, tenant_id, actor)
        async with self._database.tenant(tenant_id) as transaction:
            row = await tenants.lock(transaction, tenant_id)
            kept = await answers.kept(transaction, asked) if asked else None
            if kept is not None:
                return kept
            BEGUN.hit()
            draft = await self._drafts.make(transaction, submission, row)
            _same_plan(submission, draft)
            applied = await self._write(transaction, tenant_id, submission, draft, actor)
            body = answer(applied)
            if asked is not None:
                await transaction.pipeline(answers.keeping(asked, body))
            BEFORE_COMMIT.hit()
        AFTER_COMMIT.hit()
        return body

    def _asked(
        self, submission: Submission, tenant_id: UUID, actor: audit.Actor
    ) -> answers.Asked | None:
        if submission.request_id is None:
            return None
        digest = self._vault.request_hash(submission.tenant, submission.digest)
        return answers.Asked(tenant_id, actor.principal_id, METHOD, submission.request_id, digest)

    async def _write(
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
