"""Reads YAML nodes into JSON-like values along the contract, which is the schema."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from config.jsonlike import JsonReader
from config.nodes import Entry, Fields, Items
from config.problems import Mark, Report
from config.secretrefs import FORMS, SecretRef, read_secret_ref
from config.values import (
    read_duration,
    read_flag,
    read_number,
    read_text,
    text_fault,
    wrong_type,
)
from services.chassis.constraints import NAME_LIKE, did_you_mean, faults
from services.chassis.rules import FieldRule, Shape


@dataclass(slots=True)
class Walk:
    """Reads one document. What is wrong goes into the report; what is read is kept beside it.

    `folder` is the document's own and `root` the source's: a secret's file stands inside.
    """

    report: Report
    folder: Path
    root: Path
    marks: dict[str, Mark] = field(default_factory=dict)
    secrets: dict[str, SecretRef] = field(default_factory=dict)
    _broken: set[str] = field(default_factory=set)

    def read(self, fields: Sequence[FieldRule], entry: Entry, path: str) -> dict[str, Any]:
        """A message's value as far as it is good; the fields' constraints are checked."""
        value = self.message(fields, entry, path)
        for place, fault in faults(fields, value, path):
            if not self._is_broken(place):
                self.report.add(self.mark_at(place), f"{place.rpartition('.')[2]} {fault}")
        return value

    def _is_broken(self, path: str) -> bool:
        """Whether a problem is noted already, of the path or of something around it."""
        return any(each in self._broken for each in _and_around(path))

    def mark_at(self, path: str) -> Mark:
        """The place of a path, or of the nearest one around it."""
        return mark_at(self.marks, path)

    def message(self, fields: Sequence[FieldRule], entry: Entry, path: str) -> dict[str, Any]:
        """A message's value as far as it is good."""
        self.marks[path] = entry.place
        if not isinstance(entry.node, Fields):
            wrong_type(entry, "a mapping", self.report)
            self._broken.add(path)
            return {}
        known = {each.name: each for each in fields}
        found: dict[str, Any] = {}
        for each in entry.node.entries:
            if each.key in known:
                self._keep(found, each.key, f"{path}.{each.key}", known[each.key], each)
            else:
                unknown_field(each, known, self.report)
        return found

    def _keep(
        self, found: dict[str, Any], key: str, path: str, rule: FieldRule, entry: Entry
    ) -> None:
        """Put the field's value into `found`, or its path among the broken ones."""
        self.marks[path] = entry.place
        value = None if self.report.full else _MANY[rule.many](self, rule, entry, path)
        if value == "":
            self.report.add(entry.place, f"{key} is empty: leave it out, or say what is wanted")
        if value is None or value == "":
            self._broken.add(path)
        else:
            found[key] = value

    def one(self, rule: FieldRule, entry: Entry, path: str) -> Any:
        """A single value; None when it is wrong. What is inside a message is told apart."""
        return _SHAPES[rule.shape](self, rule, entry, path)

    def list_of(self, rule: FieldRule, entry: Entry, path: str) -> list[Any] | None:
        """A list; None when it or an item is wrong."""
        if not isinstance(entry.node, Items):
            wrong_type(entry, "a list", self.report)
            return None
        found = []
        for index, node in enumerate(entry.node.items):
            inner = f"{path}[{index}]"
            self.marks[inner] = node.mark
            found.append(self.one(rule, Entry("", node.mark, node), inner))
        return None if None in found else found

    def map_of(self, rule: FieldRule, entry: Entry, path: str) -> dict[str, Any] | None:
        """A mapping of names the contract does not know; None when it or a value is wrong."""
        if not isinstance(entry.node, Fields):
            words = f"a mapping of names to {FORMS}" if rule.shape == "secret" else "a mapping"
            wrong_type(entry, words, self.report)
            return None
        found: dict[str, Any] = {}
        for each in entry.node.entries:
            inner = f"{path}.{each.key}"
            self.marks[inner] = each.place
            good = self._key_is_good(rule, each)
            found[each.key] = self.one(rule, each, inner) if good else None
        return None if None in found.values() else found

    def _key_is_good(self, rule: FieldRule, entry: Entry) -> bool:
        fault = text_fault(entry.key)
        if rule.shape == "secret" and not NAME_LIKE.fullmatch(entry.key):
            fault = f"not the name of a secret part; write a name such as token, then {FORMS}"
        if fault:
            self.report.add(entry.mark, fault)
        return not fault


def mark_at(marks: Mapping[str, Mark], path: str) -> Mark:
    """The place of a path such as `spec.steps[1].integration`, or of the nearest one around it.

    `""` must have a place.
    """
    return next(marks[each] for each in _and_around(path) if each in marks)


def _and_around(path: str) -> Iterator[str]:
    """`a.b[1]`, `a.b`, `a` and the empty path."""
    yield path
    while path:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
        yield path


def unknown_field(entry: Entry, known: Iterable[str], report: Report) -> None:
    """Note a key that nothing is known of. It may be a misplaced secret, so it is not shown."""
    if not report.full:
        words = list(known)
        guess = did_you_mean(entry.key, words)
        report.add(entry.mark, f"unknown field{guess}; known here: {', '.join(words)}")


Reader = Callable[[Walk, FieldRule, Entry, str], Any]

_MANY: Final[dict[str, Reader]] = {"one": Walk.one, "list": Walk.list_of, "map": Walk.map_of}


def _secret(walk: Walk, _rule: FieldRule, entry: Entry, path: str) -> dict[str, Any] | None:
    ref = read_secret_ref(entry, walk.report, walk.folder, walk.root)
    if ref is None:
        return None
    walk.secrets[path] = ref
    return {}


_SHAPES: Final[dict[Shape, Reader]] = {
    "text": lambda walk, _rule, entry, _path: read_text(entry, walk.report),
    "flag": lambda walk, _rule, entry, _path: read_flag(entry, walk.report),
    "number": lambda walk, _rule, entry, _path: read_number(entry, walk.report),
    "duration": lambda walk, _rule, entry, _path: read_duration(entry, walk.report),
    "json": lambda walk, _rule, entry, path: JsonReader(walk.report, walk.marks).read(entry, path),
    "message": lambda walk, rule, entry, path: walk.message(rule.fields, entry, path),
    "secret": _secret,
}
