"""Puts secrets into what is sent to the registry, and nowhere else; sealed ones as they are."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from tenon.registry.v1 import wanted_pb2

from config.documents import SPECS, Document
from config.problems import Problem, problem
from config.secretrefs import fetch
from services.chassis.redaction import remember
from services.chassis.secret import Secret


@dataclass(frozen=True, slots=True)
class Batch:
    """One tenant's documents, and the resources to send for them.

    `kept` holds the secrets, so that no message can repeat one as long as the batch lives.
    """

    tenant: str
    documents: tuple[Document, ...]
    resources: tuple[wanted_pb2.Resource, ...]
    kept: tuple[Secret, ...]


def resolve_secrets(
    documents: Sequence[Document], environment: Mapping[str, str] = os.environ
) -> tuple[list[Batch], list[Problem]]:
    """A batch for each tenant, in the order of slugs, and a problem for each secret not found."""
    problems: list[Problem] = []
    batches = []
    for tenant in sorted({each.tenant for each in documents}):
        own = tuple(each for each in documents if each.tenant == tenant)
        kept: list[Secret] = []
        resources = tuple(_resolved(each, environment, kept, problems) for each in own)
        batches.append(Batch(tenant, own, resources, tuple(kept)))
    return batches, sorted(problems)


def _resolved(
    document: Document,
    environment: Mapping[str, str],
    kept: list[Secret],
    problems: list[Problem],
) -> wanted_pb2.Resource:
    resource = wanted_pb2.Resource()
    resource.CopyFrom(document.resource)
    for path, ref in document.secrets.items():
        value = _value_at(getattr(resource, SPECS[document.kind].name), path)
        if ref.form == "sealed":
            value.sealed = ref.at
            continue
        secret, fault = fetch(ref, environment)
        if secret is None:
            problems.append(problem(ref.mark, fault))
            continue
        kept.append(remember(secret))
        value.plain = secret.reveal()
    return resource


def _value_at(spec: Message, path: str) -> wanted_pb2.SecretValue:
    """The value at a path such as `spec.values.token`, whose parts have no dots."""
    _, *fields, key = path.split(".")
    values = spec
    for name in fields:
        values = getattr(values, name)
    return values[key]  # type: ignore[index,no-any-return]  # a map of SecretValue
