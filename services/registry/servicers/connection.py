"""ConnectionService."""

from uuid import UUID

from tenon.registry.v1 import connection_service_pb2 as pb2

from services.chassis.ids import parse_name
from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.connections import Connections, Filters
from services.registry.credentials.changing import Named
from services.registry.messages import credentials as messages
from services.registry.messages.access import by
from services.registry.messages.config import caller_of
from services.registry.oauth.flows import Flows
from services.registry.oauth.links import Links
from services.registry.oauth.relaying import Relaying
from services.registry.oauth.revoking import Revoking


class ConnectionServicer:
    """Shows connected accounts, and connects and disconnects them."""

    def __init__(
        self,
        connections: Connections,
        flows: Flows,
        links: Links,
        relaying: Relaying,
        revoking: Revoking,
    ) -> None:
        self._connections = connections
        self._flows = flows
        self._links = links
        self._relaying = relaying
        self._revoking = revoking

    async def ListConnections(
        self, request: pb2.ListConnectionsRequest, call: Call
    ) -> pb2.ListConnectionsResponse:
        """A page of them, by name."""
        filters = Filters(request.integration, request.venue, request.user)
        query = (call.tenant, filters.integration, filters.venue, filters.user)
        size, after = page_size(request.page_size), after_of(request.page_token, *query)
        rows = await self._connections.page(call.inside(), after, size + 1, filters)
        more = next_token(rows[size - 1].name, *query) if len(rows) > size else ""
        found = [messages.connection_message(call.tenant, row) for row in rows[:size]]
        return pb2.ListConnectionsResponse(connections=found, next_page_token=more)

    async def GetConnection(self, request: pb2.GetConnectionRequest, call: Call) -> pb2.Connection:
        """One of them."""
        _, name = parse_name(request.name, messages.CONNECTIONS)
        row = await self._connections.get(call.inside(), name)
        return messages.connection_message(call.tenant, row)

    async def Disconnect(self, request: pb2.DisconnectRequest, call: Call) -> pb2.Connection:
        """Take its credential back."""
        _, name = parse_name(request.name, messages.CONNECTIONS)
        row = await self._connections.get(call.inside(), name)
        credential = Named(call.inside(), call.tenant, row.ref_credential)
        await self._revoking.revoke(by(request, call), credential, request.reason, lambda _: b"")
        row = await self._connections.get(call.inside(), name)
        return messages.connection_message(call.tenant, row)

    async def BeginOAuth(
        self, request: pb2.BeginOAuthRequest, call: Call
    ) -> pb2.BeginOAuthResponse:
        """Where the account's owner goes."""
        begun = await self._flows.begin(
            messages.starter(call), messages.wishes(request), request.login_hint
        )
        return messages.begun_message(begun)

    async def CompleteOAuth(
        self, request: pb2.CompleteOAuthRequest, call: Call
    ) -> pb2.CompleteOAuthResponse:
        """What came back becomes a connection."""
        completed = await self._flows.complete(messages.returned(request), messages.starter(call))
        return messages.completed_message(completed)

    async def CreateConnectLink(
        self, request: pb2.CreateConnectLinkRequest, call: Call
    ) -> pb2.ConnectLink:
        """A link for an end user."""
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else None
        made = await self._links.create(messages.starter(call), messages.wishes(request), ttl)
        return messages.link_message(call.tenant, made.row, made.url)

    async def ListConnectLinks(
        self, request: pb2.ListConnectLinksRequest, call: Call
    ) -> pb2.ListConnectLinksResponse:
        """A page of links that may still be used."""
        size, after = page_size(request.page_size), after_of(request.page_token, call.tenant)
        begin = UUID(after) if after else UUID(int=0)
        rows = await self._links.page(call.inside(), begin, size + 1)
        more = next_token(str(rows[size - 1].link_id), call.tenant) if len(rows) > size else ""
        found = [messages.link_message(call.tenant, row) for row in rows[:size]]
        return pb2.ListConnectLinksResponse(connect_links=found, next_page_token=more)

    async def RevokeConnectLink(
        self, request: pb2.RevokeConnectLinkRequest, call: Call
    ) -> pb2.ConnectLink:
        """Take a link back."""
        link_id = messages.link_named(request.name)
        row = await self._links.revoke(call.inside(), link_id, caller_of(call).actor)
        return messages.link_message(call.tenant, row)

    async def OpenConnectLink(
        self, request: pb2.OpenConnectLinkRequest, call: Call
    ) -> pb2.BeginOAuthResponse:
        """A link was opened."""
        return messages.begun_message(await self._links.open(request.token))

    async def RelayOAuth(
        self, request: pb2.RelayOAuthRequest, call: Call
    ) -> pb2.RelayOAuthResponse:
        """A browser brought something back."""
        return messages.relayed_message(await self._relaying.take(messages.returned(request)))
