"""Turns the events of PyYAML's safe loader into nodes, and refuses what a document never needs.

Aliases, anchors, tags and merge keys are refused: a few lines of them can mean gigabytes. Nodes are
built here from events, without recursion, so that depth is checked before anything is built.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeGuard

import yaml

from config.loader import SourceFile
from config.nodes import Entry, Fields, Items, Node, Scalar, kind_of_plain
from config.problems import Mark, Report

DEEPEST: Final = 40
"""Levels of lists and mappings."""

# The same parser in C where the wheel has it: thirty times as fast (measured on 1 MiB).
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
"""Characters no YAML file may hold. Source: YAML 1.2.2 §5.1."""
_LINE_BREAK: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""What the parser counts lines by. Source: YAML 1.1 §4.1.4."""
_TAB_INDENT: Final = re.compile(r"[ -]*\t")


class _StopError(Exception):
    """Reading on makes no sense; why is in the report."""


def compose(source: SourceFile, report: Report) -> list[Node]:
    """Every document of a file up to its first syntax error; empty ones are left out."""
    if found := _UNPRINTABLE.search(source.text):
        report.add(_mark_at(source, found.start()), "a character that YAML does not permit")
        return []
    composer = _Composer(source.name, report)
    try:
        composer.run(yaml.parse(source.text, Loader=_LOADER))
    except _StopError:
        pass
    except yaml.MarkedYAMLError as error:
        report.add(*_syntax(source, error))
    return [root for root in composer.roots if not _is_empty(root)]


def _is_empty(root: Node) -> bool:
    return isinstance(root, Scalar) and root.kind == "null"


def _mark_at(source: SourceFile, index: int) -> Mark:
    before = source.text[:index]
    return Mark(source.name, before.count("\n") + 1, index - before.rfind("\n"))


def _syntax(source: SourceFile, error: yaml.MarkedYAMLError) -> tuple[Mark, str]:
    at = error.problem_mark or error.context_mark
    if at is None:
        return Mark(source.name), "not YAML"
    lines = _LINE_BREAK.split(source.text)
    if at.line >= len(lines):
        # The end of a file without a last line break.
        return Mark(source.name, len(lines), len(lines[-1]) + 1), f"not YAML: {error.problem}"
    tab = _TAB_INDENT.match(lines[at.line])
    if tab and at.column <= tab.end():
        return Mark(source.name, at.line + 1, tab.end()), "a tab; YAML is indented with spaces only"
    return Mark(source.name, at.line + 1, at.column + 1), f"not YAML: {error.problem}"


@dataclass(slots=True)
class _Open:
    mark: Mark
    is_mapping: bool
    parts: list[Node] = field(default_factory=list)


class _Composer:
    def __init__(self, file: str, report: Report) -> None:
        self._file = file
        self._report = report
        self._open: list[_Open] = []
        self.roots: list[Node] = []

    def run(self, events: Iterable[yaml.Event]) -> None:
        for event in events:
            self._take(event)

    def _take(self, event: yaml.Event) -> None:
        at = event.start_mark
        mark = Mark(self._file, at.line + 1, at.column + 1) if at else Mark(self._file)
        if isinstance(event, yaml.CollectionStartEvent):
            self._begin(event, mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._place(self._end())
        elif isinstance(event, yaml.ScalarEvent):
            self._place(self._scalar(event, mark))
        elif isinstance(event, yaml.AliasEvent):
            self._report.add(mark, "aliases are refused: write the value out")
            self._place(Scalar(mark, "refused", ""))

    def _place(self, node: Node) -> None:
        target = self._open[-1].parts if self._open else self.roots
        target.append(node)

    def _begin(self, event: yaml.CollectionStartEvent, mark: Mark) -> None:
        self._refuse_marks(event, mark)
        if len(self._open) == DEEPEST:
            self._report.add(mark, f"nested more than {DEEPEST} levels deep")
            raise _StopError
        self._open.append(_Open(mark, isinstance(event, yaml.MappingStartEvent)))

    def _end(self) -> Node:
        done = self._open.pop()
        if not done.is_mapping:
            return Items(done.mark, tuple(done.parts))
        return Fields(done.mark, self._entries(done.parts))

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark) -> Scalar:
        if not self._refuse_marks(event, mark):
            return Scalar(mark, "refused", "")
        kind = kind_of_plain(event.value) if event.implicit[0] else "text"
        return Scalar(mark, kind, event.value)

    def _refuse_marks(
        self, event: yaml.CollectionStartEvent | yaml.ScalarEvent, mark: Mark
    ) -> bool:
        if event.anchor is not None:
            self._report.add(mark, "anchors are refused: write the value out where it is needed")
        if event.tag is not None:
            self._report.add(mark, "tags are refused: write the plain value")
        return event.tag is None

    def _entries(self, parts: list[Node]) -> tuple[Entry, ...]:
        entries: dict[str, Entry] = {}
        for key, node in zip(parts[::2], parts[1::2], strict=True):
            if not self._is_key(key):
                continue
            if key.text in entries:
                first = entries[key.text].mark.line
                self._report.add(key.mark, f"this key is given twice, first on line {first}")
                continue
            entries[key.text] = Entry(key.text, key.mark, node)
        return tuple(entries.values())

    def _is_key(self, key: Node) -> TypeGuard[Scalar]:
        if not isinstance(key, Scalar):
            self._report.add(key.mark, "a key must be text, not a list or mapping")
            return False
        if key.kind == "ambiguous" and key.text == "<<":
            self._report.add(key.mark, "merge keys (<<) are refused: write the fields out")
        elif key.kind not in ("text", "refused"):
            self._report.add(key.mark, "a key must be text: put it in quotes")
        return key.kind == "text"
