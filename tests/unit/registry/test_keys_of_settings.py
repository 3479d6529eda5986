"""The registry's own keys: wrong ones stop the start, in words that do not show them."""

import pytest

from services.chassis.secret import Secret
from services.chassis.settings import SettingsError
from services.registry.keys.choosing import current
from services.registry.opening import fingerprint_key
from tests.wiring import settings


def test_a_wrong_fingerprint_key_is_named_and_not_shown() -> None:
    for text in ("", "ab" * 31, "ab" * 33, "zz" * 32, "canary"):
        with pytest.raises(SettingsError) as caught:
            fingerprint_key(settings(fingerprint_key=Secret(text)))
        words = "TENON_REGISTRY_FINGERPRINT_KEY must be 64 hexadecimal digits"
        assert str(caught.value) == words


def test_no_key_no_start() -> None:
    with pytest.raises(SettingsError, match="no key, no start"):
        current(settings(key_encryption_key=None))
