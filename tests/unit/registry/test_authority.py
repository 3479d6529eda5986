"""Nobody gives away more than they have: a law over generated tenants, callers and documents."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument, NotFound, PermissionDenied, TenonError
from services.chassis.secret import Secret
from services.chassis.tenancy import Access, Grant, Principal
from services.providers.catalog import Catalog
from services.registry.access import roles
from services.registry.access.authority import BY_DOCUMENT, Authority
from services.registry.keys.vault import Vault
from services.registry.messages.config import SCHEMAS
from services.registry.wanted.drafts import Draft, Drafts, Submission
from services.registry.wanted.objects import Complete, Declared, Key

READ = frozenset({"tenants.read"})
MANAGE = READ | {"connectors.run", "config.plan"}
ADMINISTER = MANAGE | {"config.apply", "access.manage", "audit.read"}
BUILT_IN = {"VIEWER": READ, "MANAGER": MANAGE, "ADMIN": ADMINISTER}
# Of both the last is never named: what is given for all is given for it, too.
KINDS = ("Connector", "Role", "RoleBinding", "Credential")
SOURCES = ("cli", "git", "elsewhere")
DRAFTS = Drafts(
    Catalog.load(), SCHEMAS, Vault(Secret(bytes(32))), cast("Any", None), cast("Any", None)
)

PERMISSIONS = st.lists(
    st.sampled_from(["connectors.run", "config.apply", "access.manage"]),
    min_size=1,
    max_size=3,
    unique=True,
)
SUBJECTS = st.sampled_from(
    [
        {"kind": kind, "issuer": "", "name": name}
        for kind in ("user", "source")
        for name in ("git", "eve")
    ]
)
SPECS: Mapping[str, st.SearchStrategy[dict[str, Any]]] = {
    "Role": st.fixed_dictionaries({"permissions": PERMISSIONS}),
    "RoleBinding": st.fixed_dictionaries(
        {"role": st.sampled_from([*BUILT_IN, "own-a", "own-b"]), "subject": SUBJECTS},
        optional={
            "kinds": st.lists(st.sampled_from(KINDS[1:-1]), min_size=1, max_size=2, unique=True),
            "sources": st.sampled_from([["cli"], ["git"], ["*"]]),
        },
    ),
}
NAMES = {"Role": ("own-a", "own-b"), "RoleBinding": ("one", "two", "three")}


@st.composite
def documents(draw: st.DrawFn) -> Declared:
    kind = draw(st.sampled_from(sorted(SPECS)))
    name = draw(st.sampled_from(NAMES[kind]))
    if draw(st.integers(0, 5)) == 0:
        return Declared(kind, name, {}, absent=True)
    spec = draw(SPECS[kind])
    return Declared(kind, name, {f"spec.{field}": value for field, value in spec.items()})


def sets(most: int) -> st.SearchStrategy[list[Declared]]:
    return st.lists(documents(), min_size=1, max_size=most, unique_by=lambda one: one.key)


# Near to what lets them change access at all: others are refused at once.
GRANTS = st.builds(
    Grant,
    role=st.just("some"),
    permissions=st.sampled_from(
        [ADMINISTER, frozenset({"config.apply", "access.manage"}), frozenset({"connectors.run"})]
    ),
    kinds=st.sampled_from([(), ("Role",), ("RoleBinding",), ("Role", "RoleBinding")]).map(
        frozenset
    ),
    sources=st.sampled_from([("cli",), ("*",)]).map(frozenset),
)


@dataclass(frozen=True)
class Caller:
    """Somebody with these grants in the tenant."""

    grants: tuple[Grant, ...]

    def authority(self) -> Authority:
        access = Access("acme", uuid4(), self.grants)
        principal = Principal(uuid4(), "user", "somebody", {"acme": access})
        return Authority(principal, "config.apply", "acme")


def submitted(
    current: Mapping[Key, Complete], caller: Caller, declared: Iterable[Declared], source: str
) -> Draft:
    """What is left after a submission; raises what refuses it."""
    submission = Submission("acme", source, tuple(declared))
    authority = caller.authority()
    authority.check(submission.declared, source)
    draft = DRAFTS._draft(submission, 1, current, {}, BUILT_IN)
    authority.check_gifts(draft.plan.changes, draft.known, BUILT_IN)
    return draft


def powers(grants: Iterable[Grant]) -> set[tuple[str, str, str]]:
    """Every (permission, kind, source) that grants allow; the others hold for all kinds."""
    return {
        (permission, kind, source)
        for grant in grants
        for permission in grant.permissions
        for kind in KINDS
        for source in SOURCES
        if permission not in BY_DOCUMENT or grant.may_change(permission, kind, source)
    }


def by_subject(known: Mapping[Key, Complete]) -> dict[str, set[tuple[str, str, str]]]:
    """What every subject of a tenant may do there."""
    found: dict[str, set[tuple[str, str, str]]] = {}
    for one in known.values():
        if one.kind == "RoleBinding":
            who = str(one.spec()["subject"])
            found.setdefault(who, set()).update(powers([roles.given(one, known, BUILT_IN)]))
    return found


def objects(declared: Iterable[Declared]) -> dict[Key, Complete]:
    """The objects of documents that somebody mighty has applied."""
    caller, current = Caller((Grant("ADMIN", ADMINISTER),)), dict[Key, Complete]()
    for one in sorted(declared, key=lambda each: each.kind):
        try:
            current = dict(submitted(current, caller, [one], "cli").known)
        except TenonError:
            continue
    return current


@settings(max_examples=1500, deadline=None)
@given(sets(4), st.lists(GRANTS, min_size=1, max_size=2), sets(2))
def test_nobody_has_more_afterwards_than_the_submitter_had_before(
    standing: list[Declared], grants: list[Grant], wanted: list[Declared]
) -> None:
    before = objects(standing)
    caller = Caller(tuple(grants))
    try:
        after = submitted(before, caller, wanted, "cli").known
    except TenonError:
        return
    had, has = by_subject(before), by_subject(after)
    for subject, may in has.items():
        assert may - had.get(subject, set()) <= powers(caller.grants), subject


def role(name: str, *permissions: str) -> Declared:
    return Declared("Role", name, {"spec.permissions": list(permissions)})


def binding(name: str, to: str, **spec: Any) -> Declared:
    subject = {"kind": "user", "issuer": "", "name": "eve"}
    said = {"role": to, "subject": subject} | spec
    return Declared("RoleBinding", name, {f"spec.{key}": value for key, value in said.items()})


def test_who_has_all_gives_all() -> None:
    caller = Caller((Grant("ADMIN", ADMINISTER),))
    wanted = [role("own-a", "config.apply"), binding("one", "own-a"), binding("two", "ADMIN")]
    draft = submitted({}, caller, wanted, "cli")
    assert len(draft.plan.changes) == 3


def test_every_document_outside_the_allow_list_is_named_at_once() -> None:
    caller = Caller((Grant("ADMIN", ADMINISTER, kinds=frozenset({"Connector"})),))
    connector = Declared("Connector", "triage", {})
    with pytest.raises(PermissionDenied) as caught:
        submitted(
            {}, caller, [role("own-a", "tenants.read"), connector, binding("one", "ADMIN")], "git"
        )
    told = [(one.field, one.description.partition(" here")[0]) for one in caught.value.violations]
    assert told == [
        ("Role/own-a#", "you have no config.apply"),
        ("Role/own-a#", "you have no access.manage"),
        ("RoleBinding/one#", "you have no config.apply"),
        ("RoleBinding/one#", "you have no access.manage"),
    ]


def test_a_source_is_held_to_its_names() -> None:
    caller = Caller((Grant("ADMIN", ADMINISTER, sources=frozenset({"git"})),))
    submitted({}, caller, [role("own-a", "tenants.read")], "git")
    with pytest.raises(PermissionDenied):
        submitted({}, caller, [role("own-a", "tenants.read")], "cli")
    # Nor does it bind anybody who may apply under another name.
    with pytest.raises(PermissionDenied) as caught:
        submitted({}, caller, [binding("one", "ADMIN")], "git")
    assert "access.manage, config.apply" in caught.value.violations[0].description
    submitted({}, caller, [binding("one", "ADMIN", sources=["git"])], "git")


def test_a_permission_added_to_a_role_is_a_gift_to_all_who_are_bound_to_it() -> None:
    current = objects([role("own-a", "tenants.read"), binding("one", "own-a")])
    narrow = Grant("ADMIN", ADMINISTER, kinds=frozenset({"Role"}))
    with pytest.raises(PermissionDenied) as caught:
        submitted(current, Caller((narrow,)), [role("own-a", "config.apply")], "cli")
    (violation,) = caught.value.violations
    assert "RoleBinding one would give more" in violation.description


def test_what_is_wrong_with_roles_and_bindings_is_said_with_a_hint() -> None:
    caller = Caller((Grant("ADMIN", ADMINISTER),))
    wanted = [
        role("own-a", "config.aply", "tenants.create"),
        binding("one", "admin"),
        binding("two", "VIEWER", kinds=["Conector"]),
        binding("three", "VIEWER"),
    ]
    with pytest.raises(InvalidArgument) as caught:
        submitted({}, caller, wanted, "cli")
    told = {(each.field, each.description) for each in caught.value.violations}
    assert told == {
        (
            "Role/own-a#spec.permissions[0]",
            "is no permission that ADMIN has (did you mean config.apply?)",
        ),
        (
            "Role/own-a#spec.permissions[1]",
            "is no permission that ADMIN has (did you mean tenants.read?)",
        ),
        ("RoleBinding/one#spec.role", "there is no Role of this name (did you mean ADMIN?)"),
        ("RoleBinding/two#spec.kinds[0]", "there is no such kind (did you mean Connector?)"),
        ("RoleBinding/two#spec.subject", "has this role by RoleBinding three already"),
        ("RoleBinding/three#spec.subject", "has this role by RoleBinding two already"),
    }


def test_what_is_not_there_is_not_deleted() -> None:
    with pytest.raises(NotFound):
        submitted(
            {},
            Caller((Grant("ADMIN", ADMINISTER),)),
            [Declared("Role", "own-a", {}, absent=True)],
            "cli",
        )


def test_nobody_makes_a_role_of_what_they_have_not_even_for_nobody() -> None:
    caller = Caller((Grant("own", frozenset({"config.apply", "access.manage", "tenants.read"})),))
    submitted({}, caller, [role("own-a", "tenants.read")], "cli")
    with pytest.raises(PermissionDenied) as caught:
        submitted({}, caller, [role("own-a", "tenants.read", "connectors.run")], "cli")
    (violation,) = caught.value.violations
    assert violation.field == "Role/own-a#spec.permissions"
    assert violation.description == "is more than you have here: connectors.run"
