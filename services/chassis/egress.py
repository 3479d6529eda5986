"""The only way out: every dialled address is checked, and over HTTP every answer is capped.

What a caller learns from an error is whether the request may have reached the other side:
`services.chassis.egress_errors` has them all.
"""

import ssl
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from services.chassis.addresses import AllowRule, parse_allow, verdict
from services.chassis.egress_answers import most_bytes, read
from services.chassis.egress_dialling import (
    CheckedConnector,
    Journey,
    journey,
    send_once,
    told_by,
    watch_sending,
)
from services.chassis.egress_errors import (
    BadIdentity,
    ConnectFailed,
    EgressError,
    EgressRefused,
    Fault,
    NotPermitted,
    ResponseLost,
    ResponseTooLarge,
    Unsendable,
)
from services.chassis.egress_identities import Identities, Identity
from services.chassis.egress_requests import OWNED_HEADERS, Request, checked_url, place_of
from services.chassis.egress_streams import Stream, dialled
from services.chassis.endpoint_limits import Only

__all__ = [
    "OWNED_HEADERS",
    "AllowRule",
    "BadIdentity",
    "ConnectFailed",
    "Egress",
    "EgressError",
    "EgressRefused",
    "Fault",
    "Identity",
    "Limits",
    "NotPermitted",
    "Request",
    "Response",
    "ResponseLost",
    "ResponseTooLarge",
    "Unsendable",
    "parse_allow",
    "verdict",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of every request; `connect_s` covers waiting for a free connection, DNS and TLS."""

    total_s: float = 30
    connect_s: float = 5
    response_bytes: int = 2**20
    """Bytes of body, after decompression."""
    connections: int = 500


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: header names in lower case, several values joined by a comma."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Egress:
    """Sends requests. Make it inside the running event loop; close it, or use `async with`.

    Redirects are not followed, cookies are not kept, and the environment's proxies are not used.
    """

    def __init__(self, allow: Sequence[AllowRule], limits: Limits = Limits()) -> None:
        self._allow = tuple(allow)
        self._limits = limits
        self._identities = Identities()
        self._session = aiohttp.ClientSession(
            connector=CheckedConnector(
                self._allow, limits.connections, most_bytes(limits.response_bytes)
            ),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[watch_sending()],
            middlewares=(send_once,),
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
        Raises the errors of `services.chassis.egress_errors`.
        """
        url = checked_url(request)
        identity = request.identity
        context = await self._identities.context(identity) if identity else None
        here = Journey(url.raw_host or "", place_of(url), request.only)
        marker = journey.set(here)
        failed: EgressError
        try:
            return await self._exchange(request, url, here, context, timeout_s)
        except (aiohttp.InvalidURL, UnicodeError):
            # The second is IDNA's.
            failed = Unsendable("the host in the URL is not a name or a plain address")
        except (aiohttp.ClientError, TimeoutError, OSError, zlib.error) as error:
            failed = told_by(here, error)
        finally:
            journey.reset(marker)
        # Raised out here to have no context: aiohttp's errors repeat the URL, which may carry a
        # key, and the address they dialled.
        raise failed

    async def dial(
        self, host: str, port: int, *, only: Only | None = None, timeout_s: float
    ) -> Stream:
        """A connection to whoever speaks something else than HTTP; the caller closes it.

        Raises EgressRefused, NotPermitted and ConnectFailed.
        """
        here = Journey(host, f"{host}:{port}", only)
        return await dialled(here, port, self._allow, min(timeout_s, self._limits.connect_s))

    async def _exchange(
        self,
        request: Request,
        url: URL,
        here: Journey,
        context: ssl.SSLContext | None,
        timeout_s: float | None,
    ) -> Response:
        total = self._limits.total_s if timeout_s is None else min(timeout_s, self._limits.total_s)
        async with self._session.request(
            request.method,
            url,
            headers=request.headers,
            # A stream, since aiohttp warns of large bytes.
            data=None if request.body is None else BytesIO(request.body),
            allow_redirects=False,
            # Kept connections are told apart by it, too.
            ssl=context or True,
            timeout=aiohttp.ClientTimeout(total=total, connect=self._limits.connect_s),
        ) as answer:
            here.status = answer.status
            headers, body = await read(answer, self._limits.response_bytes)
            return Response(answer.status, headers, body)
