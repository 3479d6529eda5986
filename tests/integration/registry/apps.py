"""Apps of the stand-in identity provider, and tokens of theirs, as documents."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from tenon.registry.v1 import wanted_pb2

from services.registry.settings import Settings
from services.sandbox.server import Box
from tests.integration.registry.documents import resource
from tests.wiring import settings

PUBLIC: Final = "https://tenon.example.com"
CALLBACK: Final = f"{PUBLIC}/oauth/callback"
RETURN: Final = "https://app.example.com/connected"
ACCOUNT: Final = "acct_ada"


def told(box: Box, **said: Any) -> Settings:
    """Settings of a registry that may call the stand-in."""
    port = box.url.rpartition(":")[2]
    box.identity.change(redirect_uris=[CALLBACK])
    return settings(
        egress_allow=f"127.0.0.1/32:{port}",
        public_url=PUBLIC,
        return_urls="https://app.example.com/*",
        **said,
    )


def secret(
    name: str, kind: str, values: Mapping[str, bytes], **spec: object
) -> wanted_pb2.Resource:
    """A credential with values."""
    document = resource("credential", name, type=kind, **spec)
    for part, value in values.items():
        document.credential.values[part].plain = value
    return document


def endpoints(box: Box, **changed: str) -> dict[str, str]:
    """Where the stand-in's endpoints are, as an app's config."""
    return {
        "authorization_url": f"{box.url}/oauth/authorize",
        "token_url": f"{box.url}/oauth/token",
        "revocation_url": f"{box.url}/oauth/revoke",
        "issuer": box.url,
        **changed,
    }


def app(
    box: Box, name: str = "app", *, client_secret: bytes | None = None, **changed: str
) -> wanted_pb2.Resource:
    """The stand-in's client."""
    values = {
        "client_id": box.identity.client_id.encode(),
        "client_secret": client_secret or box.identity.client_secret.reveal(),
    }
    return secret(name, "oauth2_client", values, provider="http", config=endpoints(box, **changed))


def token(
    box: Box, name: str = "token", *, account: str = ACCOUNT, app: str = "app", **spec: object
) -> wanted_pb2.Resource:
    """What an account has consented to, brought along."""
    given = box.identity.issue(account, "read")
    assert given.refresh_token is not None
    values = {
        "access_token": given.access_token.encode(),
        "refresh_token": given.refresh_token.encode(),
    }
    return secret(name, "oauth2", values, provider="http", app=app, **spec)


async def until(
    holds: Callable[[], Awaitable[Any]], within_s: float = 15.0, *, every_s: float = 0.02
) -> Any:
    """What `holds` gives once that is true; fails when it does not come."""
    deadline = time.monotonic() + within_s
    while not (found := await holds()):
        assert time.monotonic() < deadline, f"it did not come within {within_s:.0f} s"
        await asyncio.sleep(every_s)
    return found
