"""Runs of connectors, from outside: started by an event or an RPC, read, listed, waited for."""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from services.chassis import envelope, pages
from services.chassis.database import Bound, Database, Transaction
from services.chassis.envelope import Place
from services.chassis.errors import FailedPrecondition, NotFound, invalid
from services.chassis.expressions import Json
from services.chassis.ids import uuid7
from services.executor import lanes
from services.executor.lanes import Claimed, WorkItem
from services.executor.registry import LeasedKey, Resolved
from services.executor.store import executions as store
from services.executor.store import projected
from services.executor.store.executions import Execution
from services.executor.store.projected import ProjectedObject

KIND: Final = "execution"
CONNECTOR: Final = "Connector"
TABLE: Final = "executor.executions"

LARGEST_INPUT: Final = 64 * 1024
"""Bytes of an RPC's input as JSON."""
LONGEST_WAIT_S: Final = 60.0
POLL_S: Final = 2.0
"""How often a waiter looks by itself; notices make it look sooner."""


class Secrets(Protocol):
    """Where credentials and the tenant's key come from: the registry."""

    async def lease_key(self, tenant_id: UUID) -> LeasedKey:
        """The tenant's key for sealing what stays here."""
        ...

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The values of a credential."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A run to start; `input` is {"event": …, "input": …} as its templates see it."""

    tenant_id: UUID
    connector: ProjectedObject
    trigger_kind: Literal["event", "rpc"]
    trigger_id: UUID
    event_type: str
    subscription: str
    input: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A caller's wish to run a connector."""

    tenant_id: UUID
    principal_id: UUID
    connector: str
    input: Mapping[str, Json] = field(repr=False)
    request_id: UUID | None = None
    wait_s: float = 0


@dataclass(frozen=True, slots=True)
class Query:
    """Which executions to list: of a connector, in a state; empty does not filter."""

    tenant_id: UUID
    connector: str = ""
    state: str = ""
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
    await lanes.enqueue(
        tx, run.tenant_id, [_work(run, execution_id)], [_inserting(run, key, execution_id)]
    )
    return execution_id


async def start_all(tx: Transaction, runs: Sequence[Run], key: LeasedKey) -> None:
    """Insert several executions of one tenant and their work, as `start` does with one."""
    if not runs:
        return
    # One enqueue a transaction: a second would want lanes while holding the tenant lane.
    new = [(run, uuid7()) for run in runs]
    inserts = [_inserting(run, key, execution_id) for run, execution_id in new]
    await lanes.enqueue(tx, runs[0].tenant_id, [_work(*each) for each in new], inserts)


def _work(run: Run, execution_id: UUID) -> WorkItem:
    return WorkItem(KIND, lane_id=run.connector.object_id, target_id=execution_id)


def _inserting(run: Run, key: LeasedKey, execution_id: UUID) -> Bound:
    state = {**run.input, "steps": run.connector.spec["steps"]}
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
    )
    return store.inserting(new)


def sealed(
    key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str, value: Mapping[str, Any]
) -> bytes:
    """State of an execution, sealed for its place."""
    plaintext = json.dumps(value, separators=(",", ":")).encode()
    return envelope.seal(key.key, _place(key, tenant_id, execution_id, column), plaintext)


def opened(
    key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str, value: bytes
) -> dict[str, Any]:
    """What `sealed` was given. Raises Unsealable."""
    place = _place(key, tenant_id, execution_id, column)
    state: dict[str, Any] = json.loads(envelope.open_sealed(key.key, place, value).reveal())
    return state


def _place(key: LeasedKey, tenant_id: UUID, execution_id: UUID, column: str) -> Place:
    return Place(tenant_id, TABLE, execution_id, column, execution_id, key.data_key_id)


class Endings:
    """Tells waiters of this process that an execution has ended, wherever it ran."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def follow(self) -> None:
        """Listen to the other processes; never returns."""
        async with aclosing(self._database.listen(store.ENDED_CHANNEL)) as notices:
            async for ended in notices:
                self._tell(list(self._waiting) if ended is None else [ended])

    def tell(self, execution_id: UUID) -> None:
        """An execution has ended in this process."""
        self._tell([str(execution_id)])

    @asynccontextmanager
    async def watching(self, execution_id: UUID) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the execution may have ended."""
        event, name = asyncio.Event(), str(execution_id)
        self._waiting[name].add(event)
        try:
            yield event
        finally:
            self._waiting[name].discard(event)
            if not self._waiting[name]:
                del self._waiting[name]

    def _tell(self, ended: list[str]) -> None:
        for name in ended:
            for event in self._waiting.get(name, ()):
                event.set()


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

    async def start(self, claimed: Claimed) -> None:
        """Run what is claimed for it."""
        ...


class Executions:
    """What callers do with executions."""

    def __init__(
        self, database: Database, secrets: Secrets, endings: Endings, taker: Taker
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._endings = endings
        self._taker = taker

    async def run(self, request: RunRequest) -> Execution:
        """Start a connector, once a request id; wait for the end as long as asked."""
        if not 0 <= request.wait_s <= LONGEST_WAIT_S:
            raise invalid("wait", f"must be from 0s to {LONGEST_WAIT_S:.0f}s")
        if len(_canonical(request.input)) > LARGEST_INPUT:
            raise invalid("input", f"must have at most {LARGEST_INPUT} bytes as JSON")
        key, execution_id = await self._secrets.lease_key(request.tenant_id), uuid7()
        # Watched from before its work can be claimed, so that its end is not missed.
        async with self._endings.watching(execution_id) as ended:
            started = await self._begin(request, key, execution_id)
            if started == execution_id:
                return await self._end(request.tenant_id, started, request.wait_s, ended)
        return await self.wait(request.tenant_id, started, request.wait_s)

    async def _begin(self, request: RunRequest, key: LeasedKey, execution_id: UUID) -> UUID:
        """Start the run, or find the one its request id started; answers with its id."""
        claimed = None
        try:
            async with self._database.tenant(request.tenant_id) as tx:
                started, claimed = await self._started(tx, request, key, execution_id)
        finally:
            # Also where the caller has gone meanwhile: what was taken is ours to run.
            if claimed is not None:
                await self._taker.start(claimed)
        return started

    async def _started(
        self, tx: Transaction, request: RunRequest, key: LeasedKey, execution_id: UUID
    ) -> tuple[UUID, Claimed | None]:
        """The execution's id, and its work where this process is to run it at once."""
        first = await _repeated(tx, request, execution_id)
        if first is not None:
            return first, None
        run = Run(
            tenant_id=request.tenant_id,
            connector=await _runnable(tx, request.tenant_id, request.connector),
            trigger_kind="rpc",
            trigger_id=request.principal_id,
            event_type="",
            subscription="",
            input={"event": None, "input": dict(request.input)},
        )
        if not (request.wait_s and self._taker.has_room):
            return await start(tx, run, key, execution_id), None
        work, new = _work(run, execution_id), _inserting(run, key, execution_id)
        return execution_id, await lanes.take(
            tx, request.tenant_id, work, self._taker.lease_s, [new]
        )

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
        marks = (str(query.tenant_id), query.connector, query.state)
        after = pages.after_of(query.page_token, *marks)
        before = UUID(after) if after else store.NEWEST
        found = await store.page(self._database, query.tenant_id, filters, before, size + 1)
        token = pages.next_token(str(found[size - 1].id), *marks) if len(found) > size else ""
        return Page(tuple(found[:size]), token)

    async def wait(self, tenant_id: UUID, execution_id: UUID, wait_s: float) -> Execution:
        """An execution once it has ended, or as it is after `wait_s` seconds."""
        async with self._endings.watching(execution_id) as ended:
            # It may have ended already.
            ended.set()
            return await self._end(tenant_id, execution_id, wait_s, ended)

    async def _end(
        self, tenant_id: UUID, execution_id: UUID, wait_s: float, ended: asyncio.Event
    ) -> Execution:
        """What `wait` answers; looks first when `ended` is set."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            left = deadline - asyncio.get_running_loop().time()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(left, POLL_S))):
                    await ended.wait()
            found = await self.get(tenant_id, execution_id)
            if found.ended or left <= 0:
                return found
            ended.clear()


async def _repeated(tx: Transaction, request: RunRequest, execution_id: UUID) -> UUID | None:
    """The execution of an earlier request of the same id; None where this is the first."""
    if request.request_id is None:
        return None
    asked = hashlib.sha256(_canonical([request.connector, request.input])).digest()
    first_hash, first = await store.take_request(
        tx,
        tenant_id=request.tenant_id,
        principal_id=request.principal_id,
        request_id=request.request_id,
        request_hash=asked,
        execution_id=execution_id,
    )
    if first_hash != asked:
        raise FailedPrecondition(
            "this request_id was used for another run", reason="REQUEST_ID_REUSED"
        )
    return None if first == execution_id else first


async def _runnable(tx: Transaction, tenant_id: UUID, name: str) -> ProjectedObject:
    """The connector of that name; raises NotFound, or FailedPrecondition where nothing may run."""
    enabled, connector = await projected.runnable(tx, tenant_id, name)
    if enabled is None or connector is None:
        raise NotFound(f"connectors/{name} does not exist")
    if not enabled:
        raise FailedPrecondition("the tenant is disabled", reason="TENANT_DISABLED")
    if not connector.spec["is_active"]:
        raise FailedPrecondition(f"connectors/{name} is inactive", reason="CONNECTOR_INACTIVE")
    return connector


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
