"""Runs of connectors, from outside: started, read, listed, waited for, cancelled."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Bound, Database, Transaction
from services.chassis.envelope import Unsealable
from services.chassis.errors import FailedPrecondition, NotFound, invalid
from services.chassis.expressions import Json
from services.chassis.ids import uuid7
from services.executor.audit.outbox import Deed, Doer, telling
from services.executor.engine import lanes
from services.executor.engine.cancelling import cancelled
from services.executor.engine.work import Claimed, Started, WorkItem
from services.executor.executions import links, progress
from services.executor.executions.progress import Progress
from services.executor.executions.recipe import PARTS, Recipe
from services.executor.executions.steps import seconds
from services.executor.executions.watching import POLL_S, Changes, Waiter
from services.executor.registry.credentials import LeasedKey, Secrets
from services.executor.repeating import Request, canonical, first_of
from services.executor.sealing import opened, sealed
from services.executor.store import execution_ends as ends
from services.executor.store import execution_pages, projected
from services.executor.store import executions as store
from services.executor.store.execution_ends import Ending
from services.executor.store.executions import Execution
from services.executor.store.projected import ProjectedObject, Wanted

KIND: Final = "execution"
CONNECTOR: Final = "Connector"

LARGEST_INPUT: Final = 64 * 1024
"""Bytes of an RPC's input as JSON."""
LONGEST_WAIT_S: Final = 60.0
CANCEL_S: Final = 2.0
"""How long one who cancels a run that is under way waits for its end."""

CANCELLED: Final = Ending("cancelled", "CANCELLED", "it was cancelled")


@dataclass(frozen=True, slots=True)
class Run:
    """A run to start; `input` is {"event": …, "input": …} as its templates see it."""

    tenant_id: UUID
    connector: ProjectedObject
    trigger_kind: Literal["event", "rpc", "schedule"]
    trigger_id: UUID
    event_type: str
    subscription: str
    input: dict[str, Any] = field(repr=False)
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A caller's wish to run a connector; `links` say what the run belongs to on their side."""

    tenant_id: UUID
    principal_id: UUID
    connector: str
    input: Mapping[str, Json] = field(repr=False)
    request_id: UUID | None = None
    wait_s: float = 0
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Query:
    """Which executions to list: of a connector, in a state, with a link; empty does not filter."""

    tenant_id: UUID
    connector: str = ""
    state: str = ""
    link: tuple[str, str] | None = None
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Executions, the newest first, and the token of the next page."""

    executions: tuple[Execution, ...]
    next_page_token: str


async def start(
    tx: Transaction, run: Run, key: LeasedKey, execution_id: UUID | None = None
) -> UUID:
    """Insert an execution and its work in the caller's transaction; answers with its id.

    The connector's steps are sealed with the input: a change of the connector changes no run that
    has begun.
    """
    execution_id = execution_id or uuid7()
    await lanes.begin(tx, run.tenant_id, [started(run, key, execution_id)])
    return execution_id


def started(run: Run, key: LeasedKey, execution_id: UUID | None = None) -> Started:
    """An execution and its work, to be begun together with others."""
    execution_id = execution_id or uuid7()
    return Started(_work(run, execution_id), _inserting(run, key, execution_id))


def _work(run: Run, execution_id: UUID) -> WorkItem:
    timeout = run.connector.spec.get("timeout")
    return WorkItem(
        KIND,
        lane_id=run.connector.object_id,
        target_id=execution_id,
        deadline_s=seconds(timeout) if timeout else None,
    )


def _inserting(run: Run, key: LeasedKey, execution_id: UUID) -> list[Bound]:
    state = {**run.input, "recipe": {part: run.connector.spec.get(part) for part in PARTS}}
    new = store.New(
        tenant_id=run.tenant_id,
        id=execution_id,
        connector_id=run.connector.object_id,
        connector=run.connector.name,
        trigger_kind=run.trigger_kind,
        trigger_id=run.trigger_id,
        event_type=run.event_type,
        subscription=run.subscription,
        data_key_id=key.data_key_id,
        sealed_input=sealed(key, run.tenant_id, execution_id, "sealed_input", state),
        links=run.links,
    )
    return store.inserting(new)


class Taker(Protocol):
    """Who runs work at once that somebody waits for: the worker of this process."""

    @property
    def has_room(self) -> bool:
        """Whether it could run one more."""
        ...

    @property
    def lease_s(self) -> float:
        """For how long it claims."""
        ...

    async def start(self, claimed: Claimed, prepared: Progress) -> None:
        """Run what is claimed for it and prepared already."""
        ...


class Executions:
    """What callers do with executions."""

    def __init__(
        self, database: Database, secrets: Secrets, changes: Changes, taker: Taker
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._changes = changes
        self._taker = taker

    async def run(self, request: RunRequest) -> Execution:
        """Start a connector, once a request id; wait for the end as long as asked.

        The caller gets the output in full, and a repeated request gets it again.
        """
        if not 0 <= request.wait_s <= LONGEST_WAIT_S:
            raise invalid("wait", f"must be from 0s to {LONGEST_WAIT_S:.0f}s")
        if len(canonical(request.input)) > LARGEST_INPUT:
            raise invalid("input", f"must have at most {LARGEST_INPUT} bytes as JSON")
        links.check(request.links)
        key, execution_id = await self._secrets.lease_key(request.tenant_id), uuid7()
        # Waited for from before its work can be claimed, so that its end is not missed.
        async with self._changes.waiting(execution_id) as waiter:
            started = await self._begin(request, key, execution_id, waiter)
            if started == execution_id:
                found = await self._end(request.tenant_id, started, request.wait_s, waiter)
            else:
                found = await self.wait(request.tenant_id, started, request.wait_s)
        if request.wait_s and not found.ended:
            await self._database.flush()
        return await self._in_full(request.tenant_id, found)

    async def _begin(
        self, request: RunRequest, key: LeasedKey, execution_id: UUID, waiter: Waiter
    ) -> UUID:
        """Start the run, or find the one its request id started; answers with its id."""
        begun = None
        try:
            # Who waits for the end is answered after a later commit, which takes this one along.
            durable = not request.wait_s
            async with self._database.tenant(request.tenant_id, durable=durable) as tx:
                started, begun = await self._started(tx, request, key, execution_id)
        finally:
            # Also where the caller has gone meanwhile: what was taken is ours to run.
            if begun is not None:
                waiter.runs_here = True
                await self._taker.start(begun.claimed, begun)
        return started

    async def _started(
        self, tx: Transaction, request: RunRequest, key: LeasedKey, execution_id: UUID
    ) -> tuple[UUID, Progress | None]:
        """The execution's id, and the run itself where this process is to run it at once."""
        asked = Request(request.tenant_id, request.principal_id, request.request_id)
        said = [request.connector, request.input, dict(request.links)]
        first = await first_of(tx, asked, said, execution_id)
        if first is not None:
            return first, None
        connector, wanted = await _runnable(tx, request.tenant_id, request.connector)
        run = Run(
            tenant_id=request.tenant_id,
            connector=connector,
            trigger_kind="rpc",
            trigger_id=request.principal_id,
            event_type="",
            subscription="",
            input={"event": None, "input": dict(request.input)},
            links=request.links,
        )
        if not (request.wait_s and self._taker.has_room):
            return await start(tx, run, key, execution_id), None
        work, new = _work(run, execution_id), _inserting(run, key, execution_id)
        claimed = await lanes.take(tx, request.tenant_id, work, self._taker.lease_s, new)
        if claimed is None:
            return execution_id, None
        recipe = Recipe.from_spec(connector.spec)
        return execution_id, progress.begun(claimed, key, recipe, run.input, wanted)

    async def _in_full(self, tenant_id: UUID, found: Execution) -> Execution:
        """An execution with the values of its output, which others see masked."""
        output = await store.output(self._database, tenant_id, found.id) if found.output else None
        if output is None:
            return found
        try:
            key = await self._secrets.lease_key(tenant_id, found.data_key_id)
            return replace(found, output=opened(key, tenant_id, found.id, "sealed_output", output))
        except Unsealable:
            raise FailedPrecondition(
                "it has ended, but its output does not open any more", reason="OUTPUT_UNREADABLE"
            ) from None

    async def get(self, tenant_id: UUID, execution_id: UUID) -> Execution:
        """An execution with its steps. Raises NotFound."""
        found = await store.get(self._database, tenant_id, execution_id)
        if found is None:
            raise NotFound(f"executions/{execution_id} does not exist")
        return found

    async def list(self, query: Query) -> Page:
        """A page of executions without steps, the newest first."""
        filters = {"connector": query.connector, "state": query.state}
        filters = {name: value for name, value in filters.items() if value}
        size = pages.page_size(query.page_size)
        marks = (str(query.tenant_id), query.connector, query.state, query.link)
        after = pages.after_of(query.page_token, *marks)
        before = UUID(after) if after else execution_pages.NEWEST
        found = await execution_pages.page(
            self._database, query.tenant_id, filters, query.link, before, size + 1
        )
        token = pages.next_token(str(found[size - 1].id), *marks) if len(found) > size else ""
        return Page(tuple(found[:size]), token)

    async def wait(self, tenant_id: UUID, execution_id: UUID, wait_s: float) -> Execution:
        """An execution once it has ended, or as it is after `wait_s` seconds."""
        async with self._changes.waiting(execution_id) as waiter:
            # It may have ended already.
            waiter.woken.set()
            return await self._end(tenant_id, execution_id, wait_s, waiter)

    async def _end(
        self, tenant_id: UUID, execution_id: UUID, wait_s: float, waiter: Waiter
    ) -> Execution:
        """What `wait` answers; looks first when the waiter is woken."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            left = deadline - asyncio.get_running_loop().time()
            await waiter.rest(min(left, POLL_S))
            found = waiter.found or await self.get(tenant_id, execution_id)
            if found.ended or left <= 0:
                return found
            waiter.woken.clear()

    async def cancel(self, tenant_id: UUID, execution_id: UUID, doer: Doer) -> Execution:
        """End an execution before its time; answers with it as it then is. Raises NotFound.

        What waits ends at once. What runs is told, and ended as soon as its worker hears of it; one
        that has ended stays as it is.
        """
        found = await self.get(tenant_id, execution_id)
        if found.ended:
            return found
        deed = Deed("Execution", "cancel", found.connector, execution_id)
        ending = ends.giving_up(tenant_id, execution_id, CANCELLED)
        told = telling(tenant_id, doer, deed)
        if await cancelled(self._database, tenant_id, execution_id, ending, told):
            self._changes.tell(execution_id, None)
        return await self.wait(tenant_id, execution_id, CANCEL_S)


async def connector_of(
    tx: Transaction, tenant_id: UUID, name: str
) -> tuple[ProjectedObject, Wanted]:
    """The connector of that name, with what its steps need.

    Raises NotFound, or FailedPrecondition in a disabled tenant.
    """
    wanted = await projected.runnable(tx, tenant_id, name)
    if wanted.enabled is None or wanted.owner is None:
        raise NotFound(f"connectors/{name} does not exist")
    if not wanted.enabled:
        raise FailedPrecondition("the tenant is disabled", reason="TENANT_DISABLED")
    return wanted.owner, wanted


async def _runnable(tx: Transaction, tenant_id: UUID, name: str) -> tuple[ProjectedObject, Wanted]:
    """As `connector_of`; raises also where the connector may not run."""
    connector, wanted = await connector_of(tx, tenant_id, name)
    if not connector.spec["is_active"]:
        raise FailedPrecondition(f"connectors/{name} is inactive", reason="CONNECTOR_INACTIVE")
    return connector, wanted
