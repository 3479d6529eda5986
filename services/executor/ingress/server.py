"""The HTTP server for webhooks and for browsers that connect accounts, and the one place where our
errors become HTTP statuses.

POST /v1/{tenant}/{endpoint}      202 {"event": id}; a redelivery gets the first one's answer;
                                  429 with Retry-After while the tenant's quota is used up
POST /v1/app/{provider}/{app}     202 {"events": [id, …]}, one of each item of an app's stream
POST /v1/{tenant}/{endpoint}/{token}
                                  the same, of endpoints whose url is the secret (`proofs`)
GET  the same urls                200 what a provider says there to learn whether they are ours,
                                  where its manifest has a challenge
GET  /connect/{token}             302 to where an end user connects an account
GET  /oauth/callback              302 back from there, or a page
GET  /healthz                     200 while the process serves
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from services.chassis import errors, telemetry
from services.executor.ingress import connecting
from services.executor.ingress.inbound import Echo, Inbound
from services.executor.ingress.intake import Busy
from services.executor.ingress.proofs import Delivery, NotLetIn
from services.executor.ingress.streams import Streams
from services.executor.registry.connecting import RegistryConnecting

log = logging.getLogger(__name__)

Body = TypeVar("Body", bytes, bytearray)

LARGEST_BODY: Final = 2**20
BODY_S: Final = 30.0
HEAD_S: Final = 75.0
"""How long a connection may be without the whole head of a request, between requests too."""
RETRY_AFTER_S: Final = 5
DRAIN_S: Final = 10.0


class TooLarge(errors.ResourceExhausted):
    """A body longer than LARGEST_BODY."""


class TooSlow(errors.DeadlineExceeded):
    """A body that took longer than BODY_S to come."""


class BrokenOff(errors.InvalidArgument):
    """A body whose end never came, or that is not framed as HTTP has it."""


STATUSES: Final[tuple[tuple[type[errors.TenonError], int, str], ...]] = (
    (errors.NotFound, 404, "not found"),
    (TooLarge, 413, f"the body is longer than {LARGEST_BODY} bytes"),
    (TooSlow, 408, "the body did not come in time"),
    (BrokenOff, 400, "the body is not whole"),
    (Busy, 429, "too much is under way"),
    (errors.ResourceExhausted, 429, "the quota is used up"),
    (errors.Unavailable, 503, "try again soon"),
    (errors.Aborted, 503, "try again soon"),
    (errors.DeadlineExceeded, 503, "try again soon"),
    (errors.TenonError, 500, "internal error"),
)
"""The first that fits says the answer; of an error itself only when to send again is told."""
AGAIN: Final = frozenset({429, 503})
STREAMS: Final = "/v1/app/{provider}/{app}"
ENDPOINTS: Final = ("/v1/{tenant}/{endpoint}", "/v1/{tenant}/{endpoint}/{token}")


@asynccontextmanager
async def serving(
    inbound: Inbound,
    streams: Streams,
    registry: RegistryConnecting,
    host: str,
    port: int,
    *,
    reuse_port: bool = False,
) -> AsyncIterator[int]:
    """Let webhooks and browsers in until the block ends, then let those under way end; the port.

    With `reuse_port` other processes of the same user may listen there too. Raises Unavailable
    where somebody else does.
    """
    runner = web.AppRunner(
        _application(inbound, streams, registry),
        access_log=None,
        # A signature is of the bytes on the wire, not of what they unpack to.
        auto_decompress=False,
        keepalive_timeout=HEAD_S,
        shutdown_timeout=DRAIN_S,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, reuse_port=reuse_port).start()
        except OSError:
            raise errors.Unavailable(f"cannot listen on {host}:{port}") from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _application(
    inbound: Inbound, streams: Streams, registry: RegistryConnecting
) -> web.Application:
    async def receive(request: web.Request) -> web.Response:
        delivery = _delivery(request, await _body(request))
        with telemetry.bind(tenant=delivery.tenant, endpoint=delivery.endpoint):
            found = await inbound.receive(delivery)
        if isinstance(found, Echo):
            return _echoed(found)
        return web.json_response(text=f'{{"event": "{found}"}}', status=202)

    async def receive_stream(request: web.Request) -> web.Response:
        provider, app = (request.match_info[name] for name in ("provider", "app"))
        delivery = _delivery(request, await _body(request))
        with telemetry.bind(provider=provider, app=app):
            found = await streams.receive((provider, app), delivery)
        if isinstance(found, Echo):
            return _echoed(found)
        return web.json_response({"events": [str(each) for each in found]}, status=202)

    async def challenged(request: web.Request) -> web.Response:
        delivery = _delivery(request, b"")
        with telemetry.bind(tenant=delivery.tenant, endpoint=delivery.endpoint):
            return _echoed(await inbound.challenged(delivery, request.query))

    async def healthy(_: web.Request) -> web.Response:
        return web.json_response({"status": "serving"})

    application = web.Application(middlewares=[_boundary])
    application.add_routes(
        [
            # Before the addresses of a tenant, of which none has this one's name.
            web.post(STREAMS, receive_stream),
            *(web.post(path, receive) for path in ENDPOINTS),
            *(web.get(path, challenged, allow_head=False) for path in ENDPOINTS),
            web.get("/healthz", healthy),
            *connecting.routes(registry),
        ]
    )
    return application


@web.middleware
async def _boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    with telemetry.bind(telemetry.Beginning()):
        try:
            return await handler(request)
        except web.HTTPException as error:
            answer = _answer(request, error.status, error.reason.lower())
        except errors.TenonError as error:
            answer = _told(request, error)
        except Exception:  # the one boundary where any fault becomes a status
            log.exception("unexpected error")
            answer = _told(request, errors.Internal("unexpected"))
        return answer


def _told(request: web.Request, error: errors.TenonError) -> web.Response:
    _, status, sentence = next(row for row in STATUSES if isinstance(error, row[0]))
    if isinstance(error, NotLetIn):
        log.info("webhook refused: %s", error.detail)
    elif status == 429:
        log.warning("to be sent again: %s", error.message)
    elif status >= 500:
        log.error("not taken: %s", error.message)
    answer = _answer(request, status, sentence)
    if status in AGAIN:
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    return answer


def _answer(request: web.Request, status: int, sentence: str) -> web.Response:
    if connecting.is_page(request):
        return connecting.fault_page(status)
    return web.json_response({"error": sentence}, status=status)


def _echoed(echo: Echo) -> web.Response:
    """Somebody else's words, which nobody is to take for a page."""
    return web.Response(text=echo.text, headers={"X-Content-Type-Options": "nosniff"})


def _delivery(request: web.Request, body: bytes) -> Delivery:
    place = request.match_info
    return Delivery(
        tenant=place.get("tenant", ""),
        endpoint=place.get("endpoint", ""),
        headers=_headers(request),
        body=body,
        token=place.get("token", ""),
        target=request.raw_path,
    )


def _headers(request: web.Request) -> dict[str, str]:
    found = dict[str, str]()
    for name, value in request.headers.items():
        low = name.lower()
        found[low] = f"{found[low]}, {value}" if low in found else value
    return found


async def _body(request: web.Request) -> bytes:
    if (request.content_length or 0) > LARGEST_BODY:
        raise TooLarge("announced")
    try:
        if request.content.is_eof():
            # It came with its head: nobody need look at a clock.
            return _checked(request.content.read_nowait())
        async with asyncio.timeout(BODY_S):
            return await _read(request)
    except TimeoutError:
        raise TooSlow("read") from None
    except (ConnectionError, web.RequestPayloadError):
        raise BrokenOff("read") from None


async def _read(request: web.Request) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        _checked(body)
    return bytes(body)


def _checked(body: Body) -> Body:
    if len(body) > LARGEST_BODY:
        raise TooLarge("read")
    return body
