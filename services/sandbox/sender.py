"""Sends webhooks as GitHub does: its headers, its signature, the payload byte for byte."""

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import aiohttp

from services.chassis.secret import Secret
from services.providers.signatures import sign


async def send_webhook(
    url: str,
    event: str,
    payload_bytes: bytes,
    secret: Secret,
    delivery_id: str | None = None,
    session: aiohttp.ClientSession | None = None,
) -> tuple[int, bytes]:
    """POST one delivery of `event`; returns the answer's status and body.

    The same `delivery_id` makes it a redelivery; without one it is new.
    """
    headers = webhook_headers(event, payload_bytes, secret, delivery_id or str(uuid4()))
    async with AsyncExitStack() as stack:
        client = (
            await stack.enter_async_context(aiohttp.ClientSession()) if session is None else session
        )
        async with client.post(url, data=payload_bytes, headers=headers) as answer:
            return answer.status, await answer.read()


def webhook_headers(
    event: str, payload_bytes: bytes, secret: Secret, delivery_id: str
) -> dict[str, str]:
    """The headers GitHub sends with this payload."""
    signature = sign("github_sha256", secret, payload_bytes, time.time(), delivery_id)
    return {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery_id,
        "X-GitHub-Hook-ID": "1",
        "X-Hub-Signature-256": signature["x-hub-signature-256"],
    }


def main() -> int:
    """Send one payload from a file; exit 0 when it was accepted."""
    parser = argparse.ArgumentParser(prog="python -m services.sandbox.sender")
    parser.add_argument("--url", required=True)
    parser.add_argument("--event", required=True, help="such as push or issues")
    parser.add_argument("--payload", type=Path, required=True)
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--delivery-id")
    given = parser.parse_args()
    secret = Secret(given.secret_file.read_bytes().strip())
    status, body = asyncio.run(
        send_webhook(given.url, given.event, given.payload.read_bytes(), secret, given.delivery_id)
    )
    answer = {"status": status, "body": body.decode(errors="replace")}
    print(json.dumps(answer))  # noqa: T201 -- a command's answer
    return 0 if 200 <= status < 300 else 1


if __name__ == "__main__":
    sys.exit(main())
