"""Why nothing came of an event, or what did: each subscription's answer to it, as they are now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.evaluator import Evaluator, View
from services.executor.events import accepting
from services.executor.events.log import EventLog
from services.executor.events.retelling import is_subscribed, retold, source_of
from services.executor.events.routing import Target, route_of
from services.executor.events.subscriptions import Refusal, refusals
from services.executor.store import event_pages as store
from services.executor.store.event_pages import Noted
from services.executor.store.projected import ProjectedObject

TAKES: Final = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a subscription says to an event; `reason` why not, or why what it begins waits."""

    subscription: str
    takes: bool
    reason: str = TAKES
    message: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """What every subscription says to an event, by name, and what the event has begun."""

    noted: Noted
    answers: tuple[Answer, ...]
    deliveries: tuple[UUID, ...]
    executions: tuple[UUID, ...]
    sync_runs: tuple[UUID, ...]


class EventTraces:
    """The use case."""

    def __init__(self, database: Database, log: EventLog, evaluator: Evaluator) -> None:
        self._database = database
        self._log = log
        self._evaluator = evaluator

    async def of(self, tenant_id: UUID, event_id: UUID) -> Trace:
        """The trace of an event. Raises as `EventLog.get` does, and Unavailable."""
        seen = await self._log.get(tenant_id, event_id)
        begun = await store.begun(self._database, tenant_id, event_id)
        noted, endpoints = seen.noted, {each.object_id: each for each in begun.endpoints}
        event = retold(noted, seen.said, endpoints)
        context = accepting.as_context(event)
        view = self._evaluator.seeing({"event": context}, tenant_id)
        source = source_of(noted, event)
        there = [*begun.endpoints, *begun.connectors, *begun.streams]
        asking = _Asking(source, context, view, {(each.kind, each.name): each for each in there})
        answers = [await asking.answer(each) for each in begun.subscriptions]
        return Trace(noted, tuple(answers), begun.deliveries, begun.executions, begun.sync_runs)


@dataclass(frozen=True, slots=True)
class _Asking:
    """An event, as subscriptions are asked about it, and where it could go.

    `source` is the name of the endpoint it came by, empty for what was published, and None where
    that endpoint has gone, so that nobody is subscribed to it.
    """

    source: str | None
    context: Mapping[str, Any]
    view: View
    targets: Mapping[Target, ProjectedObject]

    async def answer(self, subscription: ProjectedObject) -> Answer:
        """What a subscription says to it."""
        if not is_subscribed(subscription, self.source):
            return _no(subscription, Refusal("OTHER_SOURCE"))
        (refused,) = await refusals([subscription], self.context, self.view)
        if refused is not None:
            return _no(subscription, refused)
        route = await route_of(subscription, self.targets, self.view)
        if isinstance(route, Refusal):
            return _no(subscription, route)
        # What is delivered to an endpoint that is inactive waits until it is active.
        waits = TAKES if route.target.spec["is_active"] else "TARGET_INACTIVE"
        return Answer(subscription.name, takes=True, reason=waits)


def _no(subscription: ProjectedObject, refused: Refusal) -> Answer:
    return Answer(subscription.name, takes=False, reason=refused.reason, message=refused.message)
