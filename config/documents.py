"""YAML documents: an envelope around one wanted object of the contract."""

from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from tenon.registry.v1 import wanted_pb2

from config.composer import compose
from config.loader import SourceFile
from config.nodes import Entry, Fields, Node, Scalar
from config.problems import Mark, Problem, Report
from config.secretrefs import SecretRef
from config.walk import Walk, mark_at, unknown_field
from services.chassis.constraints import did_you_mean, references
from services.chassis.ids import SLUG, SLUG_RULE
from services.chassis.rules import schema_of

API_VERSION: Final = "tenon/v1"
Reference = tuple[str, str, str]
"""A path, and the kind and name of the object of the same tenant that it refers to."""

ENVELOPE: Final = ("apiVersion", "kind", "metadata", "spec")


def _kind(field: FieldDescriptor) -> str:
    return "".join(word.capitalize() for word in field.name.split("_"))


SPECS: Final = {
    _kind(field): field for field in wanted_pb2.Resource.DESCRIPTOR.oneofs_by_name["spec"].fields
}
"""Every kind, with the field of Resource that holds it: `webhook_endpoint` is WebhookEndpoint."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `marks` has the place of every path, such as `spec.steps[1].integration`;
    `secrets` says by path where the secrets stand that `resource` does not hold yet."""

    kind: str
    name: str
    tenant: str
    resource: wanted_pb2.Resource
    marks: dict[str, Mark]
    secrets: dict[str, SecretRef]
    references: tuple[Reference, ...]

    @property
    def mark(self) -> Mark:
        """Where the document begins."""
        return self.marks[""]

    def mark_at(self, path: str) -> Mark:
        """The place of a path, or of the nearest one around it."""
        return mark_at(self.marks, path)


def read_source(source: SourceFile) -> tuple[list[Document], list[Problem]]:
    """The documents of one file."""
    report = Report()
    roots = compose(source, report)
    if not roots and not report.found:
        report.add(Mark(source.name), "nothing found: the file holds no document")
    read_roots = [_read_root(root, source, report) for root in roots if not report.full]
    return [each for each in read_roots if each is not None], report.found


def _read_root(root: Node, source: SourceFile, report: Report) -> Document | None:
    if not isinstance(root, Fields):
        words = ", ".join(ENVELOPE)
        report.add(root.mark, f"a document is a mapping with {words}")
        return None
    walk = Walk(report, source.path.parent, source.root, {"": root.mark})
    parts = _envelope(root, walk)
    field = _spec_field(parts, walk)
    resource = wanted_pb2.Resource()
    resource.origin.file, resource.origin.line = source.inner_name, root.mark.line
    _fill(resource.metadata, parts.get("metadata"), "metadata", walk)
    if field is None:
        return None
    spec = getattr(resource, field.name)
    spec.SetInParent()
    _fill(spec, parts.get("spec"), "spec", walk)
    kind = _kind(field)
    return _document(kind, resource, walk) if _is_named(kind, resource.metadata, walk) else None


def _fill(message: Message, entry: Entry | None, path: str, walk: Walk) -> None:
    """Read what `entry` holds into `message`, field by field."""
    if entry is None:
        return
    descriptor: Descriptor = message.DESCRIPTOR  # type: ignore[assignment]  # upb's own class
    for key, value in walk.read(schema_of(descriptor), entry, path).items():
        try:
            ParseDict({key: value}, message)
        except ParseError:
            # Whose text has the value. The walk knows all forms but that of a Struct.
            walk.report.add(walk.marks[f"{path}.{key}"], f"{key} must be a mapping")


def _envelope(root: Fields, walk: Walk) -> dict[str, Entry]:
    """The known parts by key; every unknown and missing one is a problem."""
    parts = {entry.key: entry for entry in root.entries if entry.key in ENVELOPE}
    for entry in root.entries:
        if entry.key not in ENVELOPE and not walk.report.full:
            unknown_field(entry, ENVELOPE, walk.report)
    for key in ENVELOPE:
        if key not in parts:
            walk.report.add(root.mark, f"{key} is missing")
    version = parts.get("apiVersion")
    if version is not None and _text(version) != API_VERSION:
        walk.report.add(version.place, f"apiVersion must be {API_VERSION}")
    return parts


def _spec_field(parts: dict[str, Entry], walk: Walk) -> FieldDescriptor | None:
    entry = parts.get("kind")
    if entry is None:
        return None
    kind = _text(entry)
    if kind not in SPECS:
        guess = did_you_mean(kind, tuple(SPECS))
        walk.report.add(entry.place, f"kind must be one of {', '.join(SPECS)}{guess}")
    return SPECS.get(kind)


def _text(entry: Entry) -> str:
    node = entry.node
    return node.text if isinstance(node, Scalar) and node.kind == "text" else ""


def _document(kind: str, resource: wanted_pb2.Resource, walk: Walk) -> Document:
    metadata, spec = resource.metadata, getattr(resource, SPECS[kind].name)
    schema = schema_of(SPECS[kind].message_type)
    value = MessageToDict(spec, preserving_proto_field_name=True)
    found = list(references(schema, value, "spec"))
    for path, target, name in found:
        if not SLUG.fullmatch(name):
            walk.report.add(walk.marks[path], f"must be the name of a {target}: {SLUG_RULE}")
    return Document(
        kind=kind,
        name=metadata.name,
        tenant=metadata.tenant,
        resource=resource,
        marks=walk.marks,
        secrets=walk.secrets,
        references=tuple(each for each in found if SLUG.fullmatch(each[2])),
    )


def _is_named(kind: str, metadata: wanted_pb2.Metadata, walk: Walk) -> bool:
    """Whether the object can be told from others; notes why not. A Tenant is its own tenant."""
    if "metadata" not in walk.marks:
        return False
    is_named = _is_slug("name", metadata.name, walk)
    if kind == "Tenant" and "metadata.tenant" not in walk.marks:
        metadata.tenant = metadata.name
        return is_named
    if not _is_slug("tenant", metadata.tenant, walk) or not is_named:
        return False
    if kind == "Tenant" and metadata.tenant != metadata.name:
        walk.report.add(walk.marks["metadata.tenant"], "a Tenant's tenant is its own name")
        return False
    return True


def _is_slug(key: str, value: str, walk: Walk) -> bool:
    path = f"metadata.{key}"
    if not value and path not in walk.marks:
        walk.report.add(walk.marks["metadata"], f"{key} is missing")
    elif value and not SLUG.fullmatch(value):
        walk.report.add(walk.mark_at(path), f"{key} must be {SLUG_RULE}")
    return bool(SLUG.fullmatch(value))
