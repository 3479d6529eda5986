"""Where an event goes: what each subscription that takes it starts, transfers or delivers."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.evaluator import View
from services.chassis.expressions import ExpressionError
from services.executor.deliveries import starting
from services.executor.deliveries.messages import message
from services.executor.engine.work import Started
from services.executor.events.subscriptions import Refusal, matching
from services.executor.executions import runs
from services.executor.executions.actions import action_of, connector_name
from services.executor.executions.runs import Run
from services.executor.registry.credentials import LeasedKey
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from services.executor.syncs import starting as transfers
from services.executor.syncs.streams import STREAM, stream_name

log = logging.getLogger(__name__)

CONNECTOR: Final = "Connector"
ENDPOINT: Final = "WebhookEndpoint"
ORDER_DIGITS: Final = 32
"""Hexadecimal, of the digest by which deliveries of one key are known."""

Target = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Route:
    """A subscription that takes an event, and what it routes to.

    `data` is what goes out in place of the payload, as JSON; `order` what it keeps its order with.
    """

    subscription: ProjectedObject
    target: ProjectedObject
    data: bytes | None = field(default=None, repr=False)
    order: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """An event as routes need it; `context` is what expressions see, `body` its bytes.

    `messages`: by event, endpoint and subscription, whose `webhook-id` a delivery has in place of
    its own.
    """

    tenant_id: UUID
    id: UUID
    context: Mapping[str, Any] = field(repr=False)
    body: bytes = field(repr=False)
    messages: Mapping[tuple[UUID, UUID, str], UUID] = field(default_factory=dict, repr=False)

    @property
    def type(self) -> str:
        """Its type."""
        return str(self.context["type"])


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Subscriptions to one source, and what they route to, as far as that is there."""

    subscriptions: Sequence[ProjectedObject] = field(repr=False)
    targets: Mapping[Target, ProjectedObject] = field(repr=False)


async def subscribed(
    database: Database, tenant_id: UUID, subscriptions: Sequence[ProjectedObject]
) -> Subscribed:
    """Subscriptions with their targets, read once for all events that they are asked about."""
    targets = await projected.these(database, tenant_id, map(target_of, subscriptions))
    return Subscribed(subscriptions, targets)


async def routes(to: Subscribed, context: Mapping[str, Any], view: View) -> list[Route]:
    """Where an event goes. Raises Unavailable where it should be tried again.

    Nothing goes to an endpoint that has gone, or by a transform that has no answer for the event.
    """
    found = []
    for each in await matching(to.subscriptions, context, view):
        route = await route_of(each, to.targets, view)
        if isinstance(route, Route):
            found.append(route)
        elif route.message:
            log.warning("subscription %s delivers nothing: %s", each.name, route.message)
    return found


def started(event: Told, taking: Sequence[Route], key: LeasedKey) -> list[Started]:
    """What the routes begin."""
    return [STARTS[route.target.kind](event, route, key) for route in taking]


def target_of(subscription: ProjectedObject) -> Target:
    """Kind and name of what a subscription routes to; its action is a connector of its own."""
    if action_of(subscription) is not None:
        return CONNECTOR, connector_name(subscription.name)
    # What was projected before there were streams says nothing.
    sync = subscription.spec.get("sync") or {}
    if sync.get("integration"):
        return STREAM, stream_name(sync["integration"], sync["stream"])
    endpoint = subscription.spec.get("deliver_to")
    return (ENDPOINT, endpoint) if endpoint else (CONNECTOR, subscription.spec["connector"])


async def route_of(
    subscription: ProjectedObject, targets: Mapping[Target, ProjectedObject], view: View
) -> Route | Refusal:
    """Where an event goes by a subscription that takes it, or why it goes nowhere.

    What is delivered to an endpoint that is inactive waits; a connector or a stream that is starts
    nothing.
    """
    target, transform = targets.get(target_of(subscription)), subscription.spec.get("transform")
    if target is None:
        return Refusal("TARGET_GONE")
    if target.kind != ENDPOINT:
        active = target.spec["is_active"]
        return Route(subscription, target) if active else Refusal("TARGET_INACTIVE")
    try:
        order = await _order(target, view)
        if transform is None:
            return Route(subscription, target, order=order)
        data = json.dumps(await view.render(transform), ensure_ascii=False, separators=(",", ":"))
    except ExpressionError as error:
        return Refusal("TRANSFORM_FAILED", error.message)
    return Route(subscription, target, data.encode(), order)


async def _order(endpoint: ProjectedObject, view: View) -> str:
    """What a delivery keeps its order with; empty where the endpoint does not order by key.

    A digest for each endpoint: it stays with the delivery, unsealed, and tells nothing of the event
    to whoever does not know it.
    """
    text = endpoint.spec["delivery"].get("key")
    if not text:
        return ""
    said = json.dumps(await view.evaluate(text), sort_keys=True)
    return hashlib.sha256(endpoint.object_id.bytes + said.encode()).hexdigest()[:ORDER_DIGITS]


def _sent(event: Told, route: Route, key: LeasedKey) -> Started:
    body = message(event.id, event.type, event.body if route.data is None else route.data)
    return starting.started(
        event.tenant_id,
        (event.id, event.type),
        route.target,
        route.subscription.name,
        body,
        # What can be made of the event again is not kept twice.
        key if route.data is not None else None,
        route.order,
        event.messages.get((event.id, route.target.object_id, route.subscription.name)),
    )


def _run(event: Told, route: Route, key: LeasedKey) -> Started:
    run = Run(
        tenant_id=event.tenant_id,
        connector=route.target,
        trigger_kind="event",
        trigger_id=event.id,
        event_type=event.type,
        subscription=route.subscription.name,
        input={"event": dict(event.context), "input": {}},
    )
    return runs.started(run, key)


def _transfer(event: Told, route: Route, _key: LeasedKey) -> Started:
    return transfers.started(event.tenant_id, route.target, ("event", event.id))


STARTS: Final[Mapping[str, Callable[[Told, Route, LeasedKey], Started]]] = {
    ENDPOINT: _sent,
    CONNECTOR: _run,
    STREAM: _transfer,
}
