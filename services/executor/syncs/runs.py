"""What callers do with streams: have them transferred, end that, have them begin anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database, Transaction
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.ids import uuid7
from services.executor.audit.outbox import Deed, Doer, telling
from services.executor.engine import lanes
from services.executor.engine.cancelling import cancelled
from services.executor.repeating import Request, first_of
from services.executor.store import projected, tenants
from services.executor.store import sync_pages as pages_of
from services.executor.store import sync_runs as store
from services.executor.store.execution_pages import NEWEST
from services.executor.store.projected import ProjectedObject
from services.executor.store.sync_pages import StreamState, SyncRun
from services.executor.store.sync_runs import Place
from services.executor.syncs import starting
from services.executor.syncs.streams import STREAM, stream_name

Named = tuple[str, str]
"""A stream by its integration's name and its own."""


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """A caller's wish to have a stream transferred."""

    tenant_id: UUID
    principal_id: UUID
    stream: Named
    whole: bool = False
    request_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class SyncQuery:
    """Which transfers to list: of a stream, in a state; empty does not filter."""

    tenant_id: UUID
    stream: Named | None = None
    state: str = ""
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class SyncPage:
    """Transfers, the newest first, and the token of the next page."""

    runs: tuple[SyncRun, ...]
    next_page_token: str


class Syncs:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def trigger(self, request: SyncRequest) -> SyncRun:
        """Have a stream transferred, once a request id.

        Raises NotFound, and FailedPrecondition where the tenant or the stream is inactive.
        """
        async with self._database.tenant(request.tenant_id) as tx:
            run_id = await self._begun(tx, request)
            return _found(await pages_of.get(tx, request.tenant_id, run_id), run_id)

    async def get(self, tenant_id: UUID, run_id: UUID) -> SyncRun:
        """A transfer. Raises NotFound."""
        return _found(await pages_of.get(self._database, tenant_id, run_id), run_id)

    async def page(self, query: SyncQuery) -> SyncPage:
        """A page of transfers, the newest first."""
        named = stream_name(*query.stream) if query.stream else ""
        filters = {"stream": named, "state": query.state}
        filters = {name: value for name, value in filters.items() if value}
        size = pages.page_size(query.page_size)
        marks = (str(query.tenant_id), named, query.state)
        after = pages.after_of(query.page_token, *marks)
        before = UUID(after) if after else NEWEST
        found = await pages_of.page(self._database, query.tenant_id, filters, before, size + 1)
        token = pages.next_token(str(found[size - 1].id), *marks) if len(found) > size else ""
        return SyncPage(tuple(found[:size]), token)

    async def streams(self, tenant_id: UUID, integration: str = "") -> Sequence[StreamState]:
        """A tenant's streams and how they stand, or those of one integration."""
        return await pages_of.streams(self._database, tenant_id, integration)

    async def cancel(self, tenant_id: UUID, run_id: UUID, doer: Doer) -> SyncRun:
        """End a transfer before its time; what is here stays. Raises NotFound.

        What waits ends at once; what runs is told, and is answered as it stands.
        """
        found = await self.get(tenant_id, run_id)
        if found.ended:
            return found
        told = telling(tenant_id, doer, Deed("SyncRun", "cancel", found.stream, run_id))
        ending = store.cancelling(Place(tenant_id, run_id, found.stream_id))
        await cancelled(self._database, tenant_id, run_id, [ending], told)
        return await self.get(tenant_id, run_id)

    async def reset(self, tenant_id: UUID, named: Named, doer: Doer) -> StreamState:
        """Forget how far a stream has come: its next transfer brings all. Raises NotFound."""
        async with self._database.tenant(tenant_id) as tx:
            stream = await stream_of(tx, tenant_id, named)
            deed = Deed("Stream", "reset", stream.name, stream.object_id)
            place = Place(tenant_id, NEWEST, stream.object_id)
            await tx.pipeline([store.resetting(place), telling(tenant_id, doer, deed)])
        found = {each.name: each for each in await self.streams(tenant_id, named[0])}
        if stream.name not in found:
            raise _unknown(named)
        return found[stream.name]

    async def _begun(self, tx: Transaction, request: SyncRequest) -> UUID:
        """The transfer that a request begins, or has begun."""
        run_id = uuid7()
        asked = Request(request.tenant_id, request.principal_id, request.request_id)
        first = await first_of(tx, asked, ["sync", *request.stream, request.whole], run_id)
        if first is not None:
            return first
        stream = await stream_of(tx, request.tenant_id, request.stream)
        await _check_active(tx, request.tenant_id, stream)
        begun = starting.started(
            *(request.tenant_id, stream, ("rpc", request.principal_id)),
            whole=request.whole,
            run_id=run_id,
        )
        await lanes.begin(tx, request.tenant_id, [begun])
        return run_id


async def stream_of(
    source: Transaction | Database, tenant_id: UUID, named: Named
) -> ProjectedObject:
    """The stream of that name. Raises NotFound."""
    found = await projected.one(source, tenant_id, STREAM, stream_name(*named))
    if found is None:
        raise _unknown(named)
    return found


def _unknown(named: Named) -> NotFound:
    return NotFound(f"integrations/{named[0]}/streams/{named[1]} does not exist")


def _found(run: SyncRun | None, run_id: UUID) -> SyncRun:
    if run is None:
        raise NotFound(f"syncRuns/{run_id} does not exist")
    return run


async def _check_active(tx: Transaction, tenant_id: UUID, stream: ProjectedObject) -> None:
    tenant = await tenants.get(tx, tenant_id)
    if tenant is None or not tenant.enabled:
        raise FailedPrecondition("the tenant is disabled", reason="TENANT_DISABLED")
    if not stream.spec["is_active"]:
        raise FailedPrecondition(f"stream {stream.name} is inactive", reason="STREAM_INACTIVE")
