"""Which addresses may be dialled: the networks that are refused, and the operator's allow-list."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from services.chassis.errors import TenonError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

REFUSED: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this host on this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud platform host"),
        ("169.254.0.0/16", "link-local, cloud metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "IETF protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved, broadcast"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard-only"),
        ("2001::/23", "IETF protocol assignments, Teredo"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
"""Networks no request leaves for, with the reason; first match counts.

Source: the IANA special-purpose address registries (RFC 6890), save for Azure's platform host
168.63.129.16, which is a public address that answers only inside a cloud. 6to4 (RFC 7526) and local
NAT64, whose IPv4 address stands where its operator likes (RFC 8215), are refused whatever they
carry.
"""

_ALLOCATED_V6: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""A network without IPv4 reaches it here: the last 32 bits are where it leads (RFC 6052 §2.2)."""

_RULE: Final = re.compile(
    r"(?:\[(?P<v6>[^\]]+)\](?P<bits>/\d+)?|(?P<host>[^\[\]:]+)):(?P<port>[^:]+)"
)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
_NUMERIC: Final = re.compile(r"[0-9./]+")
_LAST_PORT: Final = 65535


class BadAllowList(TenonError):
    """The allow-list setting cannot be read."""

    reason = "BAD_ALLOW_LIST"


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One exception: a network or a host name as it stands in a URL, and a port (None: any).

    A network is held against the address that is dialled: 10.0.0.0/8 permits nothing that IPv6
    carries to there, save IPv4-mapped addresses, which are dialled as IPv4.
    """

    target: Network | str
    port: int | None

    def covers(self, address: Address, port: int, host: str) -> bool:
        """Whether `address`, dialled at `port` for `host`, is meant by this rule."""
        if self.port not in (None, port):
            return False
        if isinstance(self.target, str):
            return self.target == host
        return address in self.target


def parse_allow(text: str) -> tuple[AllowRule, ...]:
    """Rules from `host-or-network:port, …`; a port may be `*`, IPv6 stands in brackets.

    Examples: `127.0.0.1/32:9911`, `sandbox:*`, `[fd00::/8]:443`. Raises BadAllowList.
    """
    return tuple(_parse_rule(part.strip()) for part in text.split(",") if part.strip())


def _parse_rule(text: str) -> AllowRule:
    found = _RULE.fullmatch(text)
    if found is None:
        raise BadAllowList(f"{text!r}: an allow rule is host-or-network:port, the port may be *")
    if found["v6"]:
        return AllowRule(_network(found["v6"] + (found["bits"] or "")), _port(found["port"]))
    return AllowRule(_target(found["host"]), _port(found["port"]))


def _target(host: str) -> Network | str:
    if _NUMERIC.fullmatch(host):
        return _network(host)
    if not _HOST_NAME.fullmatch(host):
        raise BadAllowList(f"{host!r} is neither a host name nor a network")
    return canonical_host(host)


def _network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError:
        raise BadAllowList(f"{text!r} is not a network (host bits must be zero)") from None
    if network.prefixlen == 0:
        raise BadAllowList(f"{text!r} would allow every address, internal ones too")
    return network


def _port(text: str) -> int | None:
    if text == "*":
        return None
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= _LAST_PORT:
        raise BadAllowList(f"{text!r} is not a port (1 to {_LAST_PORT}, or *)")
    return int(text)


def canonical_host(host: str) -> str:
    """A host name in the one form that rules compare: lower case, no dot at the end."""
    return host.lower().rstrip(".")


def verdict(address: str, port: int, allow: Sequence[AllowRule], host: str = "") -> str | None:
    """Why `address` (a literal, as dialled for `host`) is refused; None when it may be dialled.

    Anything that is not an address in canonical form is refused.
    """
    try:
        dialled = _unmapped(ip_address(address))
    except ValueError:
        return "not an address"
    name = canonical_host(host)
    if any(rule.covers(dialled, port, name) for rule in allow):
        return None
    return _reason(dialled)


@lru_cache(maxsize=4096)
def ip_of(text: str) -> Address | None:
    """The address in a text, an IPv4 one that IPv6 carries as itself; None for what is none."""
    try:
        return _unmapped(ip_address(text))
    except ValueError:
        return None


def _unmapped(address: Address) -> Address:
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _reason(address: Address) -> str | None:
    for network, reason in REFUSED:
        if address in network:
            return reason
    return _reason_v6(address) if isinstance(address, IPv6Address) else None


def _reason_v6(address: IPv6Address) -> str | None:
    if address.scope_id is not None:
        return "of one zone only"
    if address in _NAT64:
        return _reason(IPv4Address(int(address) & 0xFFFF_FFFF))
    return None if address in _ALLOCATED_V6 else "not allocated for global use"
