"""The only way out over HTTP: every dialled address is checked, every answer is capped.

What a caller learns from an error is whether the request may have reached the other side:

    EgressError
    ├── Unsendable        not sent: the request itself is wrong; the same request never works
    ├── EgressRefused     not sent: the address is internal; permanent until a setting changes
    ├── ConnectFailed     not sent: no connection; trying again is safe
    ├── ResponseLost      perhaps done: sent, but the answer is missing, cut or late
    └── ResponseTooLarge  done: answered, but with more than we read
"""

import os
import re
import socket
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import BytesIO
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from yarl import URL

from services.chassis.addresses import AllowRule, parse_allow, verdict
from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    TenonError,
    Unavailable,
)

__all__ = [
    "AllowRule",
    "ConnectFailed",
    "Egress",
    "EgressError",
    "EgressRefused",
    "Limits",
    "Request",
    "Response",
    "ResponseLost",
    "ResponseTooLarge",
    "Unsendable",
    "parse_allow",
    "verdict",
]

ALLOW_SETTING: Final = "TENON_EGRESS_ALLOW"


class EgressError(TenonError):
    """A request that brought no usable answer. Messages name the host, never path or address."""


class Unsendable(EgressError, InvalidArgument):
    """The request itself is wrong."""

    reason = "UNSENDABLE"


class EgressRefused(EgressError, FailedPrecondition):
    """Every address of the host is internal. `addresses` is for the operators' eyes only."""

    reason = "EGRESS_REFUSED"

    def __init__(self, place: str, addresses: Sequence[str]) -> None:
        super().__init__(
            f"{place} is not a public address; an operator can permit it "
            f"with the setting {ALLOW_SETTING}"
        )
        self.addresses = tuple(addresses)


class ConnectFailed(EgressError, Unavailable):
    """No connection; nothing was sent."""

    reason = "CONNECT_FAILED"


class ResponseLost(EgressError):
    """Sent, with no whole answer: the other side may have acted. `status` if it still came.

    `late`: because it took too long, not because the connection broke.
    """

    reason = "RESPONSE_LOST"

    def __init__(self, message: str, status: int | None = None, *, late: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.late = late


class ResponseTooLarge(EgressError, ResourceExhausted):
    """Answered with `status` and a body longer than the limit."""

    reason = "RESPONSE_TOO_LARGE"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of every request; `connect_s` covers waiting for a free connection, DNS and TLS."""

    total_s: float = 30
    connect_s: float = 5
    response_bytes: int = 2**20
    """Bytes of body, after decompression."""
    connections: int = 500


@dataclass(frozen=True, slots=True)
class Request:
    """What goes out. The URL is sent as it stands, so it must be percent-encoded already."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: header names in lower case, several values joined by a comma."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(slots=True)
class _Journey:
    """How far one request came; written by the hooks that aiohttp calls while sending it."""

    host: str
    refused: list[str] = field(default_factory=list)
    dialled: bool = False
    sent: bool = False
    status: int | None = None


# aiohttp hands the socket factory an address and nothing else; the context says for whom.
_journey: Final[ContextVar[_Journey]] = ContextVar("egress_journey")


class Egress:
    """Sends requests. Make it inside the running event loop; close it, or use `async with`.

    Redirects are not followed, cookies are not kept, and the environment's proxies are not used.
    """

    def __init__(self, allow: Sequence[AllowRule], limits: Limits = Limits()) -> None:
        self._allow = tuple(allow)
        self._limits = limits
        connector = aiohttp.TCPConnector(
            limit=limits.connections, socket_factory=self._checked_socket
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[_watch_sending()],
            middlewares=(_send_once,),
            skip_auto_headers=("Content-Type",),
            headers={"User-Agent": "tenon", "Accept-Encoding": "gzip"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        await self._session.close()

    async def send(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Send once and read the whole answer, whatever its status.

        `timeout_s` shortens the limit on the whole exchange, never lengthens it.
        Raises the errors listed at the top of this module.
        """
        url = _checked_url(request)
        journey = _Journey(url.raw_host or "")
        marker = _journey.set(journey)
        try:
            return await self._exchange(request, url, journey, timeout_s)
        except (aiohttp.InvalidURL, UnicodeError):
            # The first repeats the URL, which may carry a key; the second is IDNA's.
            raise Unsendable("the host in the URL is not a name or a plain address") from None
        except (aiohttp.ClientError, TimeoutError, OSError, zlib.error) as error:
            # aiohttp's errors repeat the URL and the address they dialled.
            raise _told_by(journey, url, error) from None
        finally:
            _journey.reset(marker)

    async def _exchange(
        self, request: Request, url: URL, journey: _Journey, timeout_s: float | None
    ) -> Response:
        total = self._limits.total_s if timeout_s is None else min(timeout_s, self._limits.total_s)
        async with self._session.request(
            request.method,
            url,
            headers=request.headers,
            # A stream, since aiohttp warns of large bytes.
            data=None if request.body is None else BytesIO(request.body),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=total, connect=self._limits.connect_s),
        ) as answer:
            journey.status = answer.status
            body, headers = await self._read(answer)
            return Response(answer.status, headers, body)

    async def _read(self, answer: aiohttp.ClientResponse) -> tuple[bytes, dict[str, str]]:
        headers = _joined(answer)
        chunks: AsyncIterator[bytes] = answer.content.iter_any()
        if headers.get("content-encoding", "").strip().lower() == "gzip":
            chunks = _unzipped(chunks, self._limits.response_bytes)
            for name in ("content-encoding", "content-length"):
                headers.pop(name, None)
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > self._limits.response_bytes:
                answer.close()
                raise ResponseTooLarge(
                    f"the answer is longer than {self._limits.response_bytes} bytes", answer.status
                )
        return bytes(body), headers

    def _checked_socket(self, info: "aiohttp.connector.AddrInfoType") -> socket.socket:
        family, kind, protocol, _, target = info
        address, port = str(target[0]), int(target[1])
        journey = _journey.get()
        if verdict(address, port, self._allow, journey.host) is not None:
            journey.refused.append(address)
            # An OSError lets the connector go on to the host's other addresses.
            raise PermissionError("refused by egress")
        journey.dialled = True
        return socket.socket(family, kind, protocol)


def _told_by(journey: _Journey, url: URL, error: Exception) -> EgressError:
    place = f"{journey.host}:{url.port}"
    if journey.sent:
        late = isinstance(error, TimeoutError)
        what = "took too long to answer" if late else "broke off before its answer was whole"
        return ResponseLost(f"{place} {what}", journey.status, late=late)
    if journey.refused and not journey.dialled:
        return EgressRefused(place, journey.refused)
    return ConnectFailed(f"{place}: {_connect_fault(error)}")


_CONNECT_FAULTS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (TimeoutError, "no connection in time"),
    (aiohttp.ClientConnectorDNSError, "the name is not known"),
    (aiohttp.ClientConnectorCertificateError, "the certificate is not accepted"),
    (aiohttp.ClientSSLError, "no TLS connection"),
)


def _connect_fault(error: Exception) -> str:
    for kind, fault in _CONNECT_FAULTS:
        if isinstance(error, kind):
            return fault
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else "no connection"


def _watch_sending() -> aiohttp.TraceConfig:
    """Marks the journey when the request's first bytes go to the connection."""

    async def mark(*_: Any) -> None:
        _journey.get().sent = True

    watch = aiohttp.TraceConfig()
    watch.on_request_headers_sent.append(mark)
    return watch


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keeps aiohttp from sending again, out of our sight, when a kept connection breaks."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
        raise aiohttp.ClientPayloadError("the connection broke") from None


def _joined(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): ", ".join(answer.headers.getall(name)) for name in set(answer.headers)}


_GZIP_WINDOW: Final = 31
"""zlib's wbits for a gzip wrapper."""


async def _unzipped(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """The decompressed stream, in pieces no longer than `limit` + 1, so that a bomb stays small.

    An empty stream stays empty; several gzip members in a row are one stream (RFC 1952 §2.2).
    """
    member = None
    async for chunk in chunks:
        rest = chunk
        while rest:
            if member is None or member.eof:
                member = zlib.decompressobj(_GZIP_WINDOW)
            yield member.decompress(rest, limit + 1)
            rest = member.unconsumed_tail or member.unused_data
    if member is not None and not member.eof:
        raise zlib.error("cut short")


_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A method or a header's name; source: RFC 9110 §5.6.2."""
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]*")
_URL: Final = re.compile(r"(?i:https?)://([^/?#]+)(?:[/?#].*)?")
_WRITTEN_AS_IS: Final = re.compile(r"[\x21-\x7e]+")

OWNED_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that say where a message goes or ends: only the connection itself writes them."""


def _checked_url(request: Request) -> URL:
    if not _TOKEN.fullmatch(request.method) or request.method.upper() in {"CONNECT", "TRACE"}:
        raise Unsendable("the method is not one that can be sent")
    for name, value in request.headers.items():
        _check_header(name, value)
    if not _WRITTEN_AS_IS.fullmatch(request.url):
        raise Unsendable("a URL holds only printable ASCII; percent-encode the rest")
    found = _URL.fullmatch(request.url)
    if found is None:
        raise Unsendable("a URL begins with http:// or https:// and a host")
    if "@" in found[1]:
        raise Unsendable("a URL with a user or a password in it is not sent")
    return _parsed(request.url)


def _check_header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise Unsendable("a header's name is not one that can be sent")
    if name.lower() in OWNED_HEADERS:
        raise Unsendable(f"the header {name} belongs to the connection")
    if not _VALUE.fullmatch(value):
        raise Unsendable(f"the header {name} holds a control character")


def _parsed(text: str) -> URL:
    try:
        # Already encoded: what was signed is what is sent.
        url = URL(text, encoded=True)
        # The parts are read here, since yarl finds fault with a port only then.
        whole = bool(url.raw_host and url.port)
    except ValueError:
        raise Unsendable("the URL cannot be read") from None
    if not whole:
        raise Unsendable("the URL has no host or no port to go to")
    return url
