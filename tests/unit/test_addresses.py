import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis import addresses
from services.chassis.addresses import AllowRule, BadAllowList, parse_allow, verdict

GLOBAL_V4, GLOBAL_V6 = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


@pytest.mark.parametrize(("network", "reason"), addresses.REFUSED, ids=str)
def test_both_ends_of_every_refused_network_are_refused(
    network: addresses.Network, reason: str
) -> None:
    for address in (network[0], network[-1]):
        assert verdict(str(address), 443, ()) is not None
    assert reason in {verdict(str(network[-1]), 443, ()), verdict(str(network[0]), 443, ())}


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254"),
        *("172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1"),
        *("198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255"),
        *("240.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16", "192.88.99.1"),
        *("::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:7f00:1"),
        *("::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "100::1"),
        *("64:ff9b::", "64:ff9b::a9fe:a9fe", "64:ff9b::ffff:ffff", "64:ff9b:0:0:1::808:808"),
        *("64:ff9b:1::808:808", "64:ff9b:1:808:8:800::", "2002:808:808::1", "::ffff:0:808:808"),
        *("::ffff:127.0.0.1%lo", "64:ff9b::808:808%1", f"{GLOBAL_V6}%eth0", "100:0:0:1::1"),
        *("2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1"),
        *("fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "1::1", "e000::1"),
    ],
)
def test_internal_and_special_addresses_are_refused(address: str) -> None:
    assert verdict(address, 443, ()) is not None


@pytest.mark.parametrize(
    "address",
    [
        *(
            GLOBAL_V4,
            GLOBAL_V6,
            f"::ffff:{GLOBAL_V4}",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
        ),
        *("100.128.0.0", "126.255.255.255", "128.0.0.0", "172.15.255.255", "172.32.0.0"),
        *("192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
        *("64:ff9b::808:808", f"64:ff9b::{GLOBAL_V4}"),
        *("2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1"),
    ],
)
def test_public_addresses_may_be_dialled(address: str) -> None:
    assert verdict(address, 443, ()) is None


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_nothing_that_python_holds_to_be_internal_is_dialled(
    address: IPv4Address | IPv6Address,
) -> None:
    if not address.is_global:
        assert verdict(str(address), 443, ()) is not None


STRICTER_V4 = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # public, but it answers inside a cloud only
        "192.0.0.0/24",  # two anycast addresses of it are global: nothing answers HTTP there
        "192.88.99.0/24",  # 6to4 relays, deprecated by RFC 7526
        "224.0.0.0/4",  # global in scope, but many at once
    )
)
"""Where we refuse what Python holds to be global."""

NEAR_AN_EDGE = st.builds(
    lambda edge, step: ipaddress.IPv4Address(min(max(int(edge) + step, 0), 2**32 - 1)),
    st.sampled_from(
        [
            edge
            for network, _ in addresses.REFUSED
            for edge in (network[0], network[-1])
            if network.version == 4
        ]
    ),
    st.integers(-2, 2),
)


@given(st.one_of(st.ip_addresses(v=4), NEAR_AN_EDGE))
def test_of_ipv4_exactly_what_python_holds_to_be_global_is_dialled(address: IPv4Address) -> None:
    stricter = any(address in network for network in STRICTER_V4)
    assert (verdict(str(address), 443, ()) is None) is (address.is_global and not stricter)


@given(st.one_of(st.ip_addresses(v=4), NEAR_AN_EDGE))
def test_an_address_that_ipv6_carries_is_judged_as_itself(address: IPv4Address) -> None:
    refused = verdict(str(address), 443, ()) is not None
    for carried in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert (verdict(carried, 443, ()) is not None) is refused
    low, high = int(address) & 0xFFFF, int(address) >> 16
    for carried in (f"::{address}", f"2002:{high:x}:{low:x}::", f"64:ff9b:1::{address}"):
        assert verdict(carried, 443, ()) is not None


@pytest.mark.parametrize("text", ["", "localhost", "0x7f.1", "127.1", "2130706433", "017700000001"])
def test_what_is_no_canonical_address_is_refused(text: str) -> None:
    assert verdict(text, 443, ()) == "not an address"


def test_the_allow_list_is_read() -> None:
    assert parse_allow(
        " 127.0.0.1/32:9911, Sandbox.:* ,[fd00::/8]:443,[::1]/128:80,10.0.0.1:8,"
    ) == (
        AllowRule(ipaddress.ip_network("127.0.0.1/32"), 9911),
        AllowRule("sandbox", None),
        AllowRule(ipaddress.ip_network("fd00::/8"), 443),
        AllowRule(ipaddress.ip_network("::1/128"), 80),
        AllowRule(ipaddress.ip_network("10.0.0.1/32"), 8),
    )
    assert parse_allow("") == parse_allow(" , ") == ()


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http"),
        *("127.0.0.1:٣", "10.1.2.3/8:80", "10.0.0.0/33:80", "0.0.0.0/0:*", "[::/0]:*", "::1:80"),
        *("300.1.1.1:80", "a b:80", "http://x:80", "*:80", "host:80:90", "[::1:80"),
    ],
)
def test_a_rule_that_cannot_be_read_stops_the_start(text: str) -> None:
    with pytest.raises(BadAllowList):
        parse_allow(text)


@pytest.mark.parametrize(
    ("address", "port", "host", "allowed"),
    [
        ("127.0.0.1", 9911, "", True),
        ("::ffff:127.0.0.1", 9911, "", True),
        ("127.0.0.1", 9912, "", False),
        ("127.0.0.2", 9911, "", False),
        ("10.9.9.9", 80, "sandbox", True),
        ("10.9.9.9", 443, "SANDBOX.", True),
        ("10.9.9.9", 80, "other.sandbox", False),
        ("10.9.9.9", 80, "", False),
        ("fd12::1", 443, "", True),
        ("fe80::1", 443, "", False),
        ("64:ff9b::7f00:1", 9911, "", False),
        ("2002:7f00:1::", 9911, "", False),
        ("::127.0.0.1", 9911, "", False),
    ],
)
def test_a_rule_permits_its_network_or_host_at_its_port_and_no_more(
    address: str, port: int, host: str, allowed: bool
) -> None:
    rules = parse_allow("127.0.0.1/32:9911,sandbox:*,[fd00::/8]:443")
    assert (verdict(address, port, rules, host) is None) is allowed
