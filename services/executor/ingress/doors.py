"""The endpoints by which webhooks come in, as their tenant wants them now.

What a tenant wants changes with its projection alone, which says when it was made: what is
remembered of it counts as long as that is the same. Whoever keeps an event has that looked at as it
is kept (`remembered`); for whoever decides before, it is asked, of all tenants at once (`find`).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.executor.events.routing import Subscribed, subscribed
from services.executor.ingress.grouped import Grouped
from services.executor.store import projected, tenants
from services.executor.store.projected import ProjectedObject
from services.executor.store.tenants import Standing

NOWHERE: Final = Standing(UUID(int=0), enabled=False, projected_at=datetime.min.replace(tzinfo=UTC))
Address = tuple[str, str]
"""The slug of a tenant, empty for what is unknown or disabled, and the name of an endpoint."""
MOST: Final = 20_000
"""So many endpoints that are there are remembered, and as many that are not."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a tenant wants of one endpoint: its parts by kind, and the subscriptions to it."""

    tenant_id: UUID
    projected_at: datetime
    parts: Mapping[str, ProjectedObject] = field(repr=False)
    subscribed: Subscribed = field(repr=False)

    def is_of(self, standing: Standing) -> bool:
        """Whether nothing of it has changed since."""
        return (self.tenant_id, self.projected_at) == (standing.tenant_id, standing.projected_at)


UNKNOWN: Final = Place(NOWHERE.tenant_id, NOWHERE.projected_at, {}, Subscribed((), {}))


class Doors:
    """Finds them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tenants: Grouped[str, Standing] = Grouped(self._stand)
        self._there: OrderedDict[Address, Place] = OrderedDict()
        # Apart, so that strangers with made-up names drive nobody out.
        self._absent: OrderedDict[Address, Place] = OrderedDict()

    def remembered(self, tenant: str, endpoint: str) -> Place:
        """What was wanted of an endpoint when it was last found; without parts if it never was."""
        return self._there.get((tenant, endpoint), UNKNOWN)

    async def find(self, tenant: str, endpoint: str) -> Place:
        """What is wanted of an endpoint; without parts where there is none, or nothing is enabled.

        A tenant that is unknown or disabled costs the same look, inside no tenant.
        """
        standing = await self._tenants.get(tenant)
        if standing is None or not standing.enabled:
            self._there.pop((tenant, endpoint), None)
            standing, tenant = NOWHERE, ""
        address = (tenant, endpoint)
        known = self._there.get(address) or self._absent.get(address)
        if known is not None and known.is_of(standing):
            return known
        return self._keep(address, await self._look(standing, endpoint))

    async def _stand(self, slugs: Sequence[str]) -> Mapping[str, Standing]:
        return await tenants.standing(self._database, slugs)

    async def _look(self, standing: Standing, endpoint: str) -> Place:
        tenant_id = standing.tenant_id
        parts, subscriptions, seen = await projected.way_in(self._database, tenant_id, endpoint)
        # Read after the time of projection was: what changed in between is read again.
        to = await subscribed(self._database, tenant_id, subscriptions)
        return Place(tenant_id, seen or NOWHERE.projected_at, parts, to)

    def _keep(self, address: Address, place: Place) -> Place:
        for kept in (self._there, self._absent):
            kept.pop(address, None)
        kept = self._there if place.parts else self._absent
        kept[address] = place
        if len(kept) > MOST:
            kept.popitem(last=False)
        return place
