"""Servers and channels as the chassis builds them: what stands around every RPC."""

import asyncio
import datetime as dt
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tenon.registry.v1 import tenant_service_pb2 as pb2
from tenon.registry.v1 import tenant_service_pb2_grpc as pb2_grpc

from services.chassis import errors, failpoints
from services.chassis.channel import ClearChannelError, open_channel, open_sync_channel
from services.chassis.interceptors import Call, Gates
from services.chassis.rules import MissingRuleError
from services.chassis.secret import Secret
from services.chassis.server import Listen, Service, serving
from services.chassis.status import from_rpc_error
from services.chassis.telemetry import current_ids
from services.chassis.tenancy import Access, Grant, Principal, Tenant

KEY = Secret("tnk_test_good")
TENANTS = pb2.DESCRIPTOR.services_by_name["TenantService"]
ACME = UUID(int=7)
REQUEST = pb2.GetTenantRequest(name="tenants/acme")


@dataclass
class Known:
    """One key of one principal, who may read one tenant."""

    async def authenticate(self, credential: str, address: str = "") -> Principal:
        if credential != KEY.reveal_text():
            raise errors.Unauthenticated("the credential is not valid")
        access = Access("acme", ACME, (Grant("VIEWER", frozenset({"tenants.read"})),))
        return Principal(UUID(int=1), "user", "somebody", {"acme": access})

    async def recognise(self, certificate: str, address: str = "") -> Principal:
        raise errors.Unauthenticated("the credential is not valid")

    async def find(self, slug_or_id: str) -> Tenant | None:
        return Tenant("acme", ACME) if slug_or_id == "acme" else None


@dataclass
class Tenants:
    """Answers, or throws, or waits, as a test likes it."""

    fault: Exception | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    free: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[Call] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)

    async def GetTenant(self, request: pb2.GetTenantRequest, call: Call) -> pb2.Tenant:  # noqa: N802
        self.calls.append(call)
        self.ids = dict(current_ids())
        self.begun.set()
        if self.fault is not None:
            raise self.fault
        await self.free.wait()
        return pb2.Tenant(name=request.name)

    async def ListTenants(  # noqa: N802
        self, request: pb2.ListTenantsRequest, call: Call
    ) -> pb2.ListTenantsResponse:
        return pb2.ListTenantsResponse()

    def __getattr__(self, name: str) -> Any:
        """Whatever else the contract has; nobody asks for it."""
        if name[0].islower() or name.startswith("_"):
            raise AttributeError(name)
        return self.ListTenants


@pytest.fixture
def tenants() -> Tenants:
    served = Tenants()
    served.free.set()
    return served


def serve(tenants: Tenants, listen: Listen | None = None, grace_s: float = 0.1) -> Any:
    gates = Gates(Known(), Known()).in_order()
    return serving(
        [Service(TENANTS, tenants)], gates, listen or Listen("127.0.0.1:0"), grace_s=grace_s
    )


@pytest.fixture
async def port(tenants: Tenants) -> AsyncIterator[int]:
    async with serve(tenants) as port:
        yield port


@pytest.fixture
async def channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(f"127.0.0.1:{port}", key=KEY) as channel:
        yield channel


def stub(channel: grpc.aio.Channel) -> "pb2_grpc.TenantServiceAsyncStub":
    return pb2_grpc.TenantServiceStub(channel)


async def fault_of(call: Any) -> errors.TenonError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_call_knows_who_where_and_under_which_ids(
    channel: grpc.aio.Channel, tenants: Tenants
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("x-request-id", "mine-1"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01"))
    answer = await stub(channel).GetTenant(REQUEST, metadata=metadata)
    assert answer.name == "tenants/acme"
    call = tenants.calls[0]
    assert (call.tenant, call.inside(), call.principal.display_name) == ("acme", ACME, "somebody")
    assert (call.address, call.request_id) == ("127.0.0.1", "mine-1")
    assert tenants.ids == {
        "request_id": "mine-1",
        "method": "/tenon.registry.v1.TenantService/GetTenant",
        "trace_id": trace,
    }


@pytest.mark.parametrize("asked", ["", "a b", "x" * 65, 'a"b'])
async def test_a_request_id_that_is_none_is_replaced(
    channel: grpc.aio.Channel, tenants: Tenants, asked: str
) -> None:
    for _ in range(2):
        await stub(channel).GetTenant(REQUEST, metadata=(("x-request-id", asked),))
    first, second = (call.request_id for call in tenants.calls)
    assert asked not in {first, second}
    assert first != second
    assert UUID(first.rpartition("-")[0]).version == 7


async def test_health_is_said_to_anybody(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(channel)
        for name in ("", TENANTS.full_name):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_tells_the_contract(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in reflected.ServerReflectionInfo(iter([asked])):
            names = {each.name for each in answer.list_services_response.service}
        assert {TENANTS.full_name, "grpc.health.v1.Health"} <= names


FAULTS = [
    (errors.InvalidArgument("wrong", violations=[errors.Violation("a.b", "is wrong")]), "wrong"),
    (
        errors.FailedPrecondition("not now", reason="NOT_NOW", metadata={"why": "because"}),
        "not now",
    ),
    (errors.ResourceExhausted("too much", retry_after_s=1.5), "too much"),
    (errors.Aborted("again"), "again"),
    (errors.OutOfRange("gone"), "gone"),
    (errors.AlreadyExists("there"), "there"),
    (errors.NotFound("absent"), "absent"),
]


@pytest.mark.parametrize(
    ("fault", "message"), FAULTS, ids=[f.__class__.__name__ for f, _ in FAULTS]
)
async def test_an_error_arrives_as_it_was_meant(
    channel: grpc.aio.Channel, tenants: Tenants, fault: errors.TenonError, message: str
) -> None:
    tenants.fault = fault
    call = stub(channel).GetTenant(REQUEST, metadata=(("x-request-id", "r-1"),))
    told = await fault_of(call)
    assert (type(told), told.message, told.code) == (type(fault), message, fault.code)
    assert (told.violations, told.retry_after_s) == (fault.violations, fault.retry_after_s)
    assert told.metadata == {**fault.metadata, "request_id": "r-1"}
    details = dict(await call.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.domain == "tenon"


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("very-secret-canary"),
        failpoints.FailpointError("very-secret-canary"),
        errors.Internal(
            "very-secret-canary",
            reason="CANARY_REASON",
            metadata={"very": "secret-canary"},
            violations=[errors.Violation("very", "secret-canary")],
        ),
    ],
)
async def test_an_internal_error_says_only_what_to_quote(
    channel: grpc.aio.Channel, tenants: Tenants, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tenants.fault = fault
    call = stub(channel).GetTenant(REQUEST, metadata=(("x-request-id", "r-1"),))
    told = await fault_of(call)
    assert type(told) is errors.Internal
    assert told.message == "internal error; quote request r-1 to the operators"
    assert (told.code, told.metadata, told.violations) == ("INTERNAL", {"request_id": "r-1"}, ())
    assert "canary" not in str(await call.trailing_metadata())
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


async def test_a_deadline_ends_the_work_behind_it(port: int, tenants: Tenants) -> None:
    tenants.free.clear()
    async with open_channel(f"127.0.0.1:{port}", key=KEY) as channel:
        told = await fault_of(stub(channel).GetTenant(REQUEST, timeout=0.3))
        assert type(told) is errors.DeadlineExceeded


async def test_no_call_is_longer_than_the_longest(
    channel: grpc.aio.Channel, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.chassis.interceptors.LONGEST_CALL_S", 0.2)
    tenants.free.clear()
    for deadline in (None, 60):
        told = await fault_of(stub(channel).GetTenant(REQUEST, timeout=deadline))
        assert (type(told), told.message) == (errors.DeadlineExceeded, "the call took too long")


async def refuses_new_calls(port: int) -> None:
    """Wait until nobody new gets in."""
    async with asyncio.timeout(5):
        while True:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                health: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(channel)
                try:
                    answer = await health.Check(health_pb2.HealthCheckRequest())
                except grpc.aio.AioRpcError:
                    return
                assert answer.status in {1, 2}


async def test_calls_under_way_may_end_before_a_server_does(tenants: Tenants) -> None:
    tenants.free.clear()
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serve(tenants, grace_s=5))
        async with open_channel(f"127.0.0.1:{port}", key=KEY) as channel:
            under_way = asyncio.ensure_future(stub(channel).GetTenant(REQUEST, timeout=10))
            await tenants.begun.wait()
            stopping = asyncio.create_task(stack.aclose())
            await refuses_new_calls(port)
            assert not under_way.done()
            tenants.free.set()
            assert (await under_way).name == "tenants/acme"
            await stopping


async def test_an_rpc_without_a_rule_does_not_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="ruleless.proto", package="ruleless")
    file.message_type.add(name="Nothing")
    file.service.add(name="Ruleless").method.add(
        name="Do", input_type=".ruleless.Nothing", output_type=".ruleless.Nothing"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    service = pool.FindServiceByName("ruleless.Ruleless")
    with pytest.raises(MissingRuleError, match=r"/ruleless\.Ruleless/Do"):
        async with serving([Service(service, object())], (), Listen("127.0.0.1:0")):
            pytest.fail("it started")


async def test_a_contract_nobody_keeps_does_not_start() -> None:
    with pytest.raises(AttributeError, match="GetTenant"):
        async with serving([Service(TENANTS, object())], (), Listen("127.0.0.1:0")):
            pytest.fail("it started")


async def test_an_address_that_is_taken_is_said_in_words(port: int, tenants: Tenants) -> None:
    with pytest.raises(errors.Unavailable, match=f"cannot listen on 127.0.0.1:{port}"):
        async with serve(tenants, Listen(f"127.0.0.1:{port}")):
            pytest.fail("it started")


def an_address_of_this_machine() -> str:
    """One that is not loopback; the datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


async def test_a_clear_channel_from_elsewhere_is_refused_before_its_key_is_looked_at(
    tenants: Tenants,
) -> None:
    elsewhere = an_address_of_this_machine()
    async with serve(tenants, Listen("0.0.0.0:0")) as port:
        async with grpc.aio.insecure_channel(f"{elsewhere}:{port}") as channel:
            for key in (KEY.reveal_text(), "wrong"):
                metadata = (("authorization", f"Bearer {key}"),)
                told = await fault_of(stub(channel).GetTenant(REQUEST, metadata=metadata))
                assert (type(told), told.code) == (errors.FailedPrecondition, "INSECURE_CHANNEL")
        async with open_channel(f"localhost:{port}", key=KEY) as channel:
            await stub(channel).GetTenant(REQUEST)
    assert len(tenants.calls) == 1


async def test_a_unix_socket_is_this_machine(tenants: Tenants, tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/s"
    async with serve(tenants, Listen(target)), open_channel(target, key=KEY) as channel:
        await stub(channel).GetTenant(REQUEST)
    assert tenants.calls[0].address == "unix"


@pytest.mark.parametrize(
    "target",
    [
        "example.com:50051",
        "10.0.0.1:50051",
        "127.0.0.1.example.com:50051",
        "127.example.com:1",
        "localhost.example.com:1",
        "[2001:db8::1]:1",
        "dns:///example.com:1",
    ],
)
def test_a_key_is_never_sent_in_clear_to_another_machine(target: str) -> None:
    for opening in (open_channel, open_sync_channel):
        with pytest.raises(ClearChannelError):
            opening(target, key=KEY)


def certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """A fresh self-signed pair for an address: certificate, private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tenon")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(address))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(minutes=10))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


async def test_tls_lets_callers_in_from_elsewhere(tenants: Tenants, tmp_path: Path) -> None:
    elsewhere = an_address_of_this_machine()
    public, private = certificate(tmp_path, elsewhere)
    async with (
        serve(tenants, Listen("0.0.0.0:0", public, private)) as port,
        open_channel(f"{elsewhere}:{port}", key=KEY, ca_file=public) as channel,
    ):
        await stub(channel).GetTenant(REQUEST, timeout=5)
    assert tenants.calls[0].address == elsewhere


async def test_half_of_a_tls_pair_is_no_clear_channel(tenants: Tenants, tmp_path: Path) -> None:
    public, private = certificate(tmp_path, "127.0.0.1")
    for listen in (Listen("127.0.0.1:0", public), Listen("127.0.0.1:0", None, private)):
        with pytest.raises(errors.InvalidArgument, match="both a certificate and its private key"):
            async with serve(tenants, listen):
                pytest.fail("it started")


async def test_a_channel_finds_a_server_that_comes_back(tenants: Tenants) -> None:
    async with serve(tenants) as port:
        pass
    async with open_channel(f"127.0.0.1:{port}", key=KEY) as channel:
        told = await fault_of(stub(channel).GetTenant(REQUEST, timeout=5))
        assert type(told) is errors.Unavailable
        async with serve(tenants, Listen(f"127.0.0.1:{port}")):
            answer = await stub(channel).GetTenant(REQUEST, timeout=10, wait_for_ready=True)
            assert answer.name == "tenants/acme"


async def test_a_port_is_shared_only_by_servers_that_say_so(tenants: Tenants) -> None:
    async with serve(tenants, Listen("127.0.0.1:0", reuse_port=True)) as port:
        address = f"127.0.0.1:{port}"
        async with serve(tenants, Listen(address, reuse_port=True)) as shared:
            assert shared == port
        with pytest.raises(errors.Unavailable, match=f"cannot listen on {address}"):
            async with serve(tenants, Listen(address)):
                pass
