"""What a submission would do to one tenant, checked: plan and apply both begin here."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from services.chassis import constraints
from services.chassis.database import Transaction
from services.chassis.envelope import Unsealable
from services.chassis.errors import Aborted, Violation
from services.chassis.sealed_box import NotASeal, Purpose
from services.chassis.secret import Secret
from services.providers.catalog import Catalog
from services.registry.access import roles
from services.registry.keys.sealing_keys import SealingKeys
from services.registry.keys.vault import Vault
from services.registry.store import objects, revisions, tenants
from services.registry.store.roles import BuiltInRoles
from services.registry.wanted import removals, shorthands
from services.registry.wanted.checks import Checks, check_declared, refuse, violation
from services.registry.wanted.objects import (
    SECRET_VALUES,
    Complete,
    Declared,
    Key,
    Schemas,
    spec_of,
)
from services.registry.wanted.plan import Ownership, Plan, make_plan

NOT_OPENED: Final = (
    "was not sealed for this tenant, kind, name and part, or by a key of another deployment"
)


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
    # Also deletes what other sources have set fields of.
    force: bool = False
    # The call that brings it.
    method: str = "ApplyConfig"
    # Tells a repeated request from another one with its id; made of secrets, too.
    digest: Secret = field(default_factory=lambda: Secret(b""))


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked plan with everything needed to write it.

    `declared` has what shorthands stand for, too, where that changes.
    """

    plan: Plan
    declared: tuple[Declared, ...]
    # Every object of the tenant as it will be.
    known: Mapping[Key, Complete]
    ownership: Ownership
    # What the built-in roles allow.
    built_in: roles.BuiltIn


class Drafts:
    """Makes drafts."""

    def __init__(
        self,
        catalog: Catalog,
        schemas: Schemas,
        vault: Vault,
        built_in: BuiltInRoles,
        sealing_keys: SealingKeys,
    ) -> None:
        self._sealing_keys = sealing_keys
        self._schemas = schemas
        self._built_in = built_in
        self._vault = vault
        self._checks = Checks(catalog, schemas)

    async def make(self, transaction: Transaction, submission: Submission, row: Any) -> Draft:
        """The draft against a tenant's row, or against nothing where there is none.

        Raises Aborted for a plan made for another state, InvalidArgument with every fault.
        """
        _at_base(submission, row.revision if row is not None else 0)
        refuse(check_declared(submission.declared, submission.tenant, self._schemas))
        if row is None:
            return await self.first(submission)
        submission = await self._unsealed(submission)
        current = {one.key: one for one in await objects.everything(transaction, row.tenant_id)}
        current["Tenant", row.slug] = tenants.complete(row)
        keys = [key for one in submission.declared for key in _concerned(one)]
        ownership = await revisions.ownership(transaction, row.tenant_id, keys)
        built_in = await self._built_in.allowed()
        return self._draft(submission, row.revision, current, ownership, built_in)

    async def first(self, submission: Submission) -> Draft:
        """The draft that makes the tenant."""
        refuse(check_declared(submission.declared, submission.tenant, self._schemas))
        submission = await self._unsealed(submission)
        return self._draft(submission, 0, {}, {}, await self._built_in.allowed())

    async def _unsealed(self, submission: Submission) -> Submission:
        """The submission with what was sealed to us opened. Raises InvalidArgument, every fault."""
        if not any(one.sealed for one in submission.declared):
            return submission
        faults: list[Violation] = []
        declared = [
            await self._opened(submission.tenant, one, faults) for one in submission.declared
        ]
        refuse(faults)
        return replace(submission, declared=tuple(declared))

    async def _opened(self, tenant: str, one: Declared, faults: list[Violation]) -> Declared:
        found = dict(one.secrets)
        for part, text in one.sealed.items():
            purpose = Purpose(tenant, one.kind, one.name, part)
            try:
                found[part] = await self._sealing_keys.opened(purpose, text)
            except (NotASeal, Unsealable):
                faults.append(violation(one.key, f"{SECRET_VALUES}.{part}", NOT_OPENED))
        return replace(one, secrets=found, sealed={})

    def _draft(
        self,
        submission: Submission,
        base: int,
        current: Mapping[Key, Complete],
        ownership: Ownership,
        built_in: roles.BuiltIn,
    ) -> Draft:
        tenant, source = submission.tenant, submission.source
        declared = [self._filled(tenant, one) for one in submission.declared]
        plan = make_plan(tenant, source, base, declared, current, ownership, self._schemas)
        known = _known(plan, current)
        expanded = self._expanded(tenant, declared, current, known)
        if expanded:
            declared += expanded
            plan = make_plan(tenant, source, base, declared, current, ownership, self._schemas)
            known = _known(plan, current)
        changed = {one.after.key for one in plan.changes if one.action != "delete"}
        touched = self._touched(changed, known)
        of_access = (
            violation(one.key, path, sentence)
            for one in touched
            for path, sentence in roles.faults(one, known, built_in)
        )
        faults = [*self._checks.check(touched, known), *of_access]
        faults = [shorthands.blamed(each, known) for each in faults]
        refuse([*shorthands.taken(submission.declared, current), *faults])
        if any(one.absent for one in declared):
            # What a shorthand stands for goes with it, whoever had set that.
            with_it = {one.key for one in expanded}
            owned = {key: owners for key, owners in ownership.items() if key not in with_it}
            removals.check(plan, declared, known, owned, self._schemas, force=submission.force)
        return Draft(plan, tuple(declared), known, ownership, built_in)

    def _expanded(
        self,
        tenant: str,
        declared: Sequence[Declared],
        current: Mapping[Key, Complete],
        known: Mapping[Key, Complete],
    ) -> list[Declared]:
        """What shorthands stand for, where that is not so yet, and is to go or to be."""
        found = shorthands.following(declared, current, known)
        filled = [one if one.absent else self._filled(tenant, one) for one in found]
        return [one for one in filled if one.absent or _differs(one, current.get(one.key))]

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


def _concerned(one: Declared) -> Sequence[Key]:
    """What a document is about, and what it may come to stand for."""
    return [one.key, *(shorthands.keys_of(one.name) if one.kind == "Integration" else ())]


def _known(plan: Plan, current: Mapping[Key, Complete]) -> dict[Key, Complete]:
    """Every object as a plan leaves it."""
    changed = {one.after.key: one.after for one in plan.changes if one.action != "delete"}
    gone = {one.after.key for one in plan.changes if one.action == "delete"}
    return {key: one for key, one in {**current, **changed}.items() if key not in gone}


def _differs(one: Declared, there: Complete | None) -> bool:
    """Whether an object is not as it is declared."""
    return there is None or any(there.fields[at] != value for at, value in one.fields.items())


def _at_base(submission: Submission, revision: int) -> None:
    """Refuse before all else what was planned for another state: its other faults are stale."""
    if submission.base_revision is not None and submission.base_revision != revision:
        raise Aborted(
            f"the plan was made for revision {submission.base_revision}, "
            f"the tenant is at {revision}; plan again",
            reason="STALE_PLAN",
        )
