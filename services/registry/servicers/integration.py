"""IntegrationService."""

from tenon.registry.v1 import integration_service_pb2 as pb2

from services.chassis.ids import parse_name
from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.integrations import Filters, Integrations
from services.registry.messages import config as messages


class IntegrationServicer:
    """Reads integrations."""

    def __init__(self, integrations: Integrations) -> None:
        self._integrations = integrations

    async def GetIntegration(
        self, request: pb2.GetIntegrationRequest, call: Call
    ) -> pb2.Integration:
        """One integration."""
        _, name = parse_name(request.name, "integrations")
        return messages.integration_message(
            call.tenant, await self._integrations.get(call.inside(), name)
        )

    async def ListIntegrations(
        self, request: pb2.ListIntegrationsRequest, call: Call
    ) -> pb2.ListIntegrationsResponse:
        """A page of them, by name."""
        filters = _filters(request)
        size, after = (
            page_size(request.page_size),
            after_of(request.page_token, call.tenant, filters),
        )
        rows = await self._integrations.page(call.inside(), after, size + 1, filters)
        more = next_token(rows[size - 1].name, call.tenant, filters) if len(rows) > size else ""
        found = [messages.integration_message(call.tenant, row) for row in rows[:size]]
        return pb2.ListIntegrationsResponse(integrations=found, next_page_token=more)


def _filters(request: pb2.ListIntegrationsRequest) -> Filters:
    return Filters(
        provider=request.provider or None,
        environment=request.environment or None,
        is_primary=request.primary if request.HasField("primary") else None,
        is_active=request.active if request.HasField("active") else None,
    )
