"""How risky a change is."""

import pytest

from services.chassis.rules import Risk
from services.registry.audit.risks import risk_of
from services.registry.messages.config import SCHEMAS


@pytest.mark.parametrize(
    ("kind", "action", "fields", "risk"),
    [
        # The four examples.
        ("Connector", "update", ["spec.schedule.every"], Risk.LOW),
        ("Integration", "update", ["spec.base_url"], Risk.MEDIUM),
        ("Credential", "update", ["spec.values.token"], Risk.HIGH),
        ("Subscription", "delete", [], Risk.CRITICAL),
        # The riskiest field decides.
        ("Integration", "update", ["spec.display_name", "spec.base_url"], Risk.MEDIUM),
        ("Integration", "update", ["spec.base_url", "spec.provider"], Risk.HIGH),
        # Who may do what.
        *((kind, "create", [], Risk.CRITICAL) for kind in ("Role", "RoleBinding", "ReviewPolicy")),
        *((kind, "delete", [], Risk.CRITICAL) for kind in ("Staff", "PlatformGrant", "Key")),
        *(("Key", action, [], Risk.CRITICAL if action == "delete" else Risk.HIGH)
          for action in ("create", "rotate", "revoke", "delete")),
        ("Tenant", "update", ["spec.enabled"], Risk.HIGH),
        ("Tenant", "update", ["spec.display_name"], Risk.LOW),
        ("ProviderSwitch", "switch_off", ["reason"], Risk.HIGH),
        *(("Delivery", action, [], Risk.MEDIUM) for action in ("retry", "recover")),
        ("Event", "replay", ["count"], Risk.MEDIUM),
        ("ConsumerGroup", "reset", ["position"], Risk.MEDIUM),
        ("Stranger", "update", ["x"], Risk.LOW),
    ],
)  # fmt: skip
def test_the_first_rule_that_fits_says_it(
    kind: str, action: str, fields: list[str], risk: Risk
) -> None:
    assert risk_of(kind, action, fields, SCHEMAS.get(kind, ())) == risk
