"""What a submission would do to one tenant, checked: plan and apply both begin here."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from services.chassis import constraints
from services.chassis.database import Transaction
from services.chassis.errors import Aborted
from services.chassis.secret import Secret
from services.providers.catalog import Catalog
from services.registry.checks import Checks, check_declared, refuse
from services.registry.plan import Ownership, Plan, make_plan
from services.registry.store import objects, revisions, tenants
from services.registry.vault import Vault
from services.registry.wanted import SECRET_VALUES, Complete, Declared, Key, Schemas, spec_of


@dataclass(frozen=True, slots=True)
class Submission:
    """What one caller wants of one tenant."""

    tenant: str
    source: str
    declared: tuple[Declared, ...]
    base_revision: int | None = None
    plan_hash: str = ""
    request_id: UUID | None = None
    commit: str = ""
    # Tells a repeated request from another one with its id; made of secrets, too.
    digest: Secret = field(default_factory=lambda: Secret(b""))


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked plan with everything needed to write it."""

    plan: Plan
    declared: tuple[Declared, ...]
    # Every object of the tenant as it will be.
    known: Mapping[Key, Complete]
    ownership: Ownership


class Drafts:
    """Makes drafts."""

    def __init__(self, catalog: Catalog, schemas: Schemas, vault: Vault) -> None:
        self._schemas = schemas
        self._vault = vault
        self._checks = Checks(catalog, schemas)

    async def make(self, transaction: Transaction, submission: Submission, row: Any) -> Draft:
        """The draft against a tenant's row, or against nothing where there is none.

        Raises Aborted for a plan made for another state, InvalidArgument with every fault.
        """
        _at_base(submission, row.revision if row is not None else 0)
        refuse(check_declared(submission.declared, submission.tenant, self._schemas))
        if row is None:
            return self.first(submission)
        current = {one.key: one for one in await objects.everything(transaction, row.tenant_id)}
        current["Tenant", row.slug] = tenants.complete(row)
        keys = [one.key for one in submission.declared]
        ownership = await revisions.ownership(transaction, row.tenant_id, keys)
        return self._draft(submission, row.revision, current, ownership)

    def first(self, submission: Submission) -> Draft:
        """The draft that makes the tenant."""
        refuse(check_declared(submission.declared, submission.tenant, self._schemas))
        return self._draft(submission, 0, {}, {})

    def _draft(
        self,
        submission: Submission,
        base: int,
        current: Mapping[Key, Complete],
        ownership: Ownership,
    ) -> Draft:
        declared = [self._filled(submission.tenant, one) for one in submission.declared]
        tenant, source = submission.tenant, submission.source
        plan = make_plan(tenant, source, base, declared, current, ownership, self._schemas)
        changed = {change.after.key: change.after for change in plan.changes}
        known = {**current, **changed}
        refuse(self._checks.check(self._touched(changed.keys(), known), known))
        return Draft(plan, tuple(declared), known, ownership)

    def _filled(self, tenant: str, one: Declared) -> Declared:
        """The declared object with nested defaults spelt out and secrets as fingerprints."""
        said = spec_of(one.fields)
        rules = [rule for rule in self._schemas[one.kind] if rule.name in said]
        spec = {f"spec.{name}": value for name, value in constraints.filled(rules, said).items()}
        secrets = {
            part: self._vault.fingerprint(tenant, one.name, part, value)
            for part, value in one.secrets.items()
        }
        return replace(
            one, fields={**one.fields, **spec, **({SECRET_VALUES: secrets} if secrets else {})}
        )

    def _touched(self, changed: Set[Key], known: Mapping[Key, Complete]) -> Sequence[Complete]:
        """The changed objects, and those that refer to one: what was right may now be wrong."""
        return [
            one
            for one in known.values()
            if one.key in changed or not changed.isdisjoint(self._refers(one))
        ]

    def _refers(self, one: Complete) -> Sequence[Key]:
        found = constraints.references(self._schemas[one.kind], one.spec(), "spec")
        return [(kind, name) for _, kind, name in found]


def _at_base(submission: Submission, revision: int) -> None:
    """Refuse before all else what was planned for another state: its other faults are stale."""
    if submission.base_revision is not None and submission.base_revision != revision:
        raise Aborted(
            f"the plan was made for revision {submission.base_revision}, "
            f"the tenant is at {revision}; plan again",
            reason="STALE_PLAN",
        )
