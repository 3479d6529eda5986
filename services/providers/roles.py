"""What a provider does for us in a role, such as to send a message: a call as its manifest says it.

A role has words of its own, which are the same for every provider that plays it. The manifest says
where each goes in the operation's input, and what stands for one that is not given: a setting of
the integration, or a default. Whatever is given may be a template; nothing is rendered here.
"""

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final

from services.chassis.constraints import did_you_mean
from services.providers.calls import CallInvalid
from services.providers.manifest import Category, Manifest, Operation, Role, RoleName, Word
from services.providers.urls import template_names

ROLE_OF: Final[Mapping[Category, RoleName]] = {
    "communication": "message",
    "pipeline": "pipeline",
    "ticket": "ticket",
}
"""What integrations of a category are for, where nothing else is said."""

_WORD: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_NOTHING: Final = object()

Faults = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Action:
    """What is wanted of an integration: a role or an operation, and its input.

    Without either it is the role of the provider's category. The input of a role is by its words,
    that of an operation by its path variables, its query and the fields of its body.
    """

    role: str = ""
    operation: str = ""
    input: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Placed:
    """An operation with its input where it goes; the texts may be templates."""

    operation: str
    params: Mapping[str, Any] = field(repr=False)
    query: Mapping[str, Any] = field(repr=False)
    body: Mapping[str, Any] | None = field(repr=False)


def operation_of(manifest: Manifest, action: Action) -> str:
    """The name of the operation that an action comes to; empty where the provider has none."""
    role = _role(manifest, action)
    return role.operation if role else action.operation


def placed(manifest: Manifest, action: Action, settings: Mapping[str, object]) -> Placed:
    """The call that an action comes to. Raises CallInvalid where the provider has none such.

    What has no value is left out: `settings` has the integration's, with their defaults.
    """
    name = operation_of(manifest, action)
    operation = manifest.operations.get(name)
    if operation is None:
        raise CallInvalid(f"{manifest.provider} has no operation for this")
    given = _input(manifest, action, settings)
    params, query = (
        {key: given.pop(key) for key in where if key in given}
        for where in (operation.path_params, operation.query)
    )
    return Placed(name, params, query, given if operation.body else None)


def problems(manifest: Manifest, action: Action, settings: Mapping[str, object]) -> Faults:
    """What is wrong with an action: `role`, `operation` or `input.NAME`, and a sentence."""
    if action.role and action.operation:
        yield "operation", "stands instead of a role; give one or the other"
        return
    role = _role(manifest, action)
    if role is None and not action.operation:
        yield "role", _no_role(manifest, action)
    elif action.operation and action.operation not in manifest.operations:
        hint = did_you_mean(action.operation, list(manifest.operations))
        yield "operation", f"{manifest.provider} has no operation of this name{hint}"
    elif role is not None:
        yield from _words(role, action.input, settings)
    else:
        operation = manifest.operations[action.operation]
        yield from _values(operation, action.input, settings.keys())


def _role(manifest: Manifest, action: Action) -> Role | None:
    if action.operation:
        return None
    wanted = action.role or ROLE_OF.get(manifest.category)
    return next((role for name, role in manifest.roles.items() if name == wanted), None)


def _no_role(manifest: Manifest, action: Action) -> str:
    about = f"{manifest.provider}, of category {manifest.category},"
    if not action.role:
        return f"is required, or else operation: {about} has no role of its own"
    return f"{about} has no role {action.role}"


def _words(role: Role, given: Mapping[str, Any], settings: Mapping[str, object]) -> Faults:
    for name in given:
        if name not in role.words:
            yield f"input.{name}", f"is no word of this role{did_you_mean(name, list(role.words))}"
    for name, word in role.words.items():
        if word.required and _value(name, word, given, settings) is _NOTHING:
            hint = f", or config.{word.setting} of the integration" if word.setting else ""
            yield f"input.{name}", f"is required{hint}"


def _values(operation: Operation, given: Mapping[str, Any], settings: Set[str]) -> Faults:
    for name in sorted(template_names(operation.path) - given.keys() - settings):
        yield f"input.{name}", "is required: the operation's path has it"
    for name, parameter in operation.query.items():
        if parameter.required and name not in given:
            yield f"input.{name}", "is required: the operation's query has it"
    known = [*operation.path_params, *operation.query]
    for name in given if not operation.body else ():
        if name not in known:
            yield f"input.{name}", f"is not known to the operation{did_you_mean(name, known)}"


def _input(manifest: Manifest, action: Action, settings: Mapping[str, object]) -> dict[str, Any]:
    role = _role(manifest, action)
    if role is None:
        return dict(action.input)
    values = {name: _value(name, word, action.input, settings) for name, word in role.words.items()}
    filled = _filled(role.input, values)
    return {} if filled is _NOTHING else dict(filled)


def _value(name: str, word: Word, given: Mapping[str, Any], settings: Mapping[str, object]) -> Any:
    """What stands for a word: what was given, else a setting, else a default."""
    if name in given:
        return given[name]
    if word.setting and word.setting in settings:
        return f"${{integration.config.{word.setting}}}"
    return _NOTHING if word.default is None else word.default


def _filled(shape: Any, values: Mapping[str, Any]) -> Any:
    """The shape with each text that is `{word}`, and nothing else, replaced by the word's value.

    What is made of words alone that have no value is left out with them.
    """
    if isinstance(shape, str):
        word = _WORD.fullmatch(shape)
        return values[word[1]] if word else shape
    if isinstance(shape, dict):
        found = {key: _filled(inner, values) for key, inner in shape.items()}
        return {key: inner for key, inner in found.items() if inner is not _NOTHING} or _NOTHING
    if isinstance(shape, list):
        return [v for inner in shape if (v := _filled(inner, values)) is not _NOTHING] or _NOTHING
    return shape


def words_in(shape: Any) -> Iterator[str]:
    """The words that a role's input has places for."""
    if isinstance(shape, str):
        word = _WORD.fullmatch(shape)
        yield from [word[1]] if word else []
    elif isinstance(shape, dict | list):
        for inner in shape.values() if isinstance(shape, dict) else shape:
            yield from words_in(inner)
