"""What operators do with lanes: see why one does not move, pause it, switch a provider off."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database
from services.chassis.errors import NotFound, invalid
from services.executor.audit.outbox import Deed, Doer, telling
from services.executor.engine import steering
from services.executor.engine.standstill import LaneState, Reason, why
from services.executor.store import lane_states as store
from services.executor.store.lane_states import ProviderState, ProviderSwitch
from services.providers.catalog import Catalog

log = logging.getLogger(__name__)

LONGEST_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class Lane:
    """How a lane stands, and why it does not move, if it does not."""

    state: LaneState
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class LaneQuery:
    """Which lanes to list: of a kind, only those that do not move; empty does not filter."""

    tenant_id: UUID
    kind: str = ""
    not_moving: bool = False
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class LanePage:
    """Lanes in the order of their ids, and the token of the next page."""

    lanes: tuple[Lane, ...]
    next_page_token: str


class Switchboard:
    """The use cases; `kinds` are those that the deployment's workers work on."""

    def __init__(self, database: Database, catalog: Catalog, kinds: Iterable[str]) -> None:
        self._database = database
        self._catalog = catalog
        self._kinds = frozenset(kinds)

    async def page(self, query: LaneQuery) -> LanePage:
        """A page of a tenant's lanes."""
        size = pages.page_size(query.page_size)
        marks = (str(query.tenant_id), query.kind, query.not_moving)
        token = pages.after_of(query.page_token, *marks)
        found = await self._found(query, UUID(token) if token else store.FIRST, size + 1)
        last = found[size - 1].state.lane_id if len(found) > size else None
        next_token = pages.next_token(str(last), *marks) if last else ""
        return LanePage(tuple(found[:size]), next_token)

    async def pause(self, tenant_id: UUID, lane_id: UUID, reason: str, doer: Doer) -> Lane:
        """Begin nothing of a lane until it is resumed. Raises NotFound."""
        _check_reason(reason)
        async with self._database.tenant(tenant_id) as tx:
            await steering.pause(tx, tenant_id, lane_id, reason)
            paused = self._lane(await store.one(tx, tenant_id, lane_id), lane_id)
            deed = Deed("Lane", "pause", _name(paused), lane_id, {"pause_reason": reason})
            await tx.pipeline([telling(tenant_id, doer, deed)])
        log.warning("lane %s of tenant %s is paused: %s", lane_id, tenant_id, reason)
        return paused

    async def resume(self, tenant_id: UUID, lane_id: UUID, doer: Doer) -> Lane:
        """Let a lane go on, its breaker closed. Raises NotFound."""
        async with self._database.tenant(tenant_id) as tx:
            await steering.resume(tx, tenant_id, lane_id)
            resumed = self._lane(await store.one(tx, tenant_id, lane_id), lane_id)
            deed = Deed("Lane", "resume", _name(resumed), lane_id)
            await tx.pipeline([telling(tenant_id, doer, deed)])
        log.warning("lane %s of tenant %s goes on", lane_id, tenant_id)
        return resumed

    async def reset(self, tenant_id: UUID, lane_id: UUID, doer: Doer) -> Lane:
        """Close a lane's breaker; what paused it stays. Raises NotFound."""
        async with self._database.tenant(tenant_id) as tx:
            await steering.reset(tx, tenant_id, lane_id)
            closed = self._lane(await store.one(tx, tenant_id, lane_id), lane_id)
            deed = Deed("Lane", "reset", _name(closed), lane_id)
            await tx.pipeline([telling(tenant_id, doer, deed)])
        log.warning("the breaker of lane %s of tenant %s is closed", lane_id, tenant_id)
        return closed

    async def providers(self, tenant_id: UUID) -> tuple[ProviderState, ...]:
        """How a tenant's lanes stand, by provider."""
        return tuple(await store.providers(self._database, tenant_id))

    async def switch_off(self, provider: str, reason: str, doer: Doer) -> ProviderSwitch:
        """Begin no work of any tenant with a provider. Raises UnknownProvider."""
        _check_reason(reason)
        self._catalog.get(provider)
        deed = Deed("ProviderSwitch", "switch_off", provider, said={"reason": reason})
        told = telling(None, doer, deed)
        switched = await store.switch_off(self._database, provider, reason, told)
        log.warning("provider %s is switched off: %s", provider, switched.reason)
        return switched

    async def switch_on(self, provider: str, doer: Doer) -> None:
        """Let the work with a provider go on, also one that the catalog has no more."""
        told = telling(None, doer, Deed("ProviderSwitch", "switch_on", provider))
        await store.switch_on(self._database, provider, told)
        log.warning("provider %s is switched on", provider)

    async def switches(self) -> tuple[ProviderSwitch, ...]:
        """The providers that are off, by name."""
        return tuple(await store.switches(self._database))

    async def _found(self, query: LaneQuery, after: UUID, most: int) -> list[Lane]:
        """At most so many lanes that the query asks for."""
        found: list[Lane] = []
        while len(found) < most:
            states = await store.page(self._database, query.tenant_id, query.kind, after, most)
            shown = (Lane(state, why(state, self._kinds)) for state in states)
            found += [lane for lane in shown if lane.reasons or not query.not_moving]
            if len(states) < most:
                break
            after = states[-1].lane_id
        return found[:most]

    def _lane(self, state: LaneState | None, lane_id: UUID) -> Lane:
        if state is None:
            raise NotFound(f"lanes/{lane_id} does not exist")
        return Lane(state, why(state, self._kinds))


def _name(lane: Lane) -> str:
    """What people call a lane: the connector it belongs to, while that is there."""
    return lane.state.owner or str(lane.state.lane_id)


def _check_reason(reason: str) -> None:
    if not 0 < len(reason.strip()) <= LONGEST_REASON or "\0" in reason:
        raise invalid("reason", f"must say why, in 1 to {LONGEST_REASON} characters")
