"""Customers' servers that fail at random: `python -m tests.faults.faulty_receiver LOG`.

Each request to /TENANT/SECRET is checked as its receiver would, written to the file LOG with the
answer it gets, and answered.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from services.chassis.process import ready_until_told
from services.chassis.secret import Secret
from tests.faults.fixed_keys import SEED, FixedKeys

TIMEOUT_S: Final = 1.5
"""What the endpoints are given, in seconds."""
TAKEN: Final = "taken"
SHARES: Final = {TAKEN: 84, "error": 6, "reset": 4, "slow": 2, "busy": 2, "elsewhere": 2}


@dataclass(frozen=True, slots=True)
class Got:
    """A request: when, whose, what it said, and how it was answered.

    `number` is the event's; `hash` of the body's bytes; `fault` why it does not verify.
    """

    at: float
    tenant_id: str
    endpoint: str
    message_id: str
    hash: str
    answer: str
    number: int
    type: str
    fault: str


class Receiver:
    """All of them."""

    def __init__(self, keys: FixedKeys, log: Path) -> None:
        self._keys = keys
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._random = Random(17)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Note a request and answer it somehow."""
        body = await request.read()
        (answer,) = self._random.choices(list(SHARES), list(SHARES.values()))
        got = self._got(request, body, answer)
        os.write(self._log, (json.dumps(asdict(got)) + "\n").encode())
        return await ANSWERS[answer](request)

    def _got(self, request: web.Request, body: bytes, answer: str) -> Got:
        tenant_id, endpoint = request.match_info["tenant"], request.match_info["endpoint"]
        told, fault = _verified(self._keys.secret(UUID(tenant_id), endpoint), request, body)
        return Got(
            time.monotonic(), tenant_id, endpoint, request.headers["webhook-id"],
            hashlib.sha256(body).hexdigest(), answer, told["data"]["number"], told["type"], fault,
        )  # fmt: skip


def _verified(secret: Secret, request: web.Request, body: bytes) -> tuple[dict[str, Any], str]:
    """What the library of Standard Webhooks takes from a request, and why it does not."""
    try:
        verified: dict[str, Any] = Webhook(secret.reveal_text()).verify(body, dict(request.headers))
    except WebhookVerificationError as error:
        return json.loads(body), str(error)
    return verified, ""


async def _taken(request: web.Request) -> web.StreamResponse:
    return web.Response(text="thanks")


async def _error(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="no")


async def _reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(TIMEOUT_S + 1)
    return web.Response()


async def _busy(request: web.Request) -> web.StreamResponse:
    return web.Response(status=429, headers={"Retry-After": "1"})


async def _elsewhere(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": str(request.url)})


ANSWERS: Final[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    TAKEN: _taken, "error": _error, "reset": _reset, "slow": _slow, "busy": _busy,
    "elsewhere": _elsewhere,
}  # fmt: skip


async def serve(log: Path) -> None:
    """Receive until told to stop."""
    receiver = Receiver(FixedKeys(Secret(os.environ[SEED])), log)
    application = web.Application()
    application.router.add_post("/{tenant}/{endpoint}", receiver.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await ready_until_told(port=runner.addresses[0][1])
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
