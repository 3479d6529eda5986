"""Shorthands of an integration, and the subscriptions that they stand for: pure.

Each expands to a Subscription with a label of ours, in the plan of the change that brings it and in
the name of its source. It changes and goes with its shorthand, and no document may be about it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.chassis.errors import Violation
from services.chassis.ids import SLUG, SLUG_RULE
from services.registry.wanted.objects import LABELS, Complete, Declared, Key

OURS: Final = "tenon/"
"""What the names of labels begin with that no document may set."""
EXPANDED_FROM: Final = f"{OURS}expanded-from"
RELEASE_STARTED: Final = "release.started"
EPIC: Final = "Epic"
FIELD: Final = "spec.automation"

Automation = Mapping[str, Any]
Known = Mapping[Key, Complete]
Found = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Shorthand:
    """A field of `automation`, and what its subscription is.

    `with_it` are fields that mean nothing without it; `places` says which field of the automation a
    field of the subscription comes from, where it is not the shorthand itself.
    """

    field: str
    suffix: str
    role: str
    event_types: Callable[[Automation], Sequence[str]]
    input: Callable[[Automation], Mapping[str, Any]]
    with_it: tuple[str, ...] = ()
    places: tuple[tuple[str, str], ...] = ()


def _told(automation: Automation) -> Sequence[str]:
    return list(automation["notify_on_events"])


def _release(_: Automation) -> Sequence[str]:
    return [RELEASE_STARTED]


def _channel(automation: Automation) -> Mapping[str, Any]:
    return {"channel": automation["channel"]} if automation["channel"] else {}


def _nothing(_: Automation) -> Mapping[str, Any]:
    return {}


def _epic(automation: Automation) -> Mapping[str, Any]:
    return {"type": EPIC, **(automation["epic_template"] or {})}


SHORTHANDS: Final = (
    Shorthand(
        *("notify_on_events", "notify", "message", _told, _channel),
        with_it=("channel",),
        places=(("spec.action.input.channel", "channel"),),
    ),
    Shorthand("trigger_on_release", "release", "pipeline", _release, _nothing),
    Shorthand(
        *("auto_create_epics", "epic", "ticket", _release, _epic),
        with_it=("epic_template",),
        places=(("spec.action.input", "epic_template"),),
    ),
)


def is_ours(label: str) -> bool:
    """Whether a label is none that a document may set."""
    return label.startswith(OURS)


def expanded_from(one: Complete | None) -> str:
    """The integration that a subscription is expanded from; empty where it stands for itself."""
    label = one.fields[LABELS].get(EXPANDED_FROM, "") if one and one.kind == "Subscription" else ""
    return str(label).removeprefix("Integration/")


def keys_of(integration: str) -> list[Key]:
    """All that an integration's shorthands may expand to."""
    return [("Subscription", _name(integration, each)) for each in SHORTHANDS]


def expanded(integration: Complete) -> Iterator[tuple[Shorthand, Declared]]:
    """What an integration's shorthands stand for."""
    automation = integration.spec()["automation"]
    for each in SHORTHANDS:
        if automation[each.field]:
            said = {"integration": integration.name, "role": each.role}
            fields = {
                LABELS: {EXPANDED_FROM: f"Integration/{integration.name}"},
                "spec.event_types": each.event_types(automation),
                "spec.action": {**said, "input": dict(each.input(automation))},
            }
            yield each, Declared("Subscription", _name(integration.name, each), fields)


def following(declared: Sequence[Declared], current: Known, known: Known) -> list[Declared]:
    """What is to be declared, too, where these are: their integrations' subscriptions.

    `known` has every object as it will be. One that stands already as it is to be is among them;
    what is in the way of one is left to `check_automation` and `taken`.
    """
    said = {one.key for one in declared}
    found: dict[Key, Declared] = {}
    for one in declared:
        if one.kind != "Integration":
            continue
        integration = known.get(one.key)
        wanted = [each for _, each in expanded(integration)] if integration else []
        for each in wanted:
            there = current.get(each.key)
            if each.key not in said and (there is None or expanded_from(there) == one.name):
                found[each.key] = replace(each, file=one.file, line=one.line)
        for key in keys_of(one.name):
            free = key not in found and key not in said
            if free and expanded_from(current.get(key)) == one.name:
                found[key] = Declared(*key, {}, file=one.file, line=one.line, absent=True)
    return list(found.values())


def taken(declared: Sequence[Declared], current: Known) -> list[Violation]:
    """The faults of documents about a subscription that a shorthand stands for."""
    return [
        Violation(
            f"{one.kind}/{one.name}#metadata.name",
            f"is what a shorthand of Integration {integration} stands for: change it there, or take"
            " the shorthand away in a change before this one",
        )
        for one in declared
        if (integration := expanded_from(current.get(one.key)))
    ]


def check_automation(one: Complete, known: Known) -> Found:
    """Whether an integration's shorthands can stand for what they do."""
    automation = one.spec()["automation"]
    for each in SHORTHANDS:
        for name in each.with_it:
            if automation[name] and not automation[each.field]:
                yield f"{FIELD}.{name}", f"goes with {each.field}, and only with that"
    for each, subscription in expanded(one):
        if not SLUG.fullmatch(subscription.name):
            words = f"stands for Subscription {subscription.name}, and a name is {SLUG_RULE}"
            yield f"{FIELD}.{each.field}", words
        there = known.get(subscription.key)
        if there is not None and expanded_from(there) != one.name:
            words = f"stands for Subscription {there.name}, and there is another one of this name"
            yield f"{FIELD}.{each.field}", words


def blamed(fault: Violation, known: Known) -> Violation:
    """The fault, at the shorthand where it is one of the subscription that this stands for."""
    target, _, path = fault.field.partition("#")
    kind, _, name = target.partition("/")
    integration = expanded_from(known.get((kind, name)))
    for each in SHORTHANDS if integration else ():
        if name == _name(integration, each):
            return replace(fault, field=f"Integration/{integration}#{FIELD}.{_place(each, path)}")
    return fault


def _place(shorthand: Shorthand, path: str) -> str:
    for begin, field in shorthand.places:
        if path == begin or path.startswith(f"{begin}."):
            return field + path.removeprefix(begin)
    return shorthand.field


def _name(integration: str, shorthand: Shorthand) -> str:
    return f"{integration}-{shorthand.suffix}"
