"""What people may see of a change."""

import pytest

from services.chassis.secret import MASK
from services.registry.audit.log import masked
from services.registry.wanted.plan import NOTHING, FieldChange

MARK = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("spec.values.token", MARK, "fingerprint 0123456789ab"),
        ("spec.values", {"token": MARK}, {"token": "fingerprint 0123456789ab"}),
        ("spec.values.token", NOTHING, NOTHING),
        ("spec.config.owner", "acme", "acme"),
        ("spec.config.api_token", "s3cret", MASK),
        ("spec.config.api_token", 1234, MASK),
        ("spec.config.api_token", NOTHING, NOTHING),
        (
            "spec.config",
            {"password": "s3cret", "owner": "acme"},
            {"password": MASK, "owner": "acme"},
        ),
        ("spec.steps[0].headers.X-Api-Key", "s3cret", MASK),
        (
            "spec.steps[0].body",
            {"deep": [{"client_secret": "s3cret"}]},
            {"deep": [{"client_secret": MASK}]},
        ),
        ("spec.steps[0].path", "/a?access=Bearer abcdefgh", "/a?access=Bearer •••"),
        # A reference is a name, whatever its field is called.
        ("spec.secret", "hook", "hook"),
        ("spec.is_active", True, True),
        ("spec.credential", "github-token", "github-token"),
    ],
)
def test_values_show_by_what_their_place_is(path: str, value: object, shown: object) -> None:
    assert masked(FieldChange(path, value, value)) == (shown, shown)
