"""Connections for requests: every address is checked as it is dialled, or lent from the pool."""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

from services.chassis.addresses import AllowRule, verdict
from services.chassis.egress_answers import MeteredHandler
from services.chassis.egress_errors import (
    ConnectFailed,
    EgressError,
    EgressRefused,
    Fault,
    NotPermitted,
    ResponseLost,
)
from services.chassis.endpoint_limits import Only

if TYPE_CHECKING:
    from aiohttp.connector import AddrInfoType, Connection
    from aiohttp.tracing import Trace

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Journey:
    """How far one request came; written by the hooks that aiohttp calls while sending it.

    `place` is what messages say of where it went.
    """

    host: str
    place: str
    only: Only | None = None
    refused: list[str] = field(default_factory=list)
    outside: bool = False
    dialled: bool = False
    sent: bool = False
    status: int | None = None


# aiohttp hands the socket factory an address and nothing else; the context says for whom.
journey: Final[ContextVar[Journey]] = ContextVar("egress_journey")


class CheckedConnector(aiohttp.TCPConnector):
    """Dials permitted addresses alone, for the journey of the context it is asked in."""

    def __init__(self, allow: tuple[AllowRule, ...], connections: int, answer_bytes: int) -> None:
        super().__init__(limit=connections, socket_factory=self._checked_socket)
        self._factory = partial(_metered, loop=self._loop)
        self._allow = allow
        self._answer_bytes = answer_bytes

    async def connect(
        self, req: aiohttp.ClientRequest, traces: "list[Trace]", timeout: aiohttp.ClientTimeout
    ) -> "Connection":
        """A new connection, or a kept one whose other end this journey may dial, too."""
        connection = await super().connect(req, traces, timeout)
        # Whoever dialled a kept one may have been limited to other networks.
        while not _may_use(connection):
            connection.close()
            connection = await super().connect(req, traces, timeout)
        handler = cast("MeteredHandler", connection.protocol)
        handler.allot(self._answer_bytes)
        # Kept, it takes in nothing: what nobody asked for is not the next one's answer.
        connection.add_callback(partial(handler.allot, 0))
        return connection

    def _checked_socket(self, info: "AddrInfoType") -> socket.socket:
        family, kind, protocol, _, target = info
        if may_dial(journey.get(), str(target[0]), int(target[1]), self._allow):
            return socket.socket(family, kind, protocol)
        # An OSError lets the connector go on to the host's other addresses.
        raise PermissionError("refused by egress")


def may_dial(here: Journey, address: str, port: int, allow: Sequence[AllowRule]) -> bool:
    """Whether a journey may go to an address, literal as it is dialled; writes down the answer."""
    if verdict(address, port, allow, here.host) is not None:
        here.refused.append(address)
    elif here.only is not None and not here.only.permits_address(address):
        here.outside = True
    else:
        here.dialled = True
        return True
    return False


def _metered(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return MeteredHandler(loop)


def _may_use(connection: "Connection") -> bool:
    only = journey.get().only
    if only is None or not only.networks:
        return True
    transport = connection.transport
    peer = transport.get_extra_info("peername") if transport else None
    return peer is not None and only.permits_address(str(peer[0]))


def watch_sending() -> aiohttp.TraceConfig:
    """Marks the journey when the request's first bytes go to the connection."""

    async def mark(*_: Any) -> None:
        journey.get().sent = True

    watch = aiohttp.TraceConfig()
    watch.on_request_headers_sent.append(mark)
    return watch


async def send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keeps aiohttp from sending again, out of our sight, when a kept connection breaks."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
        raise aiohttp.ClientPayloadError("the connection broke") from None


def told_by(here: Journey, error: Exception) -> EgressError:
    """What an error of aiohttp or asyncio means, by how far it came; repeats nothing of it."""
    if here.sent:
        late = isinstance(error, TimeoutError)
        what = "took too long to answer" if late else "broke off before its answer was whole"
        return ResponseLost(f"{here.place} {what}", here.status, late=late)
    if here.dialled:
        return _connect_failed(here, error)
    if here.refused:
        # Each address once, however often it was tried.
        leads_to = tuple(dict.fromkeys(here.refused))
        # The one place that says where the name leads: the operators' log.
        log.warning("refused %s: it leads to %s", here.place, ", ".join(leads_to))
        return EgressRefused(here.place, leads_to)
    if here.outside:
        return NotPermitted(
            f"the address of {here.place} is outside its credential's allowed networks"
        )
    return _connect_failed(here, error)


_CONNECT_FAULTS: Final[tuple[tuple[type[Exception], Fault, str], ...]] = (
    (TimeoutError, "timeout", "no connection in time"),
    (aiohttp.ClientConnectorDNSError, "dns", "the name is not known"),
    (socket.gaierror, "dns", "the name is not known"),
    (aiohttp.ClientConnectorCertificateError, "tls", "the certificate is not accepted"),
    (aiohttp.ClientSSLError, "tls", "no TLS connection"),
)


def _connect_failed(here: Journey, error: Exception) -> ConnectFailed:
    for kind, fault, sentence in _CONNECT_FAULTS:
        if isinstance(error, kind):
            return ConnectFailed(f"{here.place}: {sentence}", fault)
    number = error.errno if isinstance(error, OSError) else None
    return ConnectFailed(f"{here.place}: {os.strerror(number) if number else 'no connection'}")
