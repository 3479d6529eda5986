"""Executions with their steps, and the requests that started them."""

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Integer,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from services.chassis.database import Bound, Database, Statement, Transaction
from services.executor.lanes import Claimed
from services.executor.tables import EXECUTION_STEPS as STEPS
from services.executor.tables import EXECUTIONS, RUN_REQUESTS, WORK

NOW = func.now()
ENDED_CHANNEL: Final = "executor_ended"
ENDED: Final = frozenset({"success", "failed", "timeout"})


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an execution as it stands.

    `running` with a failure waits to be tried again; `running` without one has a call in flight.
    """

    position: int
    step: str
    state: str
    attempts: int
    response_status: int = 0
    masked_output: dict[str, Any] = field(default_factory=dict)
    failure_reason: str = ""
    failure_message: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    sealed_output: bytes | None = field(default=None, repr=False)

    @property
    def in_flight(self) -> bool:
        """Whether a call was begun of which nothing is known yet."""
        return self.state == "running" and not self.failure_reason


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a connector as it stands; `steps` are those begun or skipped, in order."""

    id: UUID
    connector_id: UUID
    connector: str
    state: str
    trigger_kind: str
    trigger_id: UUID
    event_type: str
    subscription: str
    data_key_id: UUID
    failure_reason: str
    failure_message: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    sealed_input: bytes | None = field(default=None, repr=False)
    steps: tuple[Step, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self.state in ENDED


def _bind(table: Any, *names: str) -> dict[str, Any]:
    return {name: bindparam(name, type_=table.c[name].type) for name in names}


_SHOWN = (
    *("id", "connector_id", "connector", "state", "trigger_kind", "trigger_id", "event_type"),
    *("subscription", "data_key_id", "failure_reason", "failure_message"),
    *("created_at", "started_at", "ended_at"),
)
_STEP_SHOWN = (
    *("position", "step", "state", "attempts", "response_status", "masked_output"),
    *("failure_reason", "failure_message", "started_at", "ended_at"),
)
_COLUMNS = [EXECUTIONS.c[name] for name in _SHOWN]
_STEP_COLUMNS = [STEPS.c[name] for name in _STEP_SHOWN]
_MINE = EXECUTIONS.c.tenant_id == bindparam("tenant_id")
_THIS = and_(_MINE, EXECUTIONS.c.id == bindparam("id"))
_OF_THIS = and_(
    STEPS.c.tenant_id == bindparam("tenant_id"), STEPS.c.execution_id == bindparam("id")
)

INSERT = Statement(
    insert(EXECUTIONS).values(
        {
            **_bind(
                EXECUTIONS,
                *("tenant_id", "id", "connector_id", "connector", "trigger_kind", "trigger_id"),
                *("event_type", "subscription", "data_key_id", "sealed_input"),
            ),
            "state": "pending",
            "failure_reason": "",
            "failure_message": "",
        }
    )
)
GET = Statement(select(*_COLUMNS).where(_THIS))
GET_STEPS = Statement(select(*_STEP_COLUMNS).where(_OF_THIS).order_by(STEPS.c.position))
LOAD = Statement(select(*_COLUMNS, EXECUTIONS.c.sealed_input).where(_THIS))
LOAD_STEPS = Statement(
    select(*_STEP_COLUMNS, STEPS.c.sealed_output).where(_OF_THIS).order_by(STEPS.c.position)
)
BEGIN = Statement(
    update(EXECUTIONS)
    .where(_THIS, EXECUTIONS.c.state == "pending")
    .values(state="running", started_at=NOW)
)


_STEP_KEY = [STEPS.c.tenant_id, STEPS.c.execution_id, STEPS.c.position]
_REQUEST_KEY = ("tenant_id", "principal_id", "request_id")
_RECORDED = (
    *("position", "step", "attempts", "state", "response_status", "sealed_output"),
    *("masked_output", "failure_reason", "failure_message"),
)


def _begin_step() -> Statement:
    """Begins a try under the claim alone, so that it may commit in the same round trip."""
    values = {
        **_bind(STEPS, "tenant_id", "execution_id", "position", "step", "attempts"),
        "state": literal("running", String),
        "response_status": literal(0, Integer),
        "masked_output": literal({}, JSONB),
        "failure_reason": literal("", String),
        "failure_message": literal("", String),
        "started_at": NOW,
    }
    claimed = exists().where(
        WORK.c.tenant_id == bindparam("tenant_id"),
        WORK.c.work_id == bindparam("work_id", type_=Uuid),
        WORK.c.claim_id == bindparam("claim_id", type_=Uuid),
    )
    new = insert(STEPS).from_select(list(values), select(*values.values()).where(claimed))
    return Statement(
        new.on_conflict_do_update(
            index_elements=_STEP_KEY,
            set_={"attempts": new.excluded.attempts, "failure_reason": "", "failure_message": ""},
            where=and_(STEPS.c.state == "running", STEPS.c.attempts == new.excluded.attempts - 1),
        ).returning(STEPS.c.position)
    )


def _record_step() -> Statement:
    keys = ("tenant_id", "execution_id", "position", "step", "attempts")
    told = (
        *("state", "response_status", "sealed_output", "masked_output"),
        *("failure_reason", "failure_message"),
    )
    ended_at = case((bindparam("state", type_=STEPS.c.state.type) == "running", null()), else_=NOW)
    values = {**_bind(STEPS, *keys, *told), "started_at": NOW, "ended_at": ended_at}
    new = insert(STEPS).values(values)
    return Statement(
        new.on_conflict_do_update(
            index_elements=_STEP_KEY,
            set_={name: new.excluded[name] for name in (*told, "ended_at")},
            where=and_(STEPS.c.state == "running", STEPS.c.attempts == new.excluded.attempts),
        ).returning(STEPS.c.position)
    )


BEGIN_STEP = _begin_step()
RECORD_STEP = _record_step()
FINISH = Statement(
    update(EXECUTIONS)
    .where(_THIS, EXECUTIONS.c.ended_at.is_(None))
    .values(
        **_bind(EXECUTIONS, "state", "failure_reason", "failure_message"),
        started_at=func.coalesce(EXECUTIONS.c.started_at, NOW),
        ended_at=NOW,
        sealed_input=null(),
    )
)
NOTIFY_ENDED = Statement(
    select(func.pg_notify(ENDED_CHANNEL, bindparam("execution", type_=String)))
)
FORGET_OUTPUTS = Statement(update(STEPS).where(_OF_THIS).values(sealed_output=null()))

TAKE_REQUEST = Statement(
    insert(RUN_REQUESTS)
    .values(_bind(RUN_REQUESTS, *_REQUEST_KEY, "request_hash", "execution_id"))
    .on_conflict_do_nothing()
)
REQUEST = Statement(
    select(RUN_REQUESTS.c.request_hash, RUN_REQUESTS.c.execution_id).where(
        *(RUN_REQUESTS.c[name] == bindparam(name) for name in _REQUEST_KEY)
    )
)


def _list(*filters: str) -> Statement:
    """A page of the newest before an id, with one condition for each filter that is set."""
    conditions = [EXECUTIONS.c[name] == bindparam(name) for name in filters]
    before = EXECUTIONS.c.id < bindparam("before", type_=Uuid)
    newest = select(*_COLUMNS).where(_MINE, before, *conditions).order_by(EXECUTIONS.c.id.desc())
    return Statement(newest.limit(bindparam("limit", type_=Integer)))


# A statement for each set of filters: one that says "or none is set" would lose the index.
LISTS: Final = {
    frozenset(filters): _list(*filters)
    for filters in ((), ("connector",), ("state",), ("connector", "state"))
}
NEWEST: Final = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class New:
    """What an execution begins with."""

    tenant_id: UUID
    id: UUID
    connector_id: UUID
    connector: str
    trigger_kind: str
    trigger_id: UUID
    event_type: str
    subscription: str
    data_key_id: UUID
    sealed_input: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution ends: success, failed or timeout, and why."""

    state: str
    reason: str = ""
    message: str = ""


def inserting(new: New) -> Bound:
    """Keeps a new execution, pending."""
    return Bound(INSERT, asdict(new))


async def get(database: Database, tenant_id: UUID, execution_id: UUID) -> Execution | None:
    """An execution with its steps, without what is sealed."""
    return await _read(database, tenant_id, execution_id, GET, GET_STEPS)


async def load(database: Database, tenant_id: UUID, execution_id: UUID) -> Execution | None:
    """An execution with its steps and what is sealed."""
    return await _read(database, tenant_id, execution_id, LOAD, LOAD_STEPS)


async def page(
    database: Database, tenant_id: UUID, filters: dict[str, str], before: UUID, limit: int
) -> list[Execution]:
    """Executions without steps, the newest first; `filters` by connector and state."""
    statement = LISTS[frozenset(filters)]
    rows = await database.read(
        tenant_id, statement, tenant_id=tenant_id, before=before, limit=limit, **filters
    )
    return [Execution(*row) for row in rows]


def beginning(claimed: Claimed, position: int, step: str, attempts: int) -> Bound:
    """Says that try number `attempts` of a step begins now; no row: the claim is lost."""
    return Bound(
        BEGIN_STEP,
        {
            "tenant_id": claimed.tenant_id,
            "work_id": claimed.work_id,
            "claim_id": claimed.claim_id,
            "execution_id": claimed.target_id,
            "position": position,
            "step": step,
            "attempts": attempts,
        },
    )


def running(tenant_id: UUID, execution_id: UUID) -> Bound:
    """Says that an execution has begun."""
    return Bound(BEGIN, {"tenant_id": tenant_id, "id": execution_id})


def recording(tenant_id: UUID, execution_id: UUID, step: Step) -> Bound:
    """Keeps how a step stands after its try; no row: another worker is past that."""
    told = {name: getattr(step, name) for name in _RECORDED}
    return Bound(RECORD_STEP, {"tenant_id": tenant_id, "execution_id": execution_id, **told})


def finishing(tenant_id: UUID, execution_id: UUID, ending: Ending) -> list[Bound]:
    """End an execution, forget its sealed state, and tell who waits."""
    key = {"tenant_id": tenant_id, "id": execution_id}
    told = {
        "state": ending.state,
        "failure_reason": ending.reason,
        "failure_message": ending.message,
    }
    return [
        Bound(FINISH, {**key, **told}),
        Bound(FORGET_OUTPUTS, key),
        Bound(NOTIFY_ENDED, {"execution": str(execution_id)}),
    ]


async def take_request(
    tx: Transaction,
    *,
    tenant_id: UUID,
    principal_id: UUID,
    request_id: UUID,
    request_hash: bytes,
    execution_id: UUID,
) -> tuple[bytes, UUID]:
    """Take a request id; answers with its hash and execution: these, or the first one's.

    Of two at once the second waits for the first's transaction.
    """
    key = {"tenant_id": tenant_id, "principal_id": principal_id, "request_id": request_id}
    new = {"request_hash": request_hash, "execution_id": execution_id}
    _, rows = await tx.pipeline([Bound(TAKE_REQUEST, {**key, **new}), Bound(REQUEST, key)])
    return bytes(rows[0].request_hash), rows[0].execution_id


async def _read(
    database: Database, tenant_id: UUID, execution_id: UUID, statement: Statement, steps: Statement
) -> Execution | None:
    key = {"tenant_id": tenant_id, "id": execution_id}
    found, of_steps = await database.read_all(tenant_id, [Bound(statement, key), Bound(steps, key)])
    if not found:
        return None
    return replace(Execution(*found[0]), steps=tuple(Step(*row) for row in of_steps))
