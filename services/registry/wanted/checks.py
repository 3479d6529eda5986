"""Whether wanted objects make sense together: pure, and every fault at once.

A fault's field is `Kind/name#path`, so that the reconciler can point at file, line and column.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any, Final

from services.chassis import constraints, expressions, jsonpath, templates
from services.chassis.errors import InvalidArgument, NotFound, Violation
from services.chassis.ids import SLUG, SLUG_RULE, TENANT_ID
from services.providers import roles
from services.providers.catalog import Catalog
from services.providers.manifest import Manifest
from services.providers.urls import template_names
from services.registry.access.roles import BOUND_IN_TENANTS
from services.registry.wanted.credential_checks import (
    check_app_of,
    check_connection,
    check_credential,
    check_provider_of,
)
from services.registry.wanted.endpoint_checks import check_endpoint, check_routes
from services.registry.wanted.event_type_checks import check_event_type
from services.registry.wanted.objects import LABELS, Complete, Declared, Key, Schemas, spec_of
from services.registry.wanted.schedule_checks import check_schedule
from services.registry.wanted.shorthands import OURS, check_automation, is_ours
from services.registry.wanted.sync_checks import check_sync, check_sync_target

LONGEST_TIMEOUT_S: Final = 300.0
MOST_ATTEMPTS: Final = 10
MOST_AT_ONCE: Final = 1000
HEAVIEST: Final = 100
LONGEST_WAIT_S: Final = 3600.0
LONGEST_RUN_S: Final = 86_400.0
MOST_RETRIES: Final = 10
MOST_APPROVALS: Final = 5
LONGEST_REVIEW_S: Final = 30 * 86_400.0
DEEPEST_FIELD: Final = 8
STREAMS: Final = "app"
"""In the place of a tenant in an url of the ingress; no tenant has this name."""

# What expressions may name: the executor gives them values.
EVENT: Final = frozenset({"id", "type", "payload", "headers"})
CONTEXT: Final[expressions.Names] = {
    "event": EVENT,
    "input": None,
    "integration": frozenset({"name", "config"}),
}
TEMPLATED: Final = ("path", "path_params", "query", "headers", "body")
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_EXPRESSION: Final = re.compile(r"\$\{.*?\}")

Found = Iterator[tuple[str, str]]


def check_declared(declared: Sequence[Declared], tenant: str, schemas: Schemas) -> list[Violation]:
    """The faults of documents taken alone: names, constraints, duplicates, another tenant."""
    times = Counter(one.key for one in declared)
    return [
        violation(one.key, path, sentence)
        for one in declared
        for path, sentence in _alone(one, tenant, schemas, times)
    ]


def _alone(one: Declared, tenant: str, schemas: Schemas, times: Mapping[Key, int]) -> Found:
    if not SLUG.fullmatch(one.name):
        yield "metadata.name", f"a name is {SLUG_RULE}"
    if one.tenant not in {"", tenant}:
        yield "metadata.tenant", "is another tenant than the change is for"
    if times[one.key] > 1:
        yield "metadata.name", "is declared twice"
    if one.kind == "Tenant":
        yield from _tenant_alone(one, tenant)
    if one.absent:
        if one.kind == "Tenant":
            yield "", "a tenant is deleted by DeleteTenant alone"
        return
    yield from constraints.faults(schemas[one.kind], spec_of(one.fields), "spec")
    yield from _unfit(one)


def _unfit(one: Declared) -> Found:
    if any(map(is_ours, one.fields.get(LABELS, {}))):
        yield LABELS, f"that begin with {OURS} are not for documents"
    for field, value in one.fields.items():
        if _has_nul(value):
            yield field, "has a NUL character, which no text here can hold"


def _tenant_alone(one: Declared, tenant: str) -> Found:
    if one.name != tenant:
        yield "metadata.name", f"this is a change of tenant {tenant}"
    if TENANT_ID.fullmatch(one.name):
        # Calls may name a tenant by its id: a slug must never be taken for one.
        yield "metadata.name", "must not look like an id"
    if one.name == STREAMS:
        yield "metadata.name", "is where the streams of apps come in (/v1/app/…)"


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(inner) for key, inner in value.items())
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


class Checks:
    """The faults of complete objects, given all they refer to."""

    def __init__(self, catalog: Catalog, schemas: Schemas) -> None:
        self._catalog = catalog
        self._schemas = schemas
        self._by_kind: Mapping[str, Callable[[Complete, Mapping[Key, Complete]], Found]] = {
            "Tenant": self._tenant,
            "Integration": self._integration,
            "Credential": partial(check_credential, catalog=catalog),
            "Connection": check_connection,
            "Connector": self._connector,
            "WebhookEndpoint": partial(_endpoint, catalog=catalog),
            "Subscription": partial(_subscription, catalog=catalog),
            "EventType": check_event_type,
            "ReviewPolicy": self._policy,
        }

    def check(self, changed: Iterable[Complete], known: Mapping[Key, Complete]) -> list[Violation]:
        """Every fault of the changed objects; `known` has them and all they may refer to."""
        faults = []
        for one in changed:
            for path, sentence in self._faults(one, known):
                faults.append(violation(one.key, path, sentence))
        return faults

    def _faults(self, one: Complete, known: Mapping[Key, Complete]) -> Found:
        spec = one.spec()
        for path, kind, name in constraints.references(self._schemas[one.kind], spec, "spec"):
            if (kind, name) not in known:
                names = [other for other_kind, other in known if other_kind == kind]
                names += BOUND_IN_TENANTS if kind == "Role" else ()
                yield (
                    path,
                    f"there is no {kind} of this name{constraints.did_you_mean(name, names)}",
                )
        check = self._by_kind.get(one.kind)
        if check is not None:
            yield from check(one, known)

    def _tenant(self, one: Complete, _: Mapping[Key, Complete]) -> Found:
        limits, path = one.spec()["limits"], "spec.limits"
        yield from _within(limits["weight"], 1, HEAVIEST, f"{path}.weight")
        for name in ("max_running", "work_per_hour"):
            yield from _not_negative(limits[name], f"{path}.{name}")
        for provider, most in limits["max_running_per_provider"].items():
            inner = f"{path}.max_running_per_provider.{provider}"
            if self._manifest(provider) is None:
                names = [each.provider for each in self._catalog]
                yield inner, f"is not in the catalog{constraints.did_you_mean(provider, names)}"
            if most < 1:
                yield inner, "must be 1 or more; leave it out for no limit"

    def _policy(self, one: Complete, _: Mapping[Key, Complete]) -> Found:
        spec = one.spec()
        for index, kind in enumerate(spec["kinds"]):
            if kind not in self._schemas:
                hint = constraints.did_you_mean(kind, list(self._schemas))
                yield f"spec.kinds[{index}]", f"there is no kind of this name{hint}"
        yield from _within(spec["approvals"], 1, MOST_APPROVALS, "spec.approvals")
        if not 0 < seconds(spec["expires"]) <= LONGEST_REVIEW_S:
            yield "spec.expires", f"must be more than 0s and at most {LONGEST_REVIEW_S:.0f}s"

    def _integration(self, one: Complete, known: Mapping[Key, Complete]) -> Found:
        spec = one.spec()
        manifest = self._manifest(spec["provider"])
        if manifest is None:
            names = [each.provider for each in self._catalog]
            hint = constraints.did_you_mean(spec["provider"], names)
            yield "spec.provider", f"is not in the catalog{hint}"
            return
        problem = manifest.base_url_problem(spec["base_url"] or None)
        if problem:
            yield "spec.base_url", problem
        for fault in manifest.config_violations(spec["config"] or {}):
            yield f"spec.config.{fault.field}", fault.description
        credential = known.get(("Credential", spec["credential"]))
        kind = credential.spec()["type"] if credential else "none"
        if (credential or not spec["credential"]) and manifest.auth_rule(kind) is None:
            takes = ", ".join(rule.type for rule in manifest.auth)
            yield "spec.credential", f"{manifest.provider} takes {takes}, not {kind}"
        yield from check_app_of(one, known)
        yield from check_provider_of(one, known)
        yield from check_automation(one, known)
        yield from check_sync(spec, manifest)
        if other := _other_primary(one, known):
            yield "spec.is_primary", f"{other} is primary for this provider and environment"

    def _connector(self, one: Complete, known: Mapping[Key, Complete]) -> Found:
        spec = one.spec()
        yield from _lane(spec["lane"], "spec.lane")
        yield from check_schedule(spec["schedule"], "spec.schedule")
        names: set[str] = set()
        for index, step in enumerate(spec["steps"]):
            path = f"spec.steps[{index}]"
            if step["name"] in names:
                yield f"{path}.name", "is the name of an earlier step"
            integration = known.get(("Integration", step["integration"]))
            manifest = self._manifest(integration.spec()["provider"]) if integration else None
            yield from _step(step, path, manifest, {**CONTEXT, "steps": frozenset(names)})
            if integration is not None and manifest is not None:
                settings = integration.spec()["config"] or {}
                yield from _target(step, path, manifest, settings.keys())
            names.add(step["name"])
        yield from _run(spec)
        seen = {"event": EVENT, "input": None, "steps": frozenset(names)}
        yield from _mappings(spec["output"], "spec.output", seen)

    def _manifest(self, provider: str) -> Manifest | None:
        try:
            return self._catalog.get(provider)
        except NotFound:
            return None


def violation(key: Key, path: str, sentence: str) -> Violation:
    """A fault at a path of one object."""
    return Violation(f"{key[0]}/{key[1]}#{path}", sentence)


def refuse(faults: Sequence[Violation]) -> None:
    """Raise InvalidArgument with all faults, if there are any."""
    if faults:
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InvalidArgument(
            f"{count} in what is wanted", reason="INVALID_CONFIG", violations=faults
        )


def _other_primary(one: Complete, known: Mapping[Key, Complete]) -> str | None:
    place = _primary_of(one)
    if place is None:
        return None
    others = (other for other in known.values() if other.key != one.key)
    return next((other.name for other in others if _primary_of(other) == place), None)


def _primary_of(one: Complete) -> tuple[str, str] | None:
    """The provider and environment for which an integration is primary."""
    if one.kind != "Integration" or not one.fields["spec.is_primary"]:
        return None
    return one.fields["spec.provider"], one.fields["spec.environment"]


def _endpoint(one: Complete, known: Mapping[Key, Complete], catalog: Catalog) -> Found:
    yield from check_endpoint(one, known, catalog)
    delivery = one.spec()["delivery"]
    yield from _expression(delivery["key"], "spec.delivery.key", {"event": EVENT})
    for _, sentence in templates.problems(one.spec()["subject"], {"event": EVENT}):
        yield "spec.subject", sentence


def _subscription(one: Complete, known: Mapping[Key, Complete], catalog: Catalog) -> Found:
    spec = one.spec()
    yield from _expression(spec["filter"], "spec.filter", {"event": EVENT})
    for inner, sentence in templates.problems(spec["transform"], {"event": EVENT}):
        yield f"spec.transform{inner}", sentence
    yield from check_routes(one, known)
    yield from _action(spec["action"], known, catalog)
    yield from check_sync_target(spec["sync"], known)


def _action(action: Mapping[str, Any], known: Mapping[Key, Complete], catalog: Catalog) -> Found:
    """Whether an integration can do what is wanted of it, by its provider's manifest."""
    path = "spec.action"
    said, names = action["input"] or {}, {name: CONTEXT[name] for name in ("event", "integration")}
    for inner, sentence in templates.problems(said, names):
        yield f"{path}.input{inner}", sentence
    yield from _retry(action["retry"], f"{path}.retry")
    integration = known.get(("Integration", action["integration"]))
    spec = integration.spec() if integration else {}
    manifest = catalog.manifests.get(spec.get("provider", ""))
    if manifest is not None:
        settings = manifest.config_with_defaults(spec["config"] or {})
        wanted = roles.Action(action["role"], action["operation"], said)
        for inner, sentence in roles.problems(manifest, wanted, settings):
            yield f"{path}.{inner}", sentence


def _lane(lane: Mapping[str, Any], path: str) -> Found:
    yield from _within(lane["concurrency"], 1, MOST_AT_ONCE, f"{path}.concurrency")
    yield from _not_negative(lane["rate_per_minute"], f"{path}.rate_per_minute")


def _run(spec: Mapping[str, Any]) -> Found:
    """What bounds a run as a whole."""
    timeout = spec["timeout"]
    if timeout is not None and not 0 < seconds(timeout) <= LONGEST_RUN_S:
        yield "spec.timeout", f"must be more than 0s and at most {LONGEST_RUN_S:.0f}s"
    yield from _within(spec["max_retries"], 0, MOST_RETRIES, "spec.max_retries")


def _mappings(mappings: Sequence[Mapping[str, Any]], path: str, names: expressions.Names) -> Found:
    """Whether field mappings name what is there, and go to places that exclude no other."""
    taken: set[tuple[str, ...]] = set()
    for index, mapping in enumerate(mappings):
        here = f"{path}[{index}]"
        yield from _expression(mapping["source"], f"{here}.source", names)
        yield from _expression(mapping["transform"], f"{here}.transform", {"value": None})
        parts = tuple(mapping["target"].split("."))
        if not all(map(_FIELD.fullmatch, parts)) or len(parts) > DEEPEST_FIELD:
            words = f"must be up to {DEEPEST_FIELD} names of letters, digits and _, joined by dots"
            yield f"{here}.target", words
        if any(parts[: len(one)] == one or one[: len(parts)] == parts for one in taken):
            yield f"{here}.target", "is, holds or is held by the target of an earlier mapping"
        taken.add(parts)


def _within(value: int, least: int, most: int, path: str) -> Found:
    if not least <= value <= most:
        yield path, f"must be {least} to {most}"


def _not_negative(value: int, path: str) -> Found:
    if value < 0:
        yield path, "must be 0, which is without limit, or more"


def _step(
    step: Mapping[str, Any], path: str, manifest: Manifest | None, names: expressions.Names
) -> Found:
    yield from _expression(step["condition"], f"{path}.condition", names)
    for part in TEMPLATED:
        for inner, sentence in templates.problems(step[part], names):
            yield f"{path}.{part}{inner}", sentence
    for name, text in step["extract"].items():
        yield from _json_path(text, f"{path}.extract.{name}")
    if not 0 < seconds(step["timeout"]) <= LONGEST_TIMEOUT_S:
        yield f"{path}.timeout", f"must be more than 0s and at most {LONGEST_TIMEOUT_S:.0f}s"
    yield from _retry(step["retry"], f"{path}.retry")
    if manifest is not None and step["operation"] and step["operation"] not in manifest.operations:
        hint = constraints.did_you_mean(step["operation"], list(manifest.operations))
        yield f"{path}.operation", f"{manifest.provider} has no operation of this name{hint}"


def _retry(retry: Mapping[str, Any], path: str) -> Found:
    if not 1 <= retry["max_attempts"] <= MOST_ATTEMPTS:
        yield f"{path}.max_attempts", f"must be 1 to {MOST_ATTEMPTS}"
    if not 0 < seconds(retry["base"]) <= seconds(retry["cap"]) <= LONGEST_WAIT_S:
        yield path, f"needs 0s < base, base <= cap, cap <= {LONGEST_WAIT_S:.0f}s"


def _target(step: Mapping[str, Any], path: str, manifest: Manifest, settings: Set[str]) -> Found:
    """Whether a step says what to call, with a value for every variable of the path."""
    if step["operation"]:
        if step["method"] or step["path"]:
            yield f"{path}.operation", "stands instead of method and path; give one or the other"
        operation = manifest.operations.get(step["operation"])
        needs = template_names(operation.path) if operation else frozenset()
    else:
        if not (step["method"] and step["path"]):
            yield path, "needs an operation, or a method and a path"
        needs = template_names(_EXPRESSION.sub("", step["path"]))
    for missing in sorted(needs - set(step["path_params"]) - settings):
        yield f"{path}.path_params", f"{missing} of the path is missing"


def _expression(text: str, path: str, names: expressions.Names) -> Found:
    try:
        problem = expressions.Expression.parse(text).problem(names) if text else None
    except expressions.ExpressionError as error:
        problem = error.message
    if problem:
        yield path, problem


def _json_path(text: str, path: str) -> Found:
    try:
        jsonpath.JsonPath.parse(text)
    except jsonpath.JsonPathError as error:
        yield path, error.message


def seconds(duration: str) -> float:
    """The seconds in a duration as protobuf's JSON writes it: `1.5s`."""
    return float(duration.removesuffix("s"))
