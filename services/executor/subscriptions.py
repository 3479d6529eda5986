"""Which subscriptions take an event."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.chassis.evaluator import View
from services.chassis.expressions import ExpressionError
from services.executor.store.projected import ProjectedObject

log = logging.getLogger(__name__)

FAMILY: Final = ".*"


async def matching(
    subscriptions: Sequence[ProjectedObject], event: Mapping[str, Any], view: View
) -> list[ProjectedObject]:
    """Those that take the event {id, type}: active, of its type, and true is the filter on `view`.

    A filter that has no answer for this event does not hold; the log says why. Raises Unavailable
    where it should be tried again.
    """
    asked = [each for each in subscriptions if _asks_for(each, event["type"])]
    return [each for each in asked if await _holds(each, view, event["id"])]


def _asks_for(subscription: ProjectedObject, event_type: str) -> bool:
    spec = subscription.spec
    return bool(spec["is_active"]) and of_types(spec["event_types"], event_type)


def of_types(patterns: Sequence[str], event_type: str) -> bool:
    """Whether a type is one of `patterns`; `a.*` takes `a` and every `a.…`, none takes all."""
    return not patterns or any(_is_of(pattern, event_type) for pattern in patterns)


def _is_of(pattern: str, event_type: str) -> bool:
    if not pattern.endswith(FAMILY):
        return pattern == event_type
    family = pattern.removesuffix(FAMILY)
    return event_type == family or event_type.startswith(f"{family}.")


async def _holds(subscription: ProjectedObject, view: View, event_id: str) -> bool:
    text = subscription.spec["filter"]
    if not text:
        return True
    try:
        return await view.holds(text)
    except ExpressionError as error:
        log.warning(
            "the filter of subscription %s has no answer for event %s: %s",
            subscription.name,
            event_id,
            error.message,
        )
        return False
