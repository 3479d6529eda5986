"""What a YAML file says, as plain values with their places; nothing is constructed from it."""

import re
from dataclasses import dataclass
from typing import Final, Literal

import yaml

from config.problems import Mark

ScalarKind = Literal["text", "null", "bool", "int", "float", "ambiguous", "refused"]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `ambiguous` is what YAML 1.1 alone takes for something other than text.

    `refused` stands where a problem is noted already.
    """

    mark: Mark
    kind: ScalarKind
    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    mark: Mark
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A key, its place, and what it holds."""

    key: str
    mark: Mark
    node: "Node"

    @property
    def place(self) -> Mark:
        """Where a person looks for it: a single value itself, the key of anything longer."""
        single = isinstance(self.node, Scalar) and self.node.kind != "null"
        return self.node.mark if single else self.mark


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping; keys are text and unique."""

    mark: Mark
    entries: tuple[Entry, ...]


Node = Scalar | Items | Fields

PLAIN: Final[tuple[tuple[ScalarKind, re.Pattern[str]], ...]] = (
    ("null", re.compile(r"|~|null|Null|NULL")),
    ("bool", re.compile(r"true|false")),
    ("int", re.compile(r"-?(?:0|[1-9][0-9]*)")),
    ("float", re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")),
)
"""Unquoted words that are not text. Source: YAML 1.2.2 §10.2, the JSON schema."""

_YAML_1_1: Final = yaml.resolver.Resolver()
_TEXT: Final = "tag:yaml.org,2002:str"


def kind_of_plain(text: str) -> ScalarKind:
    """What an unquoted word is."""
    for kind, pattern in PLAIN:
        if pattern.fullmatch(text):
            return kind
    old = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return "text" if old == _TEXT else "ambiguous"


WORDS: Final[dict[ScalarKind, str]] = {
    "text": "text",
    "null": "nothing",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a decimal number",
    "ambiguous": "a word that YAML may take for a number, a date or true or false",
    "refused": "refused",
}


def word_for(node: Node) -> str:
    """What a node is, in words for people."""
    if isinstance(node, Scalar):
        return WORDS[node.kind]
    return "a list" if isinstance(node, Items) else "a mapping"
