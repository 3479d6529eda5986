"""What is wrong with an endpoint, each fault at its field."""

from typing import Any, Final

import pytest

from services.providers.catalog import Catalog
from services.registry.wanted.endpoint_checks import check_endpoint
from tests.unit.registry.test_credential_checks import made

CATALOG: Final = Catalog.load()
OUT: Final = {"direction": "OUTBOUND", "url": "https://ledger.example.com/hooks", "secret": "hook"}
IN: Final = {"integration": "hub", "secret": "hook"}
SHOWN: Final = {"auth": "MTLS", "credential": "certificate"}


KNOWN: Final = {
    one.key: one
    for one in (
        made("Credential", "hook", type="webhook_secret"),
        made("Credential", "certificate", type="client_certificate"),
        made("Credential", "token", type="bearer"),
        made("Integration", "hub", provider="github"),
    )
}


def faults(**spec: Any) -> dict[str, str]:
    return dict(check_endpoint(made("WebhookEndpoint", "one", **spec), KNOWN, CATALOG))


def test_what_is_right_has_no_fault() -> None:
    assert faults(**OUT) == faults(**IN) == faults(**OUT, **SHOWN) == {}
    paths = ["$.user.email", "$..pin", "$['a','b'][0]"]
    assert faults(**OUT, redact=paths) == faults(**IN, redact=paths) == {}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({**OUT, "auth": "MTLS"}, "spec.credential", "is required"),
        (
            {**OUT, "auth": "MTLS", "credential": "token"},
            "spec.credential",
            "must be a Credential of type client_certificate",
        ),
        ({**OUT, "auth": "BEARER", "credential": "certificate"}, "spec.credential", "type bearer"),
        ({**OUT, **SHOWN, "url": "http://127.0.0.1/hooks"}, "spec.url", "must be https"),
        ({**IN, "auth": "MTLS", "credential": "certificate"}, "spec.auth", "OUTBOUND"),
        ({**OUT, "redact": ["$.a", "user.email"]}, "spec.redact[1]", "cannot be read"),
        ({**OUT, "redact": ["$.l[?@.x > 1]"]}, "spec.redact[0]", "has no filter"),
        ({**IN, "redact": ["$..a..b"]}, "spec.redact[0]", "at most 1"),
    ],
)
def test_each_fault_stands_at_its_field(spec: dict[str, Any], field: str, words: str) -> None:
    assert words in faults(**spec)[field]
