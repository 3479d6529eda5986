"""Which subscriptions take an event, and why others do not."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from services.chassis.evaluator import View
from services.chassis.expressions import ExpressionError
from services.executor.store.projected import ProjectedObject

log = logging.getLogger(__name__)

FAMILY: Final = ".*"


class Refusal(NamedTuple):
    """Why nothing comes of an event by a subscription; `message` is an expression's fault."""

    reason: str
    message: str = ""


async def matching(
    subscriptions: Sequence[ProjectedObject], event: Mapping[str, Any], view: View
) -> list[ProjectedObject]:
    """Those that take the event {id, type}: active, of its type, and true is the filter on `view`.

    A filter that has no answer for this event does not hold; the log says why. Raises Unavailable
    where it should be tried again.
    """
    found = []
    answers = await refusals(subscriptions, event, view)
    for each, refused in zip(subscriptions, answers, strict=True):
        if refused is None:
            found.append(each)
        elif refused.message:
            words = "the filter of subscription %s has no answer for event %s: %s"
            log.warning(words, each.name, event["id"], refused.message)
    return found


async def refusals(
    subscriptions: Sequence[ProjectedObject], event: Mapping[str, Any], view: View
) -> list[Refusal | None]:
    """Why each subscription to its source does not take an event; None: it does."""
    found = [_outside(each.spec, event["type"]) for each in subscriptions]
    asked = [
        at for at, each in enumerate(subscriptions) if found[at] is None and each.spec["filter"]
    ]
    answers = await view.which_hold([subscriptions[at].spec["filter"] for at in asked])
    for at, answer in zip(asked, answers, strict=True):
        found[at] = _filtered(answer)
    return found


def _outside(spec: Mapping[str, Any], event_type: str) -> Refusal | None:
    if not spec["is_active"]:
        return Refusal("INACTIVE")
    return None if of_types(spec["event_types"], event_type) else Refusal("OTHER_TYPE")


def _filtered(answer: bool | ExpressionError) -> Refusal | None:  # noqa: FBT001 - an answer
    if isinstance(answer, ExpressionError):
        return Refusal("FILTER_FAILED", answer.message)
    return None if answer else Refusal("FILTERED")


def of_types(patterns: Sequence[str], event_type: str) -> bool:
    """Whether a type is one of `patterns`; `a.*` takes `a` and every `a.…`, none takes all."""
    return not patterns or any(_is_of(pattern, event_type) for pattern in patterns)


def _is_of(pattern: str, event_type: str) -> bool:
    if not pattern.endswith(FAMILY):
        return pattern == event_type
    family = pattern.removesuffix(FAMILY)
    return event_type == family or event_type.startswith(f"{family}.")
