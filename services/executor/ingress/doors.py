"""The endpoints by which webhooks come in, as their tenant wants them now.

What a tenant wants changes with its projection alone, which says when it was made. That is asked
for each delivery, of all tenants at once; all else is read again only where it is another one.
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
MOST: Final = 20_000
"""So many endpoints that are there are remembered, and as many that are not."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a tenant wants of one endpoint: its parts by kind, and the subscriptions to it."""

    tenant_id: UUID
    projected_at: datetime
    parts: Mapping[str, ProjectedObject] = field(repr=False)
    subscribed: Subscribed = field(repr=False)


class Doors:
    """Finds them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tenants: Grouped[str, Standing] = Grouped(self._stand)
        self._there: OrderedDict[tuple[UUID, str], Place] = OrderedDict()
        # Apart, so that strangers with made-up names drive nobody out.
        self._absent: OrderedDict[tuple[UUID, str], Place] = OrderedDict()

    async def find(self, tenant: str, endpoint: str) -> Place:
        """What is wanted of an endpoint; without parts where there is none, or nothing is enabled.

        A tenant that is unknown or disabled costs the same look, inside no tenant.
        """
        found = await self._tenants.get(tenant)
        standing = found if found is not None and found.enabled else NOWHERE
        key = (standing.tenant_id, endpoint)
        known = self._there.get(key) or self._absent.get(key)
        if known is not None and known.projected_at == standing.projected_at:
            return known
        return self._keep(key, await self._look(standing, endpoint))

    async def _stand(self, slugs: Sequence[str]) -> Mapping[str, Standing]:
        return await tenants.standing(self._database, slugs)

    async def _look(self, standing: Standing, endpoint: str) -> Place:
        tenant_id = standing.tenant_id
        parts, subscriptions, seen = await projected.way_in(self._database, tenant_id, endpoint)
        # Read after the time of projection was: what changed in between is read again.
        to = await subscribed(self._database, tenant_id, subscriptions)
        return Place(tenant_id, seen or NOWHERE.projected_at, parts, to)

    def _keep(self, key: tuple[UUID, str], place: Place) -> Place:
        for kept in (self._there, self._absent):
            kept.pop(key, None)
        kept = self._there if place.parts else self._absent
        kept[key] = place
        if len(kept) > MOST:
            kept.popitem(last=False)
        return place
