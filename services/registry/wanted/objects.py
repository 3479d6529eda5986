"""What a tenant wants, as plain values: a declared object, and one that is complete.

Both speak in fields: `spec.base_url`, `metadata.labels`. A declared object has only the fields its
document says; a complete one has them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from services.chassis.rules import FieldRule
from services.chassis.secret import Secret

# In this order objects are written, so that what is referred to stands first.
ORDER = (
    *("Tenant", "ReviewPolicy", "Venue"),
    *("Credential", "Integration", "Connection", "Connector", "WebhookEndpoint", "Subscription"),
    "EventType",
    *("Role", "RoleBinding"),
)

LABELS = "metadata.labels"
ANNOTATIONS = "metadata.annotations"
SECRET_VALUES = "spec.values"  # noqa: S105 - the name of a field

Key = tuple[str, str]
Fields = Mapping[str, Any]
Schemas = Mapping[str, tuple[FieldRule, ...]]


@dataclass(frozen=True, slots=True)
class Declared:
    """One document: the fields it says, its secrets, and where it stands."""

    kind: str
    name: str
    fields: Fields
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    file: str = ""
    line: int = 0
    # The tenant it names itself, if it does.
    tenant: str = ""
    # It is not wanted any more; it says nothing else then.
    absent: bool = False
    # Secrets that are sealed to the registry's public key, to be opened before anything else.
    sealed: Mapping[str, str] = field(default_factory=dict)
    # What is known of the values, where a provider gave them; JSON, times as texts.
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Kind and name, unique in a tenant."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class Complete:
    """One object with every field; the id is None until it is stored."""

    kind: str
    name: str
    fields: Fields
    object_id: UUID | None = None
    version: int = 0

    @property
    def key(self) -> Key:
        """Kind and name, unique in a tenant."""
        return self.kind, self.name

    def spec(self) -> dict[str, Any]:
        """The fields of the spec by their own names."""
        return spec_of(self.fields)


@dataclass(frozen=True, slots=True)
class Tenant:
    """The isolation boundary, as the registry keeps it."""

    tenant_id: UUID
    slug: str
    display_name: str
    enabled: bool
    limits: Mapping[str, Any]
    revision: int
    draining: bool = False


def spec_of(fields: Fields) -> dict[str, Any]:
    """The fields of the spec by their own names."""
    return {
        path.removeprefix("spec."): value
        for path, value in fields.items()
        if path.startswith("spec.")
    }


def absent_fields(schema: tuple[FieldRule, ...]) -> dict[str, Any]:
    """The fields of an object of which nobody has said anything."""
    spec = {f"spec.{rule.name}": rule.absent for rule in schema}
    return {LABELS: {}, ANNOTATIONS: {}, **spec}


def top_field(path: str) -> str:
    """The field a deep path lies in: `spec.steps[0].path` lies in `spec.steps`."""
    head, _, rest = path.partition(".")
    return f"{head}.{rest.split('.')[0].split('[')[0]}"
