"""What browsers bring to the ingress, told to the registry, which alone knows what it means."""

from dataclasses import dataclass, field
from typing import Final

import grpc
from tenon.registry.v1 import connection_service_pb2 as pb2
from tenon.registry.v1 import connection_service_pb2_grpc as pb2_grpc

from services.executor.registry.calls import CALL_S, asked

EXCHANGE_S: Final = 60.0
"""The registry asks the provider's token endpoint meanwhile."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A link that was opened: where its visitor goes, and what the browser must show again."""

    url: str = field(repr=False)
    state: str = field(repr=False)
    browser: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Returning:
    """A browser that a provider sent back, with all it brought."""

    state: str = field(repr=False)
    code: str = field(repr=False)
    error: str
    issuer: str
    browser: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Relayed:
    """What an authorisation came to, and where the browser goes; empty: nowhere."""

    status: str
    return_url: str


class RegistryConnecting:
    """Asks over the channel; nothing is remembered, for each of these holds once."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._connections: pb2_grpc.ConnectionServiceAsyncStub = pb2_grpc.ConnectionServiceStub(
            channel
        )

    async def open_link(self, token: str) -> Opened:
        """Begin what a link is for. Raises NotFound for one that does not hold."""
        request = pb2.OpenConnectLinkRequest(token=token)
        begun = await asked(self._connections.OpenConnectLink(request, timeout=CALL_S))
        return Opened(begun.authorization_url, begun.state, begun.browser)

    async def relay(self, returning: Returning) -> Relayed:
        """End an authorisation. Raises NotFound where none is under way in this browser."""
        request = pb2.RelayOAuthRequest(
            state=returning.state,
            code=returning.code,
            error=returning.error,
            issuer=returning.issuer,
            browser=returning.browser,
        )
        ended = await asked(self._connections.RelayOAuth(request, timeout=EXCHANGE_S))
        return Relayed(ended.status, ended.return_url)
