"""How a delivery is sent, by the scheme of its endpoint's url."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias
from uuid import UUID

from services.chassis.secret import Secret
from services.executor.deliveries.verdicts import Verdict
from services.executor.registry.credentials import Resolved
from services.executor.store.deliveries import Taken
from services.executor.store.projected import ProjectedObject


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One try of a delivery: what goes out, where to, and what it is signed and shown with."""

    tenant_id: UUID
    delivery: Taken
    endpoint: ProjectedObject
    body: bytes = field(repr=False)
    secrets: tuple[Secret, ...] = field(repr=False)
    credential: Resolved | None = field(repr=False)

    @property
    def message_id(self) -> UUID:
        """By which its receiver knows it again."""
        return self.delivery.message_id or self.delivery.id


class Transport(Protocol):
    """A way out."""

    async def send(self, outgoing: Outgoing) -> Verdict:
        """Send it once.

        Raises EgressError and NotTaken for what was not taken, InvalidArgument and
        FailedPrecondition for what cannot be sent as the endpoint is now.
        """
        ...


Transports: TypeAlias = Mapping[str, Transport]
"""By scheme."""
