"""Settings from the environment into frozen dataclasses, every fault said at once.

A field `database_url` of a settings class with prefix TENON_REGISTRY reads
TENON_REGISTRY_DATABASE_URL; with `_FILE` appended the variable names a file that holds the value,
which is how secrets stay out of the environment and of process lists.
"""

import dataclasses
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from services.chassis.secret import Secret

T = TypeVar("T")

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})


class SettingsError(Exception):
    """Settings that cannot be used; one line for each fault, without values."""


def _boolean(text: str) -> bool:
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise ValueError


PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: _boolean,
    Path: Path,
    Secret: Secret,
}


def load(kind: type[T], prefix: str, environment: Mapping[str, str] | None = None) -> T:
    """An instance of a frozen settings dataclass; SettingsError lists all that is wrong."""
    source = os.environ if environment is None else environment
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    faults: list[str] = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{prefix}_{field.name}".upper()
        try:
            text = _text(source, name)
            if text is not None:
                values[field.name] = _parser(hints[field.name])(text)
            elif field.default is dataclasses.MISSING:
                faults.append(f"{name} (or {name}_FILE) is not set")
        except ValueError:
            faults.append(f"{name} is not a {_word(hints[field.name])}")
        except OSError as error:
            faults.append(f"{name}_FILE cannot be read: {error.strerror}")
    if faults:
        raise SettingsError("\n".join(faults))
    return kind(**values)


def _text(source: Mapping[str, str], name: str) -> str | None:
    if name in source:
        return source[name]
    if f"{name}_FILE" in source:
        return Path(source[f"{name}_FILE"]).read_text().rstrip("\n")
    return None


def _parser(hint: Any) -> Callable[[str], Any]:
    if isinstance(hint, types.UnionType):
        hint = next(part for part in hint.__args__ if part is not type(None))
    return PARSERS[hint]


def _word(hint: Any) -> str:
    return getattr(hint, "__name__", "value").lower()
