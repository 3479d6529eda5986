"""What the audit log keeps of a value: it fails closed.

Only what the contract types is kept as it is, redacted; of what is free in form (settings, headers,
templates, annotations) the log keeps the keys and that they changed. Numbers and booleans are no
safer than texts. A setting of an integration is kept where the provider's manifest declares it, and
not under the name of a secret.

What a plan shows its author is another matter: `audit.masked`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.chassis.errors import NotFound
from services.chassis.redaction import SECRET_NAME, redact
from services.chassis.rules import FieldRule
from services.chassis.secret import MASK
from services.providers.catalog import Catalog
from services.registry.wanted.objects import SECRET_VALUES, Schemas
from services.registry.wanted.plan import NOTHING, FieldChange

SHOWN: Final = 12
OWNER: Final = "owner"
"""Not a field of any object, but the source that had set some, or has now."""

# Typed as text by the contract, yet written by authors as templates and expressions.
TEMPLATED: Final[Mapping[str, frozenset[str]]] = {
    "Connector": frozenset(
        {
            *("spec.steps.path", "spec.steps.condition"),
            *("spec.output.source", "spec.output.transform"),
        }
    ),
    "Subscription": frozenset({"spec.filter"}),
}

# The fields that are kept of what is no document: the management of access, the switches.
# What is not named here is kept as a fact alone.
PLAIN: Final[Mapping[str, frozenset[str]]] = {
    "Key": frozenset(
        {
            *("name", "scopes", "address_ranges", "last4", "expires_at", "created_by"),
            *("revoked_at", "revoked_by", "revoke_reason"),
        }
    ),
    "Principal": frozenset(
        {"kind", "issuer", "subject", "display_name", "email", "disabled", "disabled_at"}
    ),
    "PlatformGrant": frozenset({"principal", "role", "kinds", "sources"}),
    "Staff": frozenset({"principal", "role", "permissions"}),
    "Tenant": frozenset({"state", "enabled", "forced", "reason", "slug"}),
    "PendingRevision": frozenset(
        {"policies", "approvals_needed", "approvals", "approved_by", "note"}
    ),
    "AuditEvent": frozenset({"note"}),
    "Config": frozenset({"faults"}),
    "Lane": frozenset({"pause_reason", "create_time"}),
    "ProviderSwitch": frozenset({"reason", "create_time"}),
    "Execution": frozenset({"state", "create_time"}),
    "Delivery": frozenset({"count", "since", "create_time"}),
    "Event": frozenset({"count", "since", "create_time"}),
    "ConsumerGroup": frozenset({"position", "create_time"}),
    "KeyVersion": frozenset({"state"}),
    "Credential": frozenset({"version", "reason"}),
}

_STEP: Final = re.compile(r"\.?([^.\[]+)|\[(\d+)\]")


class Masks:
    """What the log keeps, by the contract's schemas and the providers' manifests."""

    def __init__(self, schemas: Schemas, catalog: Catalog) -> None:
        self._schemas = schemas
        self._catalog = catalog

    def kept(self, kind: str, change: FieldChange, provider: str = "") -> dict[str, str]:
        """A change as the log keeps it: the path, and JSON before and after where there was any.

        `provider` is the one whose settings an integration's `config` holds; empty: unknown.
        """
        words = {"path": redact(change.path)}
        for name, value in (("before", change.before), ("after", change.after)):
            if value is not NOTHING:
                shown = self._shown(kind, change.path, value, provider)
                words[name] = json.dumps(shown, ensure_ascii=False, default=str)
        return words

    def _shown(self, kind: str, path: str, value: Any, provider: str) -> Any:
        if path == OWNER:
            return _redacted(value)
        if path == SECRET_VALUES or path.startswith(f"{SECRET_VALUES}."):
            return _fingerprints(value)
        if path == "spec.config" and isinstance(value, dict):
            return {k: self._setting(provider, k, v) for k, v in value.items()}
        if path.startswith("spec.config."):
            return self._setting(provider, path.removeprefix("spec.config."), value)
        rules, rest = self._schemas.get(kind, ()), path.removeprefix("spec.")
        if not path.startswith("spec."):
            return _redacted(value) if path in PLAIN.get(kind, ()) else hidden(value)
        return _Typed(TEMPLATED.get(kind, frozenset())).at(rules, "spec", rest, value)

    def _setting(self, provider: str, name: str, value: Any) -> Any:
        try:
            declared = self._catalog.get(provider).config.get(name)
        except NotFound:
            declared = None
        if declared is None or SECRET_NAME.search(name) or declared.problem(value):
            return hidden(value)
        return _redacted(value)


class _Typed:
    """Follows a path through the contract's types, and shows what they type."""

    def __init__(self, templated: frozenset[str]) -> None:
        self._templated = templated

    def at(self, rules: Sequence[FieldRule], above: str, rest: str, value: Any) -> Any:
        """The value at the `rest` of a path below a message of these fields."""
        name, rest = _split(rest)
        rule = next((one for one in rules if one.name == name), None)
        if rule is None or rule.many == "map" or rule.shape in {"json", "secret"}:
            return hidden(value)
        here = f"{above}.{name}"
        if rule.many == "list" and rest:
            # Past the index, or into a text that has no inside.
            _, rest = _split(rest)
            return self._inside(rule, here, rest, value)
        return self._whole(rule, here, value) if not rest else self._inside(rule, here, rest, value)

    def _inside(self, rule: FieldRule, here: str, rest: str, value: Any) -> Any:
        if not rest:
            return self._one(rule, here, value)
        return self.at(rule.fields, here, rest, value)

    def _whole(self, rule: FieldRule, here: str, value: Any) -> Any:
        if rule.many != "list":
            return self._one(rule, here, value)
        if not isinstance(value, list):
            return hidden(value)
        return [self._one(rule, here, inner) for inner in value]

    def _one(self, rule: FieldRule, here: str, value: Any) -> Any:
        if rule.shape == "message" and isinstance(value, dict):
            return {name: self.at(rule.fields, here, name, inner) for name, inner in value.items()}
        if rule.shape in {"json", "secret", "message"} or here in self._templated:
            return hidden(value)
        return _redacted(value)


def hidden(value: Any) -> Any:
    """The shape of a value: its keys, and nothing they hold."""
    if isinstance(value, dict):
        return {redact(str(key)): hidden(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hidden(inner) for inner in value]
    return MASK if value not in (None, "") else value


def _fingerprints(value: Any) -> Any:
    if isinstance(value, dict):
        return {part: _fingerprints(mark) for part, mark in value.items()}
    return f"fingerprint {str(value)[:SHOWN]}"


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {redact(str(key)): _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def _split(path: str) -> tuple[str, str]:
    """The first step of a path (a name, or the number of an index), and what is left."""
    step = _STEP.match(path)
    if step is None:
        return path, ""
    return step[1] or step[2], path[step.end() :].removeprefix(".")
