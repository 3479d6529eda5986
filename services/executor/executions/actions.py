"""The actions of subscriptions, as connectors of one step.

Such a connector has the id of its subscription, and a name that no connector can have. So the
lane, the runs and the switches of an action are those of connectors, and it goes when its
subscription does. It is inactive where its subscription or its integration is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from services.executor.store.projected import ProjectedObject

PREFIX: Final = "subscriptions/"
STEP: Final = "action"
TRY: Final = "30s"
"""How long one try may take."""
LANE: Final[Mapping[str, Any]] = {"concurrency": 16, "rate_per_minute": 0, "ordering": "none"}


def connector_name(subscription: str) -> str:
    """What the connector of a subscription's action is called."""
    return PREFIX + subscription


def action_of(subscription: ProjectedObject) -> Mapping[str, Any] | None:
    """The action that a subscription routes to; None where it routes elsewhere."""
    action: Mapping[str, Any] = subscription.spec.get("action") or {}
    return action if action.get("integration") else None


def with_actions(objects: Sequence[ProjectedObject]) -> list[ProjectedObject]:
    """A tenant's objects, and the connector of each action of its subscriptions."""
    return [*objects, *_connectors(objects)]


def _connectors(objects: Sequence[ProjectedObject]) -> Iterator[ProjectedObject]:
    callable_ = {
        each.name for each in objects if each.kind == "Integration" and each.spec["is_active"]
    }
    for each in objects:
        action = action_of(each) if each.kind == "Subscription" else None
        if action is not None:
            active = each.spec["is_active"] and action["integration"] in callable_
            spec = {"is_active": active, "steps": [_step(action)], "lane": dict(LANE)}
            yield ProjectedObject("Connector", each.object_id, connector_name(each.name), 0, spec)


def _step(action: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": STEP,
        "integration": action["integration"],
        # What this comes to is found when it is called: by the manifest, and the settings of then.
        "action": {
            "role": action.get("role") or "",
            "operation": action.get("operation") or "",
            "input": action.get("input") or {},
        },
        "timeout": TRY,
        "retry": action["retry"],
    }
