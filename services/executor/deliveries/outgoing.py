"""The outbound endpoint that somebody names."""

from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import FailedPrecondition, NotFound
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject


async def endpoint_of(
    source: Transaction | Database, tenant_id: UUID, name: str
) -> ProjectedObject:
    """The endpoint of that name. Raises NotFound, or FailedPrecondition for an inbound one."""
    found = await projected.one(source, tenant_id, "WebhookEndpoint", name)
    if found is None:
        raise NotFound(f"webhookEndpoints/{name} does not exist")
    if found.spec["direction"] != "OUTBOUND":
        raise FailedPrecondition(
            f"webhookEndpoints/{name} is inbound: nothing is delivered to it",
            reason="ENDPOINT_INBOUND",
        )
    return found
