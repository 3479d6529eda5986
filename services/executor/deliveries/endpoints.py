"""Outbound endpoints as operators look at them: how each lane stands, and how the last day went."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.ids import uuid7_floor
from services.executor.audit.outbox import Doer
from services.executor.deliveries.outgoing import endpoint_of
from services.executor.deliveries.policies import KIND
from services.executor.engine.switchboard import Lane, LaneQuery, Switchboard
from services.executor.store import delivery_counts as store
from services.executor.store.delivery_counts import Counts

LATELY: Final = timedelta(hours=24)
MOST_SHOWN: Final = 100
"""In a page; each costs up to ten milliseconds."""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint's lane, and what was made for it lately."""

    lane: Lane
    counts: Counts

    @property
    def success_rate(self) -> float | None:
        """Of what has ended, the part that was taken; None where nothing has."""
        ended = self.counts.success + self.counts.failed + self.counts.dead
        return self.counts.success / ended if ended else None


@dataclass(frozen=True, slots=True)
class EndpointPage:
    """Endpoints in the order of their ids, and the token of the next page."""

    states: tuple[EndpointState, ...]
    next_page_token: str


class Endpoints:
    """The use cases."""

    def __init__(
        self,
        database: Database,
        switchboard: Switchboard,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._switchboard = switchboard
        self._now = now

    async def page(self, tenant_id: UUID, page_size: int, page_token: str) -> EndpointPage:
        """A page of a tenant's outbound endpoints; those that have gone are passed over."""
        size = min(page_size, MOST_SHOWN)
        query = LaneQuery(tenant_id, KIND, page_size=size, page_token=page_token)
        found = await self._switchboard.page(query)
        there = [each for each in found.lanes if each.state.owner]
        # An endpoint's lane has its id.
        places = [(each.state.lane_id, each.state.owner) for each in there]
        since = uuid7_floor(self._now() - LATELY)
        counts = await store.counts(self._database, tenant_id, places, since)
        states = map(EndpointState, there, counts)
        return EndpointPage(tuple(states), found.next_page_token)

    async def reset(self, tenant_id: UUID, name: str, doer: Doer) -> Lane:
        """Close an endpoint's breaker. Raises NotFound, FailedPrecondition for an inbound one."""
        endpoint = await endpoint_of(self._database, tenant_id, name)
        return await self._switchboard.reset(tenant_id, endpoint.object_id, doer)
