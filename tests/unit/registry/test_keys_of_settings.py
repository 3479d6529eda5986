"""The registry's own keys: wrong ones stop the start, in words that do not show them."""

from typing import Any

import pytest

from services.chassis.secret import Secret
from services.chassis.settings import SettingsError
from services.registry.main import open_vault
from services.registry.settings import Settings

GOOD = Secret("ab" * 32)


def settings(**keys: Any) -> Settings:
    named: dict[str, Any] = {
        "key_encryption_key": GOOD,
        "fingerprint_key": GOOD,
        "pepper": GOOD,
        **keys,
    }
    return Settings(database_url=Secret(""), system_database_url=Secret(""), **named)


def test_good_keys_open_the_vault() -> None:
    open_vault(settings())


@pytest.mark.parametrize("name", ["key_encryption_key", "fingerprint_key"])
@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32, "canary"])
def test_a_wrong_key_is_named_and_not_shown(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_vault(settings(**{name: Secret(text)}))
    assert str(caught.value) == f"TENON_REGISTRY_{name.upper()} must be 64 hexadecimal digits"
