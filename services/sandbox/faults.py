"""Faults on demand: the stand-in answers late, wrongly, in part or not at all."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FaultKind = Literal["status", "rate_limit", "slow", "truncate", "reset", "hang", "late"]


class Fault(BaseModel):
    """One fault for the next `times` requests whose path matches `path` (`*` for anything).

    status, rate_limit: refused with `status` (500; 429), nothing done; `retry_after` in seconds,
    `body` what is said instead of GitHub's words, such as Slack's {"ok": false}.
    slow: done, answered after `delay_s`. truncate: done, the answer's body breaks off half-way.
    reset: done, then the connection is reset. hang: done, never answered.
    late: done only after `delay_s`, even if the client has gone by then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    kind: FaultKind
    method: str | None = None
    times: int = 1
    status: int | None = None
    delay_s: float = 1.0
    retry_after: int | None = None
    body: dict[str, Any] | None = None

    def hits(self, method: str, path: str) -> bool:
        """Whether a request of this method and path gets the fault."""
        return self.method in (None, method) and fnmatchcase(path, self.path)


@dataclass(slots=True)
class _Armed:
    fault: Fault
    left: int


class Faults:
    """The faults waiting for their requests, oldest first."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def add(self, fault: Fault) -> None:
        """Arm a fault behind those there are."""
        self._armed.append(_Armed(fault, fault.times))

    def clear(self) -> None:
        """Disarm all."""
        self._armed.clear()

    def pending(self) -> list[dict[str, object]]:
        """What is armed still, as JSON objects."""
        return [{**a.fault.model_dump(), "times": a.left} for a in self._armed]

    async def respond(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The handler's answer, or what the first fault that hits makes of it."""
        fault = self._take(request.method, request.path)
        return await (_RESPOND[fault.kind](fault, request, handler) if fault else handler(request))

    def _take(self, method: str, path: str) -> Fault | None:
        found = next((a for a in self._armed if a.fault.hits(method, path)), None)
        if found is None:
            return None
        found.left -= 1
        if found.left <= 0:
            self._armed.remove(found)
        return found.fault


async def _status(fault: Fault, _request: web.Request, _handler: Handler) -> web.StreamResponse:
    return _refusal(fault, fault.status or 500, "Server Error")


async def _rate_limit(fault: Fault, _request: web.Request, _handler: Handler) -> web.StreamResponse:
    return _refusal(
        fault,
        fault.status or 429,
        "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
    )


def _refusal(fault: Fault, status: int, message: str) -> web.Response:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    body = {"message": message} if fault.body is None else fault.body
    return web.json_response(body, status=status, headers=headers)


async def _slow(fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
    answer = await handler(request)
    await asyncio.sleep(fault.delay_s)
    return answer


async def _truncate(_fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
    whole = await handler(request)
    body = whole.body if isinstance(whole, web.Response) else None
    if not isinstance(body, bytes):
        raise TypeError("only a whole answer can be cut short")
    part = web.StreamResponse(status=whole.status, headers={"Content-Type": whole.content_type})
    part.content_length = len(body) + 1
    await part.prepare(request)
    await part.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return part


async def _reset(_fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
    answer = await handler(request)
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        # Lingering for no time makes closing a reset (RST) instead of an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return answer


async def _hang(_fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
    await handler(request)
    await asyncio.Event().wait()
    raise AssertionError("nobody sets this event")


async def _late(fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
    async def handled() -> web.StreamResponse:
        await asyncio.sleep(fault.delay_s)
        return await handler(request)

    # A client that goes cancels its handler, but not what the handler shields.
    return await asyncio.shield(handled())


_Respond = Callable[[Fault, web.Request, Handler], Awaitable[web.StreamResponse]]
_RESPOND: Final[Mapping[FaultKind, _Respond]] = {
    "status": _status,
    "rate_limit": _rate_limit,
    "slow": _slow,
    "truncate": _truncate,
    "reset": _reset,
    "hang": _hang,
    "late": _late,
}
