"""Where an event goes: what each subscription that takes it starts, or sends to an endpoint."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.evaluator import View
from services.chassis.expressions import ExpressionError
from services.executor import executions
from services.executor.credentials import LeasedKey
from services.executor.deliveries import starting
from services.executor.deliveries.messages import message
from services.executor.executions import Run
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from services.executor.subscriptions import Refusal, matching
from services.executor.work import Started

log = logging.getLogger(__name__)

CONNECTOR: Final = "Connector"
ENDPOINT: Final = "WebhookEndpoint"


@dataclass(frozen=True, slots=True)
class Route:
    """A subscription that takes an event; `endpoint` is set where it delivers.

    `data` is what goes out in place of the payload, as JSON; `order` what it keeps its order with.
    """

    subscription: ProjectedObject
    endpoint: ProjectedObject | None = None
    data: bytes | None = field(default=None, repr=False)
    order: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """An event as routes need it; `context` is what expressions see, `body` its bytes."""

    tenant_id: UUID
    id: UUID
    context: Mapping[str, Any] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def type(self) -> str:
        """Its type."""
        return str(self.context["type"])


async def routes(
    database: Database,
    tenant_id: UUID,
    subscriptions: Sequence[ProjectedObject],
    context: Mapping[str, Any],
    view: View,
) -> list[Route]:
    """Where an event goes. Raises Unavailable where it should be tried again.

    Nothing goes to an endpoint that has gone, or by a transform that has no answer for the event.
    """
    taking = await matching(subscriptions, context, view)
    names = sorted({each.spec["deliver_to"] for each in taking if each.spec.get("deliver_to")})
    endpoints = await projected.named(database, tenant_id, ENDPOINT, names) if names else {}
    found = []
    for each in taking:
        route = await route_of(each, endpoints, view)
        if isinstance(route, Route):
            found.append(route)
        elif route.message:
            log.warning("subscription %s delivers nothing: %s", each.name, route.message)
    return found


async def started(
    tx: Transaction, event: Told, taking: Sequence[Route], key: LeasedKey
) -> list[Started]:
    """What the routes begin."""
    found: list[Started] = []
    for route in taking:
        if route.endpoint is not None:
            found.append(_sent(event, route, route.endpoint, key))
        elif (run := await _run(tx, event, route, key)) is not None:
            found.append(run)
    return found


async def route_of(
    subscription: ProjectedObject, endpoints: Mapping[str, ProjectedObject], view: View
) -> Route | Refusal:
    """Where an event goes by a subscription that takes it, or why it goes nowhere.

    `endpoints` are those it may deliver to, by name. Whether a connector is there is seen when it
    is started.
    """
    target, transform = subscription.spec.get("deliver_to"), subscription.spec.get("transform")
    if not target:
        return Route(subscription)
    if target not in endpoints:
        return Refusal("TARGET_GONE")
    endpoint = endpoints[target]
    try:
        order = await _order(endpoint, view)
        if transform is None:
            return Route(subscription, endpoint, order=order)
        data = json.dumps(await view.render(transform), ensure_ascii=False, separators=(",", ":"))
    except ExpressionError as error:
        return Refusal("TRANSFORM_FAILED", error.message)
    return Route(subscription, endpoint, data.encode(), order)


async def _order(endpoint: ProjectedObject, view: View) -> str:
    """What a delivery keeps its order with; empty where the endpoint does not order by key."""
    text = endpoint.spec["delivery"].get("key")
    return json.dumps(await view.evaluate(text), sort_keys=True) if text else ""


def _sent(event: Told, route: Route, endpoint: ProjectedObject, key: LeasedKey) -> Started:
    body = message(event.id, event.type, event.body if route.data is None else route.data)
    return starting.started(
        event.tenant_id,
        (event.id, event.type),
        endpoint,
        route.subscription.name,
        body,
        # What can be made of the event again is not kept twice.
        key if route.data is not None else None,
        route.order,
    )


async def _run(tx: Transaction, event: Told, route: Route, key: LeasedKey) -> Started | None:
    """What a subscription starts; nothing if its connector is inactive."""
    name = route.subscription.spec["connector"]
    connector = await projected.one(tx, event.tenant_id, CONNECTOR, name)
    if connector is None or not connector.spec["is_active"]:
        return None
    run = Run(
        tenant_id=event.tenant_id,
        connector=connector,
        trigger_kind="event",
        trigger_id=event.id,
        event_type=event.type,
        subscription=route.subscription.name,
        input={"event": dict(event.context), "input": {}},
    )
    return executions.started(run, key)
