"""JSON Schema, as far as whoever applies it can tell beforehand what it costs.

A subset of the draft 2020-12: what is outside of it (`$ref`, `pattern`, combinations) is refused
when a schema is declared, and not passed over when a value is checked. What says nothing of a
value (`title`, `format` …) is let be.
Source: json-schema.org, draft 2020-12, "Validation", sections 6 and 7, and "Core", section 10.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Fault = tuple[str, str]
"""Where, as a path that follows a name, and a sentence that does not say the value."""
Faults = Iterator[Fault]
Schema = Any

LARGEST: Final = 64 * 1024
"""Bytes of a schema as JSON."""
DEEPEST: Final = 32
"""Schemas inside schemas."""
MOST_VALUES: Final = 100
"""Of an `enum`: each place of a value may be held against all of them."""
_SHOWN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_IS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    # 1.0 is an integer, too (6.1.1).
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
}
ANNOTATIONS: Final = frozenset(
    {
        *("$schema", "$id", "$comment", "title", "description", "default", "examples", "format"),
        *("deprecated", "readOnly", "writeOnly"),
    }
)


def problems(schema: Schema) -> Faults:
    """What is wrong with a schema, or outside of what can be checked."""
    if not isinstance(schema, dict):
        yield "", "must be an object of keywords"
    elif len(json.dumps(schema, ensure_ascii=False).encode()) > LARGEST:
        yield "", f"must have at most {LARGEST} bytes as JSON"
    else:
        yield from _problems(schema, "", 1)


def faults(schema: Schema, value: Any, path: str = "") -> Faults:
    """Where a value is not as a schema that has no problems says."""
    yield from _faults(schema, value, path, {})


def _faults(schema: Schema, value: Any, path: str, enums: "_Enums") -> Faults:
    if isinstance(schema, bool):
        if not schema:
            yield path, "must not be there"
        return
    around = _Around(schema, enums)
    for keyword, asked in schema.items():
        if keyword in _CHECKS:
            yield from _CHECKS[keyword](asked, value, path, around)


def _problems(schema: Schema, path: str, depth: int) -> Faults:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield path, "must be a schema: an object of keywords, true or false"
        return
    if depth > DEEPEST:
        yield path, f"is nested deeper than {DEEPEST} schemas"
        return
    for keyword, asked in schema.items():
        here = f"{path}.{keyword}"
        if keyword in _SAID:
            right, sentence = _SAID[keyword]
            if not right(asked):
                yield here, sentence
        elif keyword not in ANNOTATIONS | _INNER:
            yield here, f"{keyword} cannot be checked; use {', '.join(sorted(_CHECKS))}"
    yield from _inner_problems(schema, path, depth)


def _inner_problems(schema: Mapping[str, Any], path: str, depth: int) -> Faults:
    inner = schema.get("properties", {})
    if not isinstance(inner, dict):
        yield f"{path}.properties", "must be an object of schemas"
        inner = {}
    for name, each in inner.items():
        yield from _problems(each, f"{path}.properties.{name}", depth + 1)
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from _problems(schema[keyword], f"{path}.{keyword}", depth + 1)


def _is_count(value: Any) -> bool:
    return _IS["integer"](value) and value >= 0


def _are_types(value: Any) -> bool:
    given = value if isinstance(value, list) else [value]
    return bool(given) and all(isinstance(each, str) and each in _IS for each in given)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_few(value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= MOST_VALUES
    return few and not any(isinstance(each, list | dict) for each in value)


_NUMBER: Final = (_is_number, "must be a number")
_COUNT: Final = (_is_count, "must be a whole number from 0 on")
_ENUM: Final = (
    f"must be a list of at most {MOST_VALUES} texts, numbers, true, false or null;"
    " what is a list or an object can be a const"
)
_SAID: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "type": (_are_types, f"must be one or several of {', '.join(_IS)}"),
    "required": (_are_names, "must be a list of names"),
    "enum": (_are_few, _ENUM),
    "const": (lambda _: True, ""),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _COUNT),
}
"""What is said of a value itself, and how it must be said."""
_INNER: Final = frozenset({"properties", "additionalProperties", "items"})


_Scalar = tuple[bool, Any]
_Enums = dict[int, frozenset[_Scalar]]


def _key(value: Any) -> _Scalar:
    """By which a value that is no list and no object is itself in a set: 1 is 1.0, not true."""
    return isinstance(value, bool), value


@dataclass(frozen=True, slots=True)
class _Around:
    """The schema that a keyword stands in, and the enums of all of it that were looked into."""

    schema: Schema
    enums: _Enums

    def enum(self, values: list[Any]) -> frozenset[_Scalar]:
        """One as a set: it may be asked of each place of a value, and is made once."""
        found = self.enums.get(id(values))
        if found is None:
            found = self.enums[id(values)] = frozenset(map(_key, values))
        return found


def _type(asked: Any, value: Any, path: str, _: _Around) -> Faults:
    types = [asked] if isinstance(asked, str) else asked
    if not any(_IS[each](value) for each in types):
        yield path, f"must be {' or '.join(types)}"


def _enum(asked: Any, value: Any, path: str, around: _Around) -> Faults:
    if isinstance(value, list | dict) or _key(value) not in around.enum(asked):
        yield path, "is none of the values that are allowed"


def _const(asked: Any, value: Any, path: str, _: _Around) -> Faults:
    if not _same(asked, value):
        yield path, "is not the one value that is allowed"


def _least(
    of: str, size: Callable[[Any], Any], words: str
) -> Callable[[Any, Any, str, _Around], Faults]:
    def check(asked: Any, value: Any, path: str, _: _Around) -> Faults:
        if _IS[of](value) and size(value) < asked:
            yield path, words.format(asked)

    return check


def _most(
    of: str, size: Callable[[Any], Any], words: str
) -> Callable[[Any, Any, str, _Around], Faults]:
    def check(asked: Any, value: Any, path: str, _: _Around) -> Faults:
        if _IS[of](value) and size(value) > asked:
            yield path, words.format(asked)

    return check


def _required(asked: Any, value: Any, path: str, _: _Around) -> Faults:
    if isinstance(value, dict):
        for name in asked:
            if name not in value:
                yield f"{path}{_at(name)}", "is required"


def _properties(asked: Any, value: Any, path: str, around: _Around) -> Faults:
    if isinstance(value, dict):
        # Over what there is: a schema may know thousands that many small objects lack.
        for name, each in value.items():
            if name in asked:
                yield from _faults(asked[name], each, f"{path}{_at(name)}", around.enums)


def _additional(asked: Any, value: Any, path: str, around: _Around) -> Faults:
    if isinstance(value, dict):
        known = around.schema.get("properties", {})
        for name, each in value.items():
            if name not in known:
                yield from _faults(asked, each, f"{path}{_at(name)}", around.enums)


def _items(asked: Any, value: Any, path: str, around: _Around) -> Faults:
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _faults(asked, each, f"{path}[{index}]", around.enums)


_CHECKS: Final[Mapping[str, Callable[[Any, Any, str, _Around], Faults]]] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "minimum": _least("number", lambda value: value, "must be at least {}"),
    "maximum": _most("number", lambda value: value, "must be at most {}"),
    "minLength": _least("string", len, "must have at least {} characters"),
    "maxLength": _most("string", len, "must have at most {} characters"),
    "minItems": _least("array", len, "must have at least {} items"),
    "maxItems": _most("array", len, "must have at most {} items"),
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
}


def _at(name: str) -> str:
    """A member in a path; a key that is no plain word may be somebody's data."""
    return f".{name}" if _SHOWN_KEY.fullmatch(name) else "[*]"


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON: 1 is 1.0, and neither is true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
