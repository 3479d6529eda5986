"""Who may change what of a tenant, and that nobody gives away more than they have: pure.

All faults at once, as PermissionDenied with a violation per document.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.chassis.errors import PermissionDenied, Violation
from services.chassis.tenancy import ANY_SOURCE, Grant, Principal
from services.registry.access.roles import BuiltIn, Known, bindings_of, given
from services.registry.wanted.checks import violation
from services.registry.wanted.objects import Complete, Declared
from services.registry.wanted.plan import Change

ALSO_NEEDED: Final[Mapping[str, str]] = {
    "Role": "access.manage",
    "RoleBinding": "access.manage",
    "ReviewPolicy": "access.manage",
}
"""What a change of a kind needs besides the permission of the call that brings it."""

BY_DOCUMENT: Final = frozenset({"config.plan", "config.apply", "config.approve", "access.manage"})
"""The permissions that a grant's kinds and sources narrow."""

MOST_NAMED: Final = 5

_GIVES: Final = ("spec.role", "spec.subject", "spec.kinds", "spec.sources")


@dataclass(frozen=True, slots=True)
class Authority:
    """What one caller may do to one tenant's wanted state by the permission of one call."""

    principal: Principal
    permission: str
    tenant: str

    def check(self, declared: Iterable[Declared], source: str) -> None:
        """Raise PermissionDenied for documents of a kind or source the caller may not change."""
        _refuse(
            [
                violation(one.key, "", _needs(permission, one.kind, source))
                for one in declared
                for permission in (self.permission, ALSO_NEEDED.get(one.kind))
                if permission and not self._may_change(permission, one.kind, source)
            ],
            self.tenant,
        )

    def check_gifts(self, changes: Iterable[Change], known: Known, built_in: BuiltIn) -> None:
        """Raise PermissionDenied for Roles and RoleBindings that give what the caller has not."""
        _refuse(
            [
                violation(change.after.key, path, sentence)
                for change in changes
                if change.action != "delete"
                for path, sentence in self._too_much(change, known, built_in)
            ],
            self.tenant,
        )

    def _may_change(self, permission: str, kind: str, source: str) -> bool:
        return self.principal.may_change(permission, self.tenant, kind, source)

    def _too_much(
        self, change: Change, known: Known, built_in: BuiltIn
    ) -> Iterator[tuple[str, str]]:
        if change.after.kind == "Role":
            yield from self._of_role(change.before, change.after, known, built_in)
        elif change.after.kind == "RoleBinding" and _gives_otherwise(change):
            grant = given(change.after, known, built_in)
            more = lacking(self.principal, self.tenant, grant)
            if more:
                yield "spec.role", f"gives more than you have here: {_some(more)}"

    def _of_role(
        self, before: Complete | None, after: Complete, known: Known, built_in: BuiltIn
    ) -> Iterator[tuple[str, str]]:
        """What is added to a role is given to all who are bound to it."""
        had = frozenset(before.spec()["permissions"] if before else ())
        added = frozenset(after.spec()["permissions"]) - had
        own = [each for each in sorted(added) if not self.principal.may(each, self.tenant)]
        if own:
            yield "spec.permissions", f"is more than you have here: {_some(own)}"
        for binding in bindings_of(after.name, known):
            gift = replace(given(binding, known, built_in), permissions=added - frozenset(own))
            more = lacking(self.principal, self.tenant, gift)
            if more:
                words = f"RoleBinding {binding.name} would give more than you have here"
                yield "spec.permissions", f"{words}: {_some(more)}"


def lacking(principal: Principal, tenant: str, grant: Grant) -> list[str]:
    """The permissions of a grant which a principal has not there, or not as widely."""
    held = principal.grants(tenant)
    return [
        each
        for each in sorted(grant.permissions)
        if not (
            any(_reaches(one, grant, each) for one in held)
            if each in BY_DOCUMENT
            else principal.may(each, tenant)
        )
    ]


def _reaches(held: Grant, grant: Grant, permission: str) -> bool:
    """Whether one grant allows a permission for every kind and source that another names."""
    return (
        permission in held.permissions
        and (not held.kinds or (bool(grant.kinds) and grant.kinds <= held.kinds))
        and (ANY_SOURCE in held.sources or grant.sources <= held.sources)
    )


def _gives_otherwise(change: Change) -> bool:
    before = change.before
    return before is None or any(before.fields[at] != change.after.fields[at] for at in _GIVES)


def _some(words: Sequence[str]) -> str:
    rest = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + rest


def _needs(permission: str, kind: str, source: str) -> str:
    return f"you have no {permission} here for the kind {kind} as source {source}"


def _refuse(faults: Sequence[Violation], tenant: str) -> None:
    if faults:
        count = "one document" if len(faults) == 1 else f"{len(faults)} documents"
        raise PermissionDenied(
            f"{count} may not be changed so by you in tenants/{tenant}", violations=faults
        )
