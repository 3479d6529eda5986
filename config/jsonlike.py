"""Reads the parts of a document that take any JSON: an integration's settings, a step's body."""

import sys
from dataclasses import dataclass
from typing import Any, Final

from config.nodes import Entry, Fields, Items, Scalar, word_for
from config.problems import Mark, Report
from config.values import text_fault, wrong_type

EXACT: Final = 2**53
"""Numbers travel as doubles; beyond this, whole ones lose digits."""
_LONGEST_NUMBER: Final = 40


@dataclass(slots=True)
class JsonReader:
    """Reads one JSON-like value, noting problems in `report` and every place in `marks`."""

    report: Report
    marks: dict[str, Mark]
    is_good: bool = True

    def read(self, entry: Entry, path: str) -> Any:
        """Any value but null; None when it, or something in it, is wrong."""
        if isinstance(entry.node, Scalar) and entry.node.kind == "null":
            wrong_type(entry, "a value", self.report)
            return None
        value = self._value(entry, path)
        return value if self.is_good else None

    def _value(self, entry: Entry, path: str) -> Any:
        self.marks[path] = entry.place
        node = entry.node
        if isinstance(node, Items):
            inner = enumerate(node.items)
            return [self._value(Entry("", n.mark, n), f"{path}[{i}]") for i, n in inner]
        if isinstance(node, Fields):
            return {
                self._key(each): self._value(each, f"{path}.{each.key}") for each in node.entries
            }
        return self._scalar(node)

    def _key(self, entry: Entry) -> str:
        if fault := text_fault(entry.key):
            self._wrong(entry.mark, fault)
        return entry.key

    def _scalar(self, node: Scalar) -> Any:
        if node.kind == "null":
            return None
        if node.kind == "bool":
            return node.text == "true"
        if node.kind == "text":
            return self._text(node)
        if node.kind in ("int", "float"):
            return self._number(node)
        self.is_good = False
        if node.kind == "ambiguous":
            hint = "put it in quotes, or write true or false"
            self._wrong(node.mark, f"is {word_for(node)}: {hint}")
        return None

    def _text(self, node: Scalar) -> str:
        if fault := text_fault(node.text):
            self._wrong(node.mark, fault)
        return node.text

    def _number(self, node: Scalar) -> float | None:
        read = int if node.kind == "int" else float
        largest = EXACT if node.kind == "int" else sys.float_info.max
        number = read(node.text) if len(node.text) <= _LONGEST_NUMBER else float("inf")
        if abs(number) > largest:
            self._wrong(node.mark, "a number too large for JSON: put it in quotes")
        return number

    def _wrong(self, mark: Mark, message: str) -> None:
        self.is_good = False
        self.report.add(mark, message)
