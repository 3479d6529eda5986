"""Rules and constraints, read once from the descriptors into plain values."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any, Literal

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tenon.options.v1 import rule_pb2


class Risk(IntEnum):
    """How much harm a wrong call or change could do; stored as its number."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call one RPC."""

    method: str
    permission: str
    risk: Risk
    tenant_field: str
    any_caller: bool
    principal_kinds: frozenset[str]
    tenant_optional: bool
    when_disabled: bool
    when_purged: bool = False


@dataclass(frozen=True, slots=True)
class Constraint:
    """What one wanted field may hold."""

    required: bool
    choices: tuple[str, ...]
    reference: str
    default: Any
    max_length: int
    risk: Risk
    name_like: bool
    description: str


class MissingRuleError(Exception):
    """An RPC or a field whose option is absent or contradicts itself: a fault of the contract."""


def rule_of(method: MethodDescriptor) -> Rule:
    """The rule of one RPC; its absence must stop a start."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    options = method.GetOptions()
    if not options.HasExtension(rule_pb2.rule):
        raise MissingRuleError(f"{name} has no (tenon.options.v1.rule)")
    raw = options.Extensions[rule_pb2.rule]
    if bool(raw.permission) == raw.any_caller or not raw.risk:
        raise MissingRuleError(f"{name}: give a permission or any_caller, and a risk")
    return Rule(
        method=name,
        permission=raw.permission,
        risk=Risk(raw.risk),
        tenant_field=raw.tenant_field,
        any_caller=raw.any_caller,
        principal_kinds=frozenset(raw.principal_kinds),
        tenant_optional=raw.tenant_optional,
        when_disabled=raw.when_disabled,
        when_purged=raw.when_purged,
    )


def rules_of(service: ServiceDescriptor) -> tuple[Rule, ...]:
    """The rules of every RPC of a service, in the order of the contract."""
    return tuple(rule_of(method) for method in service.methods)


@cache
def constraint_of(field: FieldDescriptor) -> Constraint:
    """The constraint of one field; a field without the option takes anything of its type."""
    raw = field.GetOptions().Extensions[rule_pb2.constraint]
    return Constraint(
        required=raw.required,
        choices=tuple(raw.choices),
        reference=raw.reference,
        default=_default(field, raw.default_json),
        max_length=raw.max_length,
        risk=Risk(raw.risk or Risk.LOW),
        name_like=raw.name_like,
        description=raw.description,
    )


def _default(field: FieldDescriptor, text: str) -> Any:
    default = json.loads(text) if text else None
    if default is None or field.message_type is None:
        return default
    if isinstance(default, list):
        return [_as_sent(field.message_type, each) for each in default]
    return _as_sent(field.message_type, default)


def _as_sent(kind: Descriptor, value: Any) -> Any:
    """Written as a value that was sent would be: protobuf's JSON knows 0.5s only as 0.500s."""
    return MessageToDict(ParseDict(value, GetMessageClass(kind)()))


def field_at(message: Message, path: str) -> str:
    """The text at a dotted path of a message, such as `header.tenant`."""
    value: Any = message
    for part in path.split("."):
        value = getattr(value, part)
    return str(value)


Shape = Literal["text", "flag", "number", "duration", "json", "secret", "message"]

_SHAPES_BY_MESSAGE: dict[str, Shape] = {
    "google.protobuf.Duration": "duration",
    "google.protobuf.Struct": "json",
    "google.protobuf.Value": "json",
    "tenon.registry.v1.SecretValue": "secret",
}
_SHAPES_BY_TYPE: dict[int, Shape] = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "flag",
    FieldDescriptor.TYPE_INT32: "number",
}


@dataclass(frozen=True, slots=True)
class FieldRule:
    """One field of a wanted message: its shape, how many, its constraint, and what is inside."""

    name: str
    shape: Shape
    many: Literal["one", "list", "map"]
    constraint: Constraint
    fields: tuple["FieldRule", ...] = ()

    @property
    def absent(self) -> Any:
        """What the field means where nobody has set it."""
        if self.constraint.default is not None:
            return self.constraint.default
        if self.many != "one":
            return [] if self.many == "list" else {}
        return _ABSENT[self.shape](self)


_ABSENT: dict[Shape, Callable[[FieldRule], Any]] = {
    "text": lambda _: "",
    "flag": lambda _: None,
    "number": lambda _: None,
    "duration": lambda _: None,
    "json": lambda _: None,
    "secret": lambda _: None,
    "message": lambda rule: {inner.name: inner.absent for inner in rule.fields},
}


@cache
def schema_of(message: Descriptor) -> tuple[FieldRule, ...]:
    """The fields of a wanted message, in the order of the contract."""
    return tuple(_field_rule(field) for field in message.fields)


def _field_rule(field: FieldDescriptor) -> FieldRule:
    inner = field.message_type
    is_map = inner is not None and inner.GetOptions().map_entry
    value = inner.fields_by_name["value"] if inner is not None and is_map else field
    message = value.message_type
    shape = _SHAPES_BY_TYPE.get(value.type, "message")
    if message is not None:
        shape = _SHAPES_BY_MESSAGE.get(message.full_name, "message")
    return FieldRule(
        name=field.name,
        shape=shape,
        many="map" if is_map else "list" if field.is_repeated else "one",
        constraint=constraint_of(field),
        fields=schema_of(message) if message is not None and shape == "message" else (),
    )
