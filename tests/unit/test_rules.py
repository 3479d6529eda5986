"""Rules as the contract's options say them."""

from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message_factory import GetMessageClass
from tenon.options.v1 import rule_pb2
from tenon.registry.v1 import config_service_pb2

from services.chassis.rules import MissingRuleError, Risk, field_at, rule_of, rules_of


def method(**rule: Any) -> Any:
    options = descriptor_pb2.MethodOptions()
    if rule:
        options.Extensions[rule_pb2.rule].CopyFrom(rule_pb2.Rule(**rule))
    service = SimpleNamespace(full_name="a.B")
    return SimpleNamespace(containing_service=service, name="C", GetOptions=lambda: options)


def test_a_rule_is_read_whole() -> None:
    rule = rule_of(
        method(permission="x.read", risk=3, tenant_field="a.b", principal_kinds=["service"])
    )
    assert (rule.method, rule.permission, rule.risk) == ("/a.B/C", "x.read", Risk.HIGH)
    assert (rule.tenant_field, rule.principal_kinds) == ("a.b", frozenset({"service"}))


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"risk": 1},
        {"permission": "x.read"},
        {"permission": "x.read", "any_caller": True, "risk": 1},
    ],
)
def test_a_rule_that_is_absent_or_contradicts_itself_is_none(rule: dict[str, Any]) -> None:
    with pytest.raises(MissingRuleError, match=r"/a\.B/C"):
        rule_of(method(**rule))


def test_a_dotted_path_leads_to_its_text() -> None:
    request = config_service_pb2.PlanConfigRequest()
    assert field_at(request, "header.tenant") == ""
    request.header.tenant = "acme"
    assert field_at(request, "header.tenant") == "acme"


def test_rules_name_fields_that_are_there() -> None:
    service = config_service_pb2.DESCRIPTOR.services_by_name["ConfigService"]
    for rule, each in zip(rules_of(service), service.methods, strict=True):
        if rule.tenant_field:
            assert field_at(GetMessageClass(each.input_type)(), rule.tenant_field) == ""
