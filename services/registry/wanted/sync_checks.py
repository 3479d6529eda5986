"""Whether an integration's streams can be transferred, and a subscription's is among them: pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from services.chassis.constraints import did_you_mean
from services.providers.manifest import Manifest
from services.providers.urls import template_names
from services.registry.wanted.objects import Complete, Key
from services.registry.wanted.schedule_checks import check_schedule

Found = Iterator[tuple[str, str]]
Known = Mapping[Key, Complete]


def check_sync(spec: Mapping[str, Any], manifest: Manifest) -> Found:
    """The faults of what an integration with this provider has transferred."""
    names: set[str] = set()
    settings = manifest.config_with_defaults(spec["config"] or {})
    for index, stream in enumerate(spec["sync"]["streams"]):
        path, name = f"spec.sync.streams[{index}]", stream["name"]
        if name not in manifest.streams:
            hint = did_you_mean(name, list(manifest.streams))
            yield f"{path}.name", f"{manifest.provider} has no stream of this name{hint}"
        elif missing := sorted(_asked_by(manifest, name) - settings.keys()):
            yield f"{path}.name", f"needs {', '.join(f'config.{each}' for each in missing)}"
        if name in names:
            yield f"{path}.name", "is the name of an earlier stream"
        names.add(name)
        yield from check_schedule(stream["schedule"], f"{path}.schedule")
        if stream["schedule"]["input"]:
            yield f"{path}.schedule.input", "is for connectors: a stream takes none"


def _asked_by(manifest: Manifest, stream: str) -> frozenset[str]:
    """The variables of the path by which a stream is asked for: settings give them values."""
    return template_names(manifest.operations[manifest.streams[stream].operation].path)


def check_sync_target(target: Mapping[str, Any], known: Known) -> Found:
    """The faults of a subscription's stream."""
    integration = known.get(("Integration", target["integration"]))
    if not target["integration"]:
        if target["stream"]:
            yield "spec.sync.integration", "is required: whose stream it is"
    elif not target["stream"]:
        yield "spec.sync.stream", "is required: which stream of it"
    elif integration is not None:
        names = [stream["name"] for stream in integration.spec()["sync"]["streams"]]
        if target["stream"] not in names:
            hint = did_you_mean(target["stream"], names)
            yield "spec.sync.stream", f"is none that {integration.name} has transferred{hint}"
