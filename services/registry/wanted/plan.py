"""The pure difference between what is and what is wanted.

Ownership is a three-way merge: a field the document says is taken; a field this source had set and
now leaves out returns to its default; a field it never set is left as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from services.chassis.rules import FieldRule, Risk
from services.registry.audit.risks import risk_of
from services.registry.wanted.objects import (
    ORDER,
    Complete,
    Declared,
    Fields,
    Key,
    Schemas,
    absent_fields,
    top_field,
)


class _Nothing:
    """Where there was, or will be, no value at all."""

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()

# For each key: the fields each source has set.
Ownership = Mapping[Key, Mapping[str, frozenset[str]]]


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One place that differs, as deep as it goes; `owner` is another source that had set it."""

    path: str
    before: Any
    after: Any
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One object to be made, changed or deleted, with its state before and after.

    `after` of a deleted one is as it was last.
    """

    action: Literal["create", "update", "delete"]
    before: Complete | None
    after: Complete
    fields: tuple[FieldChange, ...]
    risk: Risk
    declared: Declared


@dataclass(frozen=True, slots=True)
class Plan:
    """All that an apply would do to one tenant."""

    tenant: str
    source: str
    base_revision: int
    changes: tuple[Change, ...]
    unchanged: int

    def digest(self) -> str:
        """SHA-256 in hex over the base, the source and every change; secrets by fingerprint."""
        words = {
            "tenant": self.tenant,
            "source": self.source,
            "base": self.base_revision,
            "changes": [_words(change) for change in self.changes],
        }
        text = json.dumps(words, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def count(self, action: str) -> int:
        """How many objects the action is done to."""
        return sum(change.action == action for change in self.changes)


def make_plan(
    tenant: str,
    source: str,
    base_revision: int,
    declared: Iterable[Declared],
    current: Mapping[Key, Complete],
    ownership: Ownership,
    schemas: Schemas,
) -> Plan:
    """The plan for the declared objects; objects that are not declared stay.

    Deletions come last, and what refers before what it refers to.
    """
    ordered = sorted(declared, key=lambda one: (ORDER.index(one.kind), one.name))
    kept = [one for one in ordered if not one.absent]
    gone = [one for one in reversed(ordered) if one.absent]
    changes = []
    for one in (*kept, *gone):
        owners = ownership.get(one.key, {})
        difference = _removal if one.absent else _change
        change = difference(one, current.get(one.key), owners, source, schemas[one.kind])
        if change is not None:
            changes.append(change)
    return Plan(tenant, source, base_revision, tuple(changes), len(ordered) - len(changes))


def merge(
    declared: Fields, current: Fields | None, owned: frozenset[str], schema: tuple[FieldRule, ...]
) -> dict[str, Any]:
    """The fields an object will have."""
    absent = absent_fields(schema)
    left = absent if current is None else {**absent, **current}
    return {
        path: declared.get(path, absent[path] if path in owned else left[path]) for path in absent
    }


def differences(before: Any, after: Any, path: str) -> Iterator[FieldChange]:
    """Every deepest place in which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else key
            yield from differences(before.get(key, NOTHING), after.get(key, NOTHING), inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{path}[{index}]")
    elif not _same(before, after):
        yield FieldChange(path, before, after)


def _change(
    declared: Declared,
    current: Complete | None,
    owners: Mapping[str, frozenset[str]],
    source: str,
    schema: tuple[FieldRule, ...],
) -> Change | None:
    before = current.fields if current else None
    owned = owners.get(source, frozenset())
    after = merge(declared.fields, before, owned, schema)
    shown = absent_fields(schema) if before is None else before
    found = tuple(
        _owned(differing, owners, source)
        for path in after
        for differing in differences(shown.get(path, NOTHING), after[path], path)
    )
    if current is not None and not found:
        return None
    complete = Complete(
        declared.kind,
        declared.name,
        after,
        current.object_id if current else None,
        current.version if current else 0,
    )
    action: Literal["create", "update"] = "update" if current else "create"
    risk = risk_of(declared.kind, action, (field.path for field in found), schema)
    return Change(action, current, complete, found, risk, declared)


def _removal(
    declared: Declared,
    current: Complete | None,
    owners: Mapping[str, frozenset[str]],
    source: str,
    schema: tuple[FieldRule, ...],
) -> Change | None:
    """The end of an object, told by every field that says something."""
    if current is None:
        return None
    absent = absent_fields(schema)
    found = tuple(
        _owned(FieldChange(path, value, NOTHING), owners, source)
        for path, value in current.fields.items()
        # An empty Struct says the same as none.
        if value != {} and not _same(value, absent.get(path, NOTHING))
    )
    return Change("delete", current, current, found, risk_of(current.kind, "delete"), declared)


def _owned(change: FieldChange, owners: Mapping[str, frozenset[str]], source: str) -> FieldChange:
    top = top_field(change.path)
    other = next(
        (name for name, fields in sorted(owners.items()) if name != source and top in fields), ""
    )
    return FieldChange(change.path, change.before, change.after, other) if other else change


def _same(before: Any, after: Any) -> bool:
    # JSON's true is not its 1, which Python would call equal.
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    # PostgreSQL gives 1e23 back as a whole number, which is not exactly the same.
    if isinstance(before, int | float) and isinstance(after, int | float):
        return float(before) == float(after)
    return bool(before == after)


def _words(change: Change) -> list[Any]:
    fields = [[f.path, _word(f.before), _word(f.after)] for f in change.fields]
    return [change.action, change.after.kind, change.after.name, fields]


def _word(value: Any) -> list[Any]:
    return [] if value is NOTHING else [value]
