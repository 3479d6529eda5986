"""Who a peer is, and which tenant a call names."""

import pytest

from services.chassis.errors import InvalidArgument
from services.chassis.interceptors import (
    NO_MESSAGE,
    Call,
    address_of,
    is_encrypted,
    is_local,
    tenant_named,
)
from services.chassis.rules import Risk, Rule

ID = "0190a1b2-c3d4-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("peer", "address", "local"),
    [
        ("ipv4:127.0.0.1:5", "127.0.0.1", True),
        ("ipv4:127.8.8.8:5", "127.8.8.8", True),
        ("ipv4:192.0.2.1:5", "192.0.2.1", False),
        ("ipv6:%5B::1%5D:5", "::1", True),
        ("ipv6:[::1]:5", "::1", True),
        ("ipv6:%5B2001:db8::1%5D:5", "2001:db8::1", False),
        ("unix:", "unix", True),
        ("unix:/run/s", "unix", True),
        ("", "", False),
        ("vsock:1:2", "vsock", False),
    ],
)
def test_a_peer_is_of_this_machine_or_not(peer: str, address: str, *, local: bool) -> None:
    assert (address_of(peer), is_local(peer)) == (address, local)


def test_only_tls_is_encrypted() -> None:
    assert is_encrypted({"transport_security_type": [b"ssl"]})
    assert not is_encrypted({"transport_security_type": [b"insecure"]})
    assert not is_encrypted({})


@pytest.mark.parametrize(
    ("text", "tenant"),
    [
        ("", ""),
        ("acme", "acme"),
        ("tenants/acme", "acme"),
        ("tenants/acme/integrations/x", "acme"),
        (ID, ID),
        (f"tenants/{ID}/credentials/x", ID),
    ],
)
def test_a_name_says_its_tenant(text: str, tenant: str) -> None:
    assert tenant_named(text) == tenant


@pytest.mark.parametrize(
    "text", ["tenants/", "/acme", "users/acme", "tenants//x", "A", "a b", "tenants/-"]
)
def test_what_names_no_tenant_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        tenant_named(text)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [("ticket%207", "ticket 7"), ("a%00b%0Ac%E2%80%A8d", "a b c d"), ("%00%0A%20", ""), ("", "")],
)
def test_a_reason_is_one_line(sent: str, reason: str) -> None:
    rule = Rule("/a.Service/Get", "a.read", Risk.LOW, "", False, frozenset(), False, False)
    call = Call(rule, NO_MESSAGE, {"x-tenon-reason": sent}, "unix:", "r")
    assert call.reason == reason
