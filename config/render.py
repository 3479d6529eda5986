"""Plans and problems, for people and as JSON. A secret is never more than the word for a change."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.text import Text
from tenon.registry.v1 import config_service_pb2

from config.documents import SPECS
from config.problems import Problem
from config.reconcile import Exit, Outcome, Plan
from services.chassis.rules import FieldRule, Risk, schema_of
from services.chassis.strict_json import whole

_ACTIONS: Final = {
    config_service_pb2.Change.ACTION_CREATE: ("create", "+", "green"),
    config_service_pb2.Change.ACTION_UPDATE: ("update", "~", "yellow"),
    config_service_pb2.Change.ACTION_DELETE: ("delete", "-", "red"),
}
LONGEST_VALUE: Final = 160
_UNKNOWN_ACTION: Final = ("change", "?", "red")
_RISK_STYLES: Final = {Risk.HIGH: "bold red", Risk.CRITICAL: "bold red", Risk.MEDIUM: "yellow"}


def show_problems(console: Console, problems: Iterable[Problem]) -> None:
    """One line a problem: `file:line:column: message`."""
    for each in problems:
        _line(
            console, Text(printable(str(each)), "yellow" if each.severity == "warning" else "red")
        )


def show_plan(console: Console, plan: Plan) -> None:
    """What would be done to one tenant, object by object and field by field."""
    tenant = printable(plan.tenant)
    if not plan.changes:
        counts = f"revision {plan.base_revision}, {plan.unchanged} unchanged"
        _line(console, Text(f"tenant {tenant}: nothing to do ({counts})"))
        return
    _line(console, Text(f"tenant {tenant} at revision {plan.base_revision}", "bold"))
    for change in plan.changes:
        _show_change(console, change)
    counts = f"{len(plan.changes)} to change, {plan.unchanged} unchanged"
    _line(console, Text(f"  {counts}; plan {printable(plan.plan_hash)[:12]}", "dim"))
    if plan.HasField("needs_approval"):
        _line(console, Text(f"  {_needs(plan.needs_approval)}", "yellow"))


def show_revision(console: Console, outcome: Outcome) -> None:
    """What an apply left behind."""
    if outcome.pending is not None:
        _show_pending(console, outcome.tenant, outcome.pending)
    if outcome.revision is not None and outcome.plan is not None and outcome.plan.changes:
        _line(
            console, Text(f"tenant {outcome.tenant}: applied, now at revision {outcome.revision}")
        )


def as_json(outcomes: Sequence[Outcome], problems: Iterable[Problem], code: Exit) -> str:
    """The whole run as one JSON document."""
    every = [*problems, *(each for outcome in outcomes for each in outcome.problems)]
    document = {
        "tenants": [_tenant_json(each) for each in outcomes],
        "problems": [_problem_json(each) for each in every],
        "exit": int(code),
    }
    return json.dumps(document, indent=2)


def is_secret(kind: str, path: str) -> bool:
    """Whether a field's value is, or holds, a secret; an unknown kind's always is."""
    if kind not in SPECS:
        return True
    rules: Sequence[FieldRule] = schema_of(SPECS[kind].message_type)
    first, *names = path.split(".")
    if first != "spec":
        return False
    for name in names:
        rule = next((each for each in rules if each.name == name.partition("[")[0]), None)
        if rule is None or not rule.fields:
            return rule is not None and rule.shape == "secret"
        rules = rule.fields
    return any(_holds_secret(each) for each in rules)


def approvals(count: int) -> str:
    """`1 approval`, `2 approvals`."""
    return f"{count} approval" if count == 1 else f"{count} approvals"


def _needs(needed: config_service_pb2.ApprovalNeeded) -> str:
    policies = printable(", ".join(needed.policies))
    others = "" if needed.self_approval else " of others"
    return f"needs {approvals(needed.approvals)}{others} before it takes effect (policy {policies})"


def _show_pending(
    console: Console, tenant: str, pending: config_service_pb2.PendingRevision
) -> None:
    name, until = printable(pending.name), pending.expire_time.ToDatetime()
    who = "people who may" if pending.self_approval else "people who may, but its author"
    needs = f"{approvals(pending.approvals_needed)} of {who} (policy {', '.join(pending.policies)})"
    _line(console, Text(f"tenant {printable(tenant)}: not applied; it waits as {name}", "yellow"))
    _line(console, Text(f"  until {until:%Y-%m-%d %H:%M} UTC for {printable(needs)}"))
    _line(console, Text(f"  look at it: tenon revisions show {name}"))
    _line(console, Text(f"  approve it: tenon approve {name}"))


def _holds_secret(rule: FieldRule) -> bool:
    return rule.shape == "secret" or any(map(_holds_secret, rule.fields))


def _show_change(console: Console, change: config_service_pb2.Change) -> None:
    action, sign, style = _ACTIONS.get(change.action, _UNKNOWN_ACTION)
    line = Text(f"  {sign} {action} {printable(change.kind)} {printable(change.name)}", style)
    if change.risk > Risk.LOW:
        line.append(f"  {_risk(change.risk)} risk", _RISK_STYLES.get(Risk(change.risk), ""))
    _line(console, line)
    for field in change.fields:
        _line(console, Text(f"      {_field_text(change, field)}"))


def _field_text(change: config_service_pb2.Change, field: config_service_pb2.FieldChange) -> str:
    owner = f"  (was set by {printable(field.owner)})" if field.owner else ""
    path = printable(field.path)
    if is_secret(change.kind, field.path):
        return f"{path}: {_secret_change(field)}{owner}"
    if change.action == config_service_pb2.Change.ACTION_DELETE:
        return f"{path}: {_short(field.before)}{owner}"
    after = _short(field.after) or "(default)"
    if change.action == config_service_pb2.Change.ACTION_CREATE or not field.before:
        return f"{path}: {after}{owner}"
    return f"{path}: {_short(field.before)} → {after}{owner}"


def _short(text: str) -> str:
    """A value on one line: long lists by the names of what is in them; JSON output has it all."""
    if len(text) <= LONGEST_VALUE:
        return printable(text)
    value = _parsed(text)
    if isinstance(value, list):
        names = [str(item.get("name", "…")) for item in value if isinstance(item, dict)]
        return printable(
            f"{len(value)} items ({', '.join(names)})" if names else f"{len(value)} items"
        )
    return printable(text[:LONGEST_VALUE]) + "…"


def _secret_change(field: config_service_pb2.FieldChange) -> str:
    if not field.before:
        return "(secret, set)"
    return "(secret, changed)" if field.after else "(secret, removed)"


def _risk(rank: int) -> str:
    return Risk(rank).name.lower() if rank in set(Risk) else "unknown"


def _tenant_json(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = {"tenant": outcome.tenant, "exit": int(outcome.exit)}
    if outcome.plan is not None:
        found |= plan_json(outcome.plan)
    if outcome.plan is not None and outcome.plan.HasField("needs_approval"):
        found["needs_approval"] = message_json(outcome.plan.needs_approval)
    if outcome.pending is not None:
        found["pending"] = message_json(outcome.pending)
    if outcome.revision is not None:
        found["revision"] = outcome.revision
    return found


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    return {
        "base_revision": plan.base_revision,
        "plan_hash": plan.plan_hash,
        "changes": [_change_json(change) for change in plan.changes],
        "unchanged": plan.unchanged,
    }


def message_json(message: Message) -> Any:
    """Any message without secrets as JSON, by the contract's names."""
    return whole(MessageToDict(message, preserving_proto_field_name=True))


def _change_json(change: config_service_pb2.Change) -> dict[str, Any]:
    return {
        "action": _ACTIONS.get(change.action, _UNKNOWN_ACTION)[0],
        "kind": change.kind,
        "name": change.name,
        "risk": _risk(change.risk),
        "fields": [_field_json(change.kind, field) for field in change.fields],
    }


def _field_json(kind: str, field: config_service_pb2.FieldChange) -> dict[str, Any]:
    found: dict[str, Any] = {"path": field.path}
    if is_secret(kind, field.path):
        found["secret"] = _secret_change(field)
    else:
        sides = (("before", field.before), ("after", field.after))
        found |= {side: _parsed(text) for side, text in sides if text}
    return found | ({"owner": field.owner} if field.owner else {})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _problem_json(each: Problem) -> dict[str, Any]:
    return {
        "file": each.file,
        "line": each.line,
        "column": each.column,
        "message": each.message,
        "severity": each.severity,
    }


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
