import asyncio
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from services.chassis.egress import (
    ConnectFailed,
    Egress,
    Limits,
    Request,
    ResponseLost,
    parse_allow,
)
from tests.unit.egress.conftest import LIMITS, Server, StartRaw, get


async def test_a_closed_port_is_a_failed_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with Egress(parse_allow("127.0.0.1:*"), LIMITS) as out:
            with pytest.raises(ConnectFailed, match="Connection refused") as failed:
                await out.send(get(f"http://127.0.0.1:{port}/"))
    assert failed.value.fault == "connect"


async def test_an_unknown_name_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*args: object, **kwargs: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with Egress((), LIMITS) as out:
        with pytest.raises(
            ConnectFailed, match=r"nowhere.test:80: the name is not known"
        ) as failed:
            await out.send(get("http://nowhere.test/"))
    assert failed.value.fault == "dns"


async def test_a_connection_that_never_stands_is_failed_in_connect_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hanging(*args: object, **kwargs: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", hanging)
    async with Egress(parse_allow("127.0.0.1:*"), Limits(total_s=60, connect_s=0.05)) as out:
        with pytest.raises(ConnectFailed, match="no connection in time") as failed:
            await out.send(get("http://127.0.0.1:9/"))
    assert failed.value.fault == "timeout"


async def test_no_tls_on_the_other_side_is_a_failed_connection(
    server: Server, egress: Egress
) -> None:
    with pytest.raises(ConnectFailed, match="TLS") as failed:
        await egress.send(get(f"https://127.0.0.1:{server.port}/echo"))
    assert failed.value.fault == "tls"
    assert not server.seen


async def test_a_certificate_of_nobody_is_a_failed_connection(
    tmp_path: Path, raw_server: StartRaw
) -> None:
    context = self_signed(tmp_path)
    refused = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refused.set()

    one = await asyncio.start_server(never, "127.0.0.1", 0, ssl=context)
    port = one.sockets[0].getsockname()[1]
    async with Egress(parse_allow("127.0.0.1:*"), LIMITS) as out:
        with pytest.raises(ConnectFailed, match="certificate is not accepted") as failed:
            await out.send(get(f"https://127.0.0.1:{port}/"))
    assert failed.value.fault == "tls"
    one.close()
    await one.wait_closed()
    assert not refused.is_set()


async def test_silence_after_sending_is_a_lost_response(server: Server, egress: Egress) -> None:
    with pytest.raises(ResponseLost, match="too long") as lost:
        await egress.send(get(f"{server.url}/silent"), timeout_s=0.1)
    assert lost.value.status is None
    assert lost.value.late
    assert lost.value.fault == "timeout"
    assert len(server.seen) == 1


async def test_a_body_that_stalls_is_a_lost_response_with_its_status(
    server: Server, egress: Egress
) -> None:
    with pytest.raises(ResponseLost, match="too long") as lost:
        await egress.send(get(f"{server.url}/stalled"), timeout_s=0.2)
    assert lost.value.status == 202


async def test_a_timeout_of_the_caller_never_lengthens_the_limit(server: Server) -> None:
    async with Egress(server.allow, Limits(total_s=0.1)) as out:
        with pytest.raises(ResponseLost):
            await out.send(get(f"{server.url}/silent"), timeout_s=60)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nContent-", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", 200),
        (b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nshort", 201),
        (b"not http at all\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n", None),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_an_answer_cut_short_or_garbled_is_lost_and_the_request_sent_only_once(
    raw_server: StartRaw, answer: bytes, status: int | None, method: str
) -> None:
    arrived = []

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()

    server = await raw_server(cut)
    async with Egress(server.allow, LIMITS) as out:
        with pytest.raises(ResponseLost) as lost:
            await out.send(Request(method, f"{server.url}/?key=canary"))
    assert lost.value.status == status
    assert not lost.value.late
    assert lost.value.fault == "lost"
    assert "canary" not in str(lost.value)
    assert lost.value.__context__ is lost.value.__cause__ is None
    assert len(arrived) == 1


async def test_a_reset_after_the_request_is_a_lost_response(raw_server: StartRaw) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        linger_nothing = b"\x01\0\0\0\0\0\0\0"
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger_nothing
        )

    server = await raw_server(reset)
    async with Egress(server.allow, LIMITS) as out:
        with pytest.raises(ResponseLost):
            await out.send(Request("POST", f"{server.url}/", body=b"x"))


async def test_a_kept_connection_that_broke_is_not_tried_again(raw_server: StartRaw) -> None:
    """The second request goes out on a connection that the server then drops."""
    arrived = []

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        arrived.append(await reader.readuntil(b"\r\n\r\n"))

    server = await raw_server(answer_once)
    async with Egress(server.allow, LIMITS) as out:
        assert (await out.send(Request("DELETE", f"{server.url}/1"))).status == 200
        with pytest.raises(ResponseLost):
            await out.send(Request("DELETE", f"{server.url}/2"))
    assert len(arrived) == 2


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
