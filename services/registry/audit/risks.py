"""How risky a change is, by a table of rules: one for plans and for the audit log.

The first rule that fits a field of a change says its risk; where none does, the contract's own word
on that field counts. A change is as risky as its riskiest field.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from services.chassis.rules import FieldRule, Risk
from services.registry.wanted.objects import SECRET_VALUES, top_field

ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class RiskRule:
    """The risk of changes to a field of a kind; each as a pattern."""

    kind: str
    action: str
    field: str
    risk: Risk


RULES: Final = (
    # Who may do what, and who must agree.
    RiskRule("Role", ANY, ANY, Risk.CRITICAL),
    RiskRule("RoleBinding", ANY, ANY, Risk.CRITICAL),
    RiskRule("ReviewPolicy", ANY, ANY, Risk.CRITICAL),
    RiskRule("Staff", ANY, ANY, Risk.CRITICAL),
    RiskRule("PlatformGrant", ANY, ANY, Risk.CRITICAL),
    # What is gone is gone.
    RiskRule(ANY, "delete", ANY, Risk.CRITICAL),
    # Secrets.
    RiskRule("Key", ANY, ANY, Risk.HIGH),
    RiskRule("Credential", ANY, SECRET_VALUES, Risk.HIGH),
    RiskRule("Credential", ANY, f"{SECRET_VALUES}.*", Risk.HIGH),
    RiskRule("Connection", "create", ANY, Risk.HIGH),
    RiskRule("Connection", ANY, "spec.external_account_id", Risk.HIGH),
    # Everything of a tenant stops, or goes on.
    RiskRule("Tenant", "update", "spec.enabled", Risk.HIGH),
    # Everybody's work with a provider does, or one connector's, or one run.
    RiskRule("ProviderSwitch", ANY, ANY, Risk.HIGH),
    RiskRule("Lane", ANY, ANY, Risk.MEDIUM),
    RiskRule("Execution", "cancel", ANY, Risk.MEDIUM),
    # What others have got, or have not, they get again.
    RiskRule("Delivery", ANY, ANY, Risk.MEDIUM),
    RiskRule("Event", "replay", ANY, Risk.MEDIUM),
    RiskRule("ConsumerGroup", "reset", ANY, Risk.MEDIUM),
    # Where calls go.
    RiskRule("Integration", ANY, "spec.base_url", Risk.MEDIUM),
    # How often something runs.
    RiskRule("Connector", ANY, "spec.schedule.every", Risk.LOW),
)


def risk_of(
    kind: str, action: str, fields: Iterable[str] = (), schema: tuple[FieldRule, ...] = ()
) -> Risk:
    """The risk of a change to these fields, by their paths."""
    contract = {f"spec.{rule.name}": rule.constraint.risk for rule in schema}
    paths = list(fields) or [""]
    return max(_by_rule(kind, action, path) or _by_contract(path, contract) for path in paths)


@lru_cache(maxsize=4096)
def _by_rule(kind: str, action: str, path: str) -> Risk | None:
    for rule in RULES:
        words = ((kind, rule.kind), (action, rule.action), (path, rule.field))
        if all(fnmatchcase(word, pattern) for word, pattern in words):
            return rule.risk
    return None


def _by_contract(path: str, contract: dict[str, Risk]) -> Risk:
    return contract.get(top_field(path), Risk.LOW)
