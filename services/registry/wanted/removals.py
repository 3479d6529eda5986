"""Whether objects may be deleted: they are there, nothing refers to them, nobody else set them."""

from collections.abc import Iterator, Mapping, Sequence

from services.chassis.constraints import references
from services.chassis.errors import FailedPrecondition, NotFound, Violation
from services.registry.wanted.checks import violation
from services.registry.wanted.objects import Complete, Declared, Key, Schemas
from services.registry.wanted.plan import Ownership, Plan


def check(
    plan: Plan,
    declared: Sequence[Declared],
    known: Mapping[Key, Complete],
    ownership: Ownership,
    schemas: Schemas,
    *,
    force: bool,
) -> None:
    """Let a plan's deletions pass, or raise with every fault; `known` is what will be left.

    Raises NotFound for what is not there, FailedPrecondition IN_USE for what others refer to, and
    OWNED_BY_ANOTHER for what another source has set fields of, unless with `force`.
    """
    gone = [change.after.key for change in plan.changes if change.action == "delete"]
    absent = [one.key for one in declared if one.absent and one.key not in gone]
    if absent:
        kind, name = absent[0]
        raise NotFound(f"there is no {kind} {name}", violations=[_missing(key) for key in absent])
    used = [one for key in gone for one in _uses(key, known, schemas)]
    if used:
        raise FailedPrecondition(
            "what others refer to is not deleted", reason="IN_USE", violations=used
        )
    owned = [] if force else [one for key in gone for one in _owners(key, ownership, plan.source)]
    if owned:
        raise FailedPrecondition(
            "what another source has set is deleted by that source, or by force",
            reason="OWNED_BY_ANOTHER",
            violations=owned,
        )


def _missing(key: Key) -> Violation:
    return violation(key, "", "is not there")


def _uses(key: Key, known: Mapping[Key, Complete], schemas: Schemas) -> Iterator[Violation]:
    for one in known.values():
        for path, kind, name in references(schemas[one.kind], one.spec(), "spec"):
            if (kind, name) == key:
                yield violation(key, "", f"{one.kind} {one.name} refers to it ({path})")


def _owners(key: Key, ownership: Ownership, source: str) -> Iterator[Violation]:
    for owner, fields in sorted(ownership.get(key, {}).items()):
        if owner != source and fields:
            yield violation(key, "", f"source {owner} has set it: delete it there, or by force")
