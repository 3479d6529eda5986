"""Who a server takes a caller for: by certificate, through proxies, and as long as it may call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
from cryptography import x509
from tenon.registry.v1 import config_service_pb2 as config
from tenon.registry.v1 import config_service_pb2_grpc as config_grpc
from tenon.registry.v1 import tenant_service_pb2 as pb2
from tenon.registry.v1 import tenant_service_pb2_grpc as pb2_grpc

from services.chassis import errors
from services.chassis.channel import ClientCertificate, TokenFile, open_channel
from services.chassis.interceptors import Call, Gates
from services.chassis.secret import Secret
from services.chassis.server import Listen, Service, serving
from services.chassis.status import from_rpc_error
from services.chassis.tenancy import PLATFORM, Access, Grant, Network, Principal, Tenant
from tests.certificates import HERE, Authority

KEY = Secret("tnk_test_good")
RIGHTS = frozenset({"tenants.read", "feed.watch", "config.apply"})
REQUEST = pb2.GetTenantRequest(name="tenants/acme")


@dataclass
class Known:
    """One key and any certificate belong to somebody; notes what it is asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    ranges: tuple[Network, ...] = ()
    revoked: bool = False
    called: str = "it"

    async def authenticate(self, credential: str, address: str = "") -> Principal:
        self.asked.append((credential, address))
        if self.revoked or credential not in {KEY.reveal_text(), "tnk_test_next"}:
            raise errors.Unauthenticated("the credential is not valid")
        return self._somebody()

    async def recognise(self, certificate: str, address: str = "") -> Principal:
        self.asked.append((certificate, address))
        return self._somebody()

    async def find(self, slug_or_id: str) -> Tenant | None:
        return Tenant("acme", UUID(int=7))

    def _somebody(self) -> Principal:
        access = Access(PLATFORM, None, (Grant("EXECUTOR", RIGHTS),))
        return Principal(
            UUID(int=1), "service", self.called, {PLATFORM: access}, ranges=self.ranges
        )


class Servicer:
    """Answers whatever it is asked; its feed says something once and then waits."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        async def answer(_request: Any, call: Call) -> Any:
            self.calls.append(call)
            return pb2.Tenant(name="tenants/acme")

        return answer

    async def ApplyConfig(  # noqa: N802
        self, requests: AsyncIterator[config.ApplyConfigRequest], call: Call
    ) -> config.ApplyConfigResponse:
        parts = [each async for each in requests]
        self.calls.append(call)
        return config.ApplyConfigResponse(revision=len(parts))

    async def WatchFeed(  # noqa: N802
        self, request: config.WatchFeedRequest, call: Call
    ) -> AsyncIterator[config.WatchFeedResponse]:
        self.calls.append(call)
        yield config.WatchFeedResponse(position="1")
        await asyncio.Event().wait()


@pytest.fixture
def known() -> Known:
    return Known()


def serve(
    known: Known, servicer: Servicer, listen: Listen, proxies: Sequence[Network] = ()
) -> AbstractAsyncContextManager[int]:
    gates = Gates(known, known, proxies=proxies).in_order()
    contracts = (
        pb2.DESCRIPTOR.services_by_name["TenantService"],
        config.DESCRIPTOR.services_by_name["ConfigService"],
    )
    return serving([Service(each, servicer) for each in contracts], gates, listen, grace_s=0.1)


def tenants(channel: grpc.aio.Channel) -> "pb2_grpc.TenantServiceAsyncStub":
    return pb2_grpc.TenantServiceStub(channel)


async def fault_of(call: Any) -> errors.TenonError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(
    ("alternatives", "subject"),
    [
        (
            [
                x509.DNSName("executor.tenon"),
                x509.UniformResourceIdentifier("spiffe://acme/executor"),
                x509.UniformResourceIdentifier("spiffe://acme/other"),
            ],
            "spiffe://acme/executor",
        ),
        ([x509.DNSName("executor.tenon"), x509.DNSName("other.tenon")], "executor.tenon"),
        ([], "the-executor"),
    ],
    ids=["uri", "dns", "name"],
)
async def test_a_certificate_says_who_calls(
    known: Known, tmp_path: Path, alternatives: list[x509.GeneralName], subject: str
) -> None:
    authority, servicer = Authority(tmp_path), Servicer()
    listen = Listen(
        "127.0.0.1:0", *authority.issue("server", HERE), client_ca=authority.certificate
    )
    own = ClientCertificate(*authority.issue("the-executor", alternatives))
    async with (
        serve(known, servicer, listen) as port,
        open_channel(
            f"127.0.0.1:{port}", ca_file=authority.certificate, certificate=own
        ) as channel,
    ):
        await tenants(channel).GetTenant(REQUEST, timeout=10)
    assert known.asked == [(subject, "127.0.0.1")]


async def test_a_key_comes_before_a_certificate(known: Known, tmp_path: Path) -> None:
    authority, servicer = Authority(tmp_path), Servicer()
    listen = Listen(
        "127.0.0.1:0", *authority.issue("server", HERE), client_ca=authority.certificate
    )
    own = ClientCertificate(*authority.issue("gateway"))
    async with (
        serve(known, servicer, listen) as port,
        open_channel(
            f"127.0.0.1:{port}", key=KEY, ca_file=authority.certificate, certificate=own
        ) as channel,
    ):
        await tenants(channel).GetTenant(REQUEST, timeout=10)
    assert known.asked == [(KEY.reveal_text(), "127.0.0.1")]


async def test_without_a_certificate_of_that_authority_nobody_comes_in(
    known: Known, tmp_path: Path
) -> None:
    authority, stranger = Authority(tmp_path / "a"), Authority(tmp_path / "b", "stranger")
    listen = Listen(
        "127.0.0.1:0", *authority.issue("server", HERE), client_ca=authority.certificate
    )
    async with serve(known, Servicer(), listen) as port:
        for own in (None, ClientCertificate(*stranger.issue("the-executor"))):
            async with open_channel(
                f"127.0.0.1:{port}", key=KEY, ca_file=authority.certificate, certificate=own
            ) as channel:
                told = await fault_of(tenants(channel).GetTenant(REQUEST, timeout=10))
                assert isinstance(told, errors.Unavailable)
    assert known.asked == []


async def test_without_an_authority_a_server_asks_for_no_certificate(
    known: Known, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    own = ClientCertificate(*authority.issue("the-executor"))
    async with (
        serve(known, Servicer(), Listen("127.0.0.1:0", *authority.issue("server", HERE))) as port,
        open_channel(
            f"127.0.0.1:{port}", ca_file=authority.certificate, certificate=own
        ) as channel,
    ):
        told = await fault_of(tenants(channel).GetTenant(REQUEST, timeout=10))
        assert isinstance(told, errors.Unauthenticated)
    assert known.asked == []


async def test_a_token_in_a_file_is_read_again_when_it_changes(
    known: Known, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text(KEY.reveal_text() + "\n")
    async with (
        serve(known, Servicer(), Listen("127.0.0.1:0")) as port,
        open_channel(f"127.0.0.1:{port}", key=TokenFile(path)) as channel,
    ):
        await tenants(channel).GetTenant(REQUEST, timeout=10)
        (tmp_path / "draft").write_text("tnk_test_next")
        (tmp_path / "draft").replace(path)
        await tenants(channel).GetTenant(REQUEST, timeout=10)
    assert [credential for credential, _ in known.asked] == [KEY.reveal_text(), "tnk_test_next"]


FORWARDED = (("x-forwarded-for", "198.51.100.9, 192.0.2.7, 127.0.0.9"),)


async def test_a_forwarded_address_counts_from_a_trusted_proxy_alone(known: Known) -> None:
    servicer = Servicer()
    for proxies in ([], [ip_network("10.0.0.0/8")], [ip_network("127.0.0.0/8")]):
        async with (
            serve(known, servicer, Listen("127.0.0.1:0"), proxies) as port,
            open_channel(f"127.0.0.1:{port}", key=KEY) as channel,
        ):
            await tenants(channel).GetTenant(REQUEST, metadata=FORWARDED, timeout=10)
    assert [address for _, address in known.asked] == ["127.0.0.1", "127.0.0.1", "192.0.2.7"]
    assert [call.address for call in servicer.calls] == ["127.0.0.1", "127.0.0.1", "192.0.2.7"]


async def test_ranges_are_those_of_the_forwarded_address(known: Known) -> None:
    known.ranges = (ip_network("192.0.2.0/24"),)
    async with (
        serve(known, Servicer(), Listen("127.0.0.1:0"), [ip_network("127.0.0.0/8")]) as port,
        open_channel(f"127.0.0.1:{port}", key=KEY) as channel,
    ):
        await tenants(channel).GetTenant(REQUEST, metadata=FORWARDED, timeout=10)
        told = await fault_of(tenants(channel).GetTenant(REQUEST, timeout=10))
        assert isinstance(told, errors.Unauthenticated)


async def test_an_open_stream_ends_within_a_second_when_its_caller_may_no_longer(
    known: Known,
) -> None:
    servicer = Servicer()
    async with (
        serve(known, servicer, Listen("127.0.0.1:0")) as port,
        open_channel(f"127.0.0.1:{port}", key=KEY) as channel,
    ):
        stub: config_grpc.ConfigServiceAsyncStub = config_grpc.ConfigServiceStub(channel)
        stream = aiter(stub.WatchFeed(config.WatchFeedRequest(), timeout=20))
        assert (await anext(stream)).position == "1"
        async with asyncio.timeout(5):
            while len(known.asked) < 3:
                await asyncio.sleep(0.05)
        known.revoked = True
        async with asyncio.timeout(1):
            assert isinstance(await fault_of(anext(stream)), errors.Unauthenticated)
    assert len(servicer.calls) == 1


def applying(channel: grpc.aio.Channel) -> Any:
    stub: config_grpc.ConfigServiceAsyncStub = config_grpc.ConfigServiceStub(channel)
    return stub.ApplyConfig(timeout=20)


HEADER = config.ApplyConfigRequest(header=config.ConfigHeader(tenant="acme"))


async def test_who_sends_a_stream_is_looked_at_again_at_its_end(known: Known) -> None:
    servicer = Servicer()
    async with (
        serve(known, servicer, Listen("127.0.0.1:0")) as port,
        open_channel(f"127.0.0.1:{port}", key=KEY) as channel,
    ):
        renamed, revoked = applying(channel), applying(channel)
        for call in (renamed, revoked):
            await call.write(HEADER)
        async with asyncio.timeout(5):
            while len(known.asked) < 2:
                await asyncio.sleep(0.01)
        known.called = "it now"
        await renamed.done_writing()
        assert (await renamed).revision == 1
        known.revoked = True
        await revoked.done_writing()
        assert isinstance(await fault_of(revoked), errors.Unauthenticated)
    assert [call.principal.display_name for call in servicer.calls] == ["it now"]


async def test_nobody_unknown_holds_a_stream_open(known: Known) -> None:
    async with (
        serve(known, Servicer(), Listen("127.0.0.1:0")) as port,
        open_channel(f"127.0.0.1:{port}") as channel,
    ):
        silent = [applying(channel) for _ in range(1500)]
        async with asyncio.timeout(15):
            told = await asyncio.gather(*map(fault_of, silent))
    assert {type(each) for each in told} == {errors.Unauthenticated}
