"""Whom a call that came through proxies began at."""

import pytest

from services.chassis.proxies import origin, parse_networks
from services.chassis.settings import SettingsError

TRUSTED = parse_networks("X", "10.0.0.0/8, fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        # What stands further left is the caller's own invention.
        ("10.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7, 10.9.9.9", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.7:4711", "192.0.2.7"),
        ("fd00::1", "[2001:db8::5]:4711", "2001:db8::5"),
        ("fd00::1", "2001:db8::5", "2001:db8::5"),
        # Not a trusted proxy: it speaks for itself alone.
        ("192.0.2.9", "198.51.100.1", "192.0.2.9"),
        ("unix", "198.51.100.1", "unix"),
        # A proxy that names no address is taken for the caller.
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.5", "10.0.0.5"),
        ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),
    ],
)
def test_the_nearest_that_no_trusted_proxy_has(peer: str, forwarded: str, expected: str) -> None:
    assert origin(peer, forwarded, TRUSTED) == expected


def test_a_setting_that_is_no_networks_is_named() -> None:
    with pytest.raises(SettingsError, match="TENON_REGISTRY_TRUSTED_PROXIES"):
        parse_networks("TENON_REGISTRY_TRUSTED_PROXIES", "10.0.0.1/8")
