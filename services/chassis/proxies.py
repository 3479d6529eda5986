"""Where a call that came through proxies began."""

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Final

from services.chassis.addresses import Network, ip_of
from services.chassis.settings import SettingsError

FORWARDED: Final = "x-forwarded-for"


def parse_networks(name: str, text: str) -> tuple[Network, ...]:
    """The networks in a setting, `10.0.0.0/8, fd00::/8`. Raises SettingsError, naming it."""
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise SettingsError(
            f"{name} must be networks such as 10.0.0.0/8, separated by commas"
        ) from None


def origin(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """The address nearest to us that no trusted proxy has.

    Each proxy adds, at the right, whom it was called by; what stands left of an address that is not
    a trusted proxy's may be invented. Where a proxy names no address, it is taken for the caller.
    Of several such lines gRPC hands on the last: proxies must write into the one that is there.
    """
    address = peer
    for hop in [*reversed(forwarded.split(",")), ""]:
        found = ip_of(address)
        if found is None or not any(found in network for network in trusted):
            return address
        named = _address(hop.strip())
        if ip_of(named) is None:
            return address
        address = named
    return address


def _address(hop: str) -> str:
    """A hop without its port: `1.2.3.4:5` and `[::1]:5` are written, too."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
