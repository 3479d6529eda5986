"""The streams that integrations have transferred, as the projection adds them.

Each has an id made of its integration's and its name, so that it is the same stream, with the same
records, when it is wanted again. It is inactive where its integration is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import UUID, uuid5

from services.executor.engine.work import LanePolicy
from services.executor.store.projected import ProjectedObject

KIND: Final = "sync"
STREAM: Final = "Stream"


def stream_name(integration: str, stream: str) -> str:
    """What a stream is called: `github/issues`."""
    return f"{integration}/{stream}"


def stream_id(integration_id: UUID, stream: str) -> UUID:
    """By what a stream is known, whatever its integration is called."""
    return uuid5(integration_id, stream)


def with_streams(objects: Sequence[ProjectedObject]) -> list[ProjectedObject]:
    """A tenant's objects, and the streams of its integrations."""
    integrations = [each for each in objects if each.kind == "Integration"]
    return [*objects, *(stream for each in integrations for stream in _streams(each))]


def _streams(integration: ProjectedObject) -> Iterator[ProjectedObject]:
    # What was projected before there were streams says nothing.
    for said in (integration.spec.get("sync") or {}).get("streams", ()):
        spec = {
            "integration": integration.name,
            "stream": said["name"],
            "provider": integration.spec["provider"],
            "schedule": said["schedule"],
            "is_active": said["is_active"] and integration.spec["is_active"],
        }
        name = stream_name(integration.name, said["name"])
        yield ProjectedObject(STREAM, stream_id(integration.object_id, said["name"]), name, 0, spec)


def policy_of(spec: Mapping[str, Any]) -> LanePolicy:
    """A stream's lane: one transfer after the other, since each goes on where the last ended."""
    return LanePolicy(concurrency=1, provider=spec["provider"], ordering="lane")
