"""Sends the streams of apps as their providers do: what happens in many accounts, to one url.

Slack "Events API", HubSpot "Webhooks API", Stripe "Connect webhooks" and Intuit "Webhooks": the
shape of a body, and its signature. Slack and Stripe send one item at a time, the others a list.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import uuid4
from zlib import crc32

import aiohttp
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yarl import URL

from services.chassis.secret import Secret
from services.providers.manifest import SignatureScheme
from services.providers.signatures import sign


class Happened(BaseModel):
    """One thing that happened in an account; the same `id` is the same thing, sent again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account: str
    type: str
    id: str = Field(default_factory=lambda: uuid4().hex)
    what: dict[str, Any] = {}


class Sending(BaseModel):
    """What is to be sent where, and signed with which secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Literal["slack", "stripe", "hubspot", "quickbooks"]
    url: str
    secret: str = Field(repr=False)
    items: tuple[Happened, ...]


@dataclass(frozen=True, slots=True)
class _Sender:
    scheme: SignatureScheme
    body: Callable[[Sequence[Happened]], object]


def app_body(provider: str, items: Sequence[Happened]) -> bytes:
    """What a provider says of these; Slack and Stripe say one thing at a time."""
    return json.dumps(_SENDERS[provider].body(items)).encode()


def app_headers(
    provider: str, url: str, body: bytes, secret: Secret, now: float | None = None
) -> dict[str, str]:
    """The headers with which it is sent; `now` is in seconds since the epoch."""
    at = time.time() if now is None else now
    signed = sign(_SENDERS[provider].scheme, secret, body, at, "", url)
    return {"content-type": "application/json", "user-agent": f"sandbox-{provider}", **signed}


async def send_stream(
    provider: str,
    url: str,
    items: Sequence[Happened],
    secret: Secret,
    session: aiohttp.ClientSession | None = None,
    *,
    through: str | None = None,
) -> tuple[int, bytes]:
    """POST one delivery of items; the answer's status and body.

    `through`: where it is sent in fact, as a proxy would send on what came to `url`.
    """
    body = app_body(provider, items)
    headers = app_headers(provider, url, body, secret)
    async with AsyncExitStack() as stack:
        client = (
            await stack.enter_async_context(aiohttp.ClientSession()) if session is None else session
        )
        target = URL(through or url, encoded=True)
        async with client.post(target, data=body, headers=headers) as answer:
            return answer.status, await answer.read()


def controls() -> list[web.RouteDef]:
    """How others have it sent."""

    async def send(request: web.Request) -> web.Response:
        try:
            asked = Sending.model_validate_json(await request.read())
            secret = Secret(asked.secret)
            status, body = await send_stream(asked.provider, asked.url, asked.items, secret)
        except ValidationError as error:
            told = error.json(include_url=False, include_input=False)
            return web.Response(text=told, status=400)
        return web.json_response({"status": status, "body": body.decode(errors="replace")})

    return [web.post("/__app_streams", send)]


def _slack(items: Sequence[Happened]) -> object:
    (one,) = items
    return {
        "type": "event_callback",
        "team_id": one.account,
        "api_app_id": "A0SANDBOX",
        "event_id": one.id,
        "event_time": int(time.time()),
        "event": {"type": one.type, **one.what},
    }


def _stripe(items: Sequence[Happened]) -> object:
    (one,) = items
    return {
        "id": one.id,
        "object": "event",
        "type": one.type,
        "account": one.account,
        "livemode": False,
        "data": {"object": dict(one.what)},
    }


def _hubspot(items: Sequence[Happened]) -> object:
    return [
        {
            "eventId": crc32(one.id.encode()),
            "subscriptionId": 1,
            "portalId": int(one.account),
            "occurredAt": 1_700_000_000_000,
            "subscriptionType": one.type,
            "attemptNumber": 0,
            **one.what,
        }
        for one in items
    ]


def _quickbooks(items: Sequence[Happened]) -> object:
    return [
        {
            "specversion": "1.0",
            "id": one.id,
            "source": "intuit.sandbox",
            "type": one.type,
            "intuitaccountid": one.account,
            "data": dict(one.what),
        }
        for one in items
    ]


_SENDERS: Final[Mapping[str, _Sender]] = {
    "slack": _Sender("slack_v0", _slack),
    "stripe": _Sender("stripe_v1", _stripe),
    "hubspot": _Sender("hubspot_v3", _hubspot),
    "quickbooks": _Sender("intuit_sha256", _quickbooks),
}
