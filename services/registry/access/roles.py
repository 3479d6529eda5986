"""What Roles and RoleBindings mean, and whether they make sense: pure.

The built-in roles come as what each of them allows, by name; a tenant's own are among its objects.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.chassis.constraints import did_you_mean
from services.chassis.tenancy import ANY_SOURCE, Grant
from services.registry.wanted.objects import ORDER, Complete, Key

BuiltIn = Mapping[str, frozenset[str]]
Known = Mapping[Key, Complete]

BOUND_IN_TENANTS: Final = ("VIEWER", "MANAGER", "ADMIN")
"""The built-in roles that a tenant may bind; the others are the platform's."""

MOST: Final = "ADMIN"
"""What it allows is the most that a tenant may give."""


def given(binding: Complete, known: Known, built_in: BuiltIn) -> Grant:
    """What a RoleBinding gives to its subject."""
    spec = binding.spec()
    return Grant(
        role=spec["role"],
        permissions=_allowed(spec["role"], known, built_in),
        kinds=frozenset(spec["kinds"]),
        sources=frozenset(spec["sources"]) or _sources_of(spec["subject"]),
    )


def bindings_of(role: str, known: Known) -> Iterator[Complete]:
    """Every RoleBinding that gives a role."""
    return (one for one in known.values() if one.kind == "RoleBinding" and _role(one) == role)


def faults(one: Complete, known: Known, built_in: BuiltIn) -> Iterator[tuple[str, str]]:
    """What is wrong with a Role or a RoleBinding: paths and sentences; nothing of other kinds."""
    if one.kind == "Role":
        yield from _of_role(one, built_in)
    elif one.kind == "RoleBinding":
        yield from _of_binding(one, known)


def _of_role(one: Complete, built_in: BuiltIn) -> Iterator[tuple[str, str]]:
    most = built_in[MOST]
    for index, permission in enumerate(one.spec()["permissions"]):
        if permission not in most:
            hint = did_you_mean(permission, sorted(most))
            yield f"spec.permissions[{index}]", f"is no permission that {MOST} has{hint}"


def _of_binding(one: Complete, known: Known) -> Iterator[tuple[str, str]]:
    spec = one.spec()
    for index, kind in enumerate(spec["kinds"]):
        if kind not in ORDER:
            yield f"spec.kinds[{index}]", f"there is no such kind{did_you_mean(kind, ORDER)}"
    for index, source in enumerate(spec["sources"]):
        if not source:
            yield f"spec.sources[{index}]", "must be a source's name, or *"
    same = (other for other in bindings_of(spec["role"], known) if other.key != one.key)
    twin = next((other for other in same if other.spec()["subject"] == spec["subject"]), None)
    if twin is not None:
        yield "spec.subject", f"has this role by RoleBinding {twin.name} already"


def _allowed(role: str, known: Known, built_in: BuiltIn) -> frozenset[str]:
    own = known.get(("Role", role))
    if own is not None:
        return frozenset(own.spec()["permissions"])
    return built_in.get(role, frozenset())


def _sources_of(subject: Mapping[str, Any]) -> frozenset[str]:
    """Where a binding names none: a source is itself alone, whoever else is any."""
    return frozenset({subject["name"] if subject["kind"] == "source" else ANY_SOURCE})


def _role(binding: Complete) -> str:
    return str(binding.spec()["role"])
