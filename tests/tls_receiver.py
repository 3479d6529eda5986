"""A TLS server that asks for a client certificate, and remembers whose came over which connection."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from services.chassis.secret import Secret
from tests.certificates import HERE, Authority


@dataclass
class TlsReceiver:
    """What came: the certificate's common name, and the port it came from."""

    url: str = ""
    port: int = 0
    got: list[tuple[str, int]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.got]

    async def handle(self, request: web.Request) -> web.Response:
        transport = request.transport
        assert transport is not None
        subject = transport.get_extra_info("peercert")["subject"]
        name = next(value for ((key, value),) in subject if key == "commonName")
        self.got.append((name, transport.get_extra_info("peername")[1]))
        return web.Response(text="thanks")


@asynccontextmanager
async def tls_receiver(
    folder: Path, clients: Authority, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TlsReceiver]:
    """One that lets in whom `clients` has signed, and whose own authority this process trusts."""
    own = Authority(folder / "receiver", "receivers")
    certificate, key = own.issue("receiver", HERE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(clients.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setenv("SSL_CERT_FILE", str(own.certificate))
    receiver = TlsReceiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        receiver.port = runner.addresses[0][1]
        receiver.url = f"https://127.0.0.1:{receiver.port}/hook"
        yield receiver
    finally:
        await runner.cleanup()


def issued(authority: Authority, name: str) -> dict[str, Secret]:
    """A client certificate as a credential holds it."""
    certificate, key = authority.issue(name)
    return {
        "certificate": Secret(certificate.read_bytes()),
        "private_key": Secret(key.read_bytes()),
    }
