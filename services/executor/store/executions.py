"""Executions with their steps, and the requests that started them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Double,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    func,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.database import Bound, Database, Statement
from services.executor.tables import EXECUTION_LINKS as LINKS
from services.executor.tables import EXECUTION_STEPS as STEPS
from services.executor.tables import EXECUTIONS

NOW = func.now()
CHANGED_CHANNEL: Final = "executor_changed"
"""Told of every end, and of every change of what somebody watches."""
ENDED: Final = frozenset({"success", "failed", "timeout", "cancelled"})
WATCHED: Final = timedelta(seconds=30)
"""For how long who watches is told of changes; they say again in time that they do."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an execution as it stands.

    `running` with a failure waits to be tried again; `running` without one has a call in flight.
    `retries` is how often the run was taken up again at it. `took_s` is what its try took, of one
    whose begin was not kept.
    """

    position: int
    step: str
    state: str
    attempts: int
    retries: int = 0
    response_status: int = 0
    masked_output: dict[str, Any] = field(default_factory=dict)
    failure_reason: str = ""
    failure_message: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    sealed_output: bytes | None = field(default=None, repr=False)
    took_s: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether the run is past it; also where it failed, if the run is not at its end."""
        return self.state not in {"", "running"}

    @property
    def in_flight(self) -> bool:
        """Whether a call was begun of which nothing is known yet."""
        return self.state == "running" and not self.failure_reason


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a connector as it stands; `steps` are those begun or skipped, in order.

    `output` is masked, except for the caller whose run it was.
    """

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
    links: dict[str, str]
    retries: int
    failed_steps: int
    output: dict[str, Any]
    sealed_input: bytes | None = field(default=None, repr=False)
    steps: tuple[Step, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self.state in ENDED


def bound(table: Any, *names: str) -> dict[str, Any]:
    """Parameters of the names and types of a table's columns."""
    return {name: bindparam(name, type_=table.c[name].type) for name in names}


_SHOWN = (
    *("id", "connector_id", "connector", "state", "trigger_kind", "trigger_id", "event_type"),
    *("subscription", "data_key_id", "failure_reason", "failure_message"),
    *("created_at", "started_at", "ended_at", "links", "retries", "failed_steps", "masked_output"),
)
_STEP_SHOWN = (
    *("position", "step", "state", "attempts", "retries", "response_status", "masked_output"),
    *("failure_reason", "failure_message", "started_at", "ended_at"),
)
COLUMNS = [EXECUTIONS.c[name] for name in _SHOWN]
_STEP_COLUMNS = [STEPS.c[name] for name in _STEP_SHOWN]
MINE = EXECUTIONS.c.tenant_id == bindparam("tenant_id")
THIS = and_(MINE, EXECUTIONS.c.id == bindparam("id"))
OF_THIS = and_(STEPS.c.tenant_id == bindparam("tenant_id"), STEPS.c.execution_id == bindparam("id"))

INSERT = Statement(
    insert(EXECUTIONS).values(
        {
            **bound(
                EXECUTIONS,
                *("tenant_id", "id", "connector_id", "connector", "trigger_kind", "trigger_id"),
                *("event_type", "subscription", "data_key_id", "sealed_input", "links"),
            ),
            "state": "pending",
            "failure_reason": "",
            "failure_message": "",
        }
    )
)
GET = Statement(select(*COLUMNS).where(THIS))
GET_STEPS = Statement(select(*_STEP_COLUMNS).where(OF_THIS).order_by(STEPS.c.position))
LOAD = Statement(select(*COLUMNS, EXECUTIONS.c.sealed_input).where(THIS))
LOAD_STEPS = Statement(
    select(*_STEP_COLUMNS, STEPS.c.sealed_output).where(OF_THIS).order_by(STEPS.c.position)
)
BEGIN = Statement(
    update(EXECUTIONS)
    .where(THIS, EXECUTIONS.c.state == "pending")
    .values(state="running", started_at=NOW)
)


_STEP_KEY = [STEPS.c.tenant_id, STEPS.c.execution_id, STEPS.c.position]
_RECORDED = (
    *("position", "step", "attempts", "retries", "state", "response_status", "sealed_output"),
    *("masked_output", "failure_reason", "failure_message", "took_s"),
)


# Looked up with each change of a step; a notice that nobody waits for would cost far more.
_TELL_WATCHERS = (
    select(func.pg_notify(CHANGED_CHANNEL, cast(EXECUTIONS.c.id, String)))
    .where(MINE, EXECUTIONS.c.id == bindparam("execution_id"), EXECUTIONS.c.watched_until > NOW)
    .scalar_subquery()
)


def _begin_step() -> Statement:
    values = {
        **bound(STEPS, "tenant_id", "execution_id", "position", "step", "attempts", "repeatable"),
        "retries": 0,
        "state": "running",
        "response_status": 0,
        "masked_output": {},
        "failure_reason": "",
        "failure_message": "",
        "started_at": NOW,
    }
    new = insert(STEPS).values(values)
    return Statement(
        new.on_conflict_do_update(
            index_elements=_STEP_KEY,
            set_={
                "attempts": new.excluded.attempts,
                "repeatable": new.excluded.repeatable,
                "failure_reason": "",
                "failure_message": "",
            },
            where=and_(STEPS.c.state == "running", STEPS.c.attempts == new.excluded.attempts - 1),
        ).returning(STEPS.c.position, _TELL_WATCHERS)
    )


# What was not kept when it began is known by how long it took.
SECONDS_TAKEN: Final[ColumnElement[Any]] = func.make_interval(
    0, 0, 0, 0, 0, 0, bindparam("took_s", type_=Double)
)


def _record_step() -> Statement:
    keys = ("tenant_id", "execution_id", "position", "step", "attempts")
    told = (
        *("state", "retries", "response_status", "sealed_output", "masked_output"),
        *("failure_reason", "failure_message"),
    )
    ended_at = case((bindparam("state", type_=STEPS.c.state.type) == "running", null()), else_=NOW)
    # One that was not begun has no call under way.
    began = {"repeatable": True, "started_at": NOW - SECONDS_TAKEN}
    values = {**bound(STEPS, *keys, *told), **began, "ended_at": ended_at}
    new = insert(STEPS).values(values)
    return Statement(
        new.on_conflict_do_update(
            index_elements=_STEP_KEY,
            set_={name: new.excluded[name] for name in (*told, "ended_at")},
            where=and_(STEPS.c.state == "running", STEPS.c.attempts == new.excluded.attempts),
        ).returning(STEPS.c.position, _TELL_WATCHERS)
    )


BEGIN_STEP = _begin_step()
RECORD_STEP = _record_step()
RETRY = Statement(update(EXECUTIONS).where(THIS).values(retries=EXECUTIONS.c.retries + 1))
WATCH = Statement(
    update(EXECUTIONS)
    .where(
        THIS,
        EXECUTIONS.c.ended_at.is_(None),
        func.coalesce(EXECUTIONS.c.watched_until, NOW) < NOW + WATCHED / 2,
    )
    .values(watched_until=NOW + WATCHED)
)
OUTPUT = Statement(select(EXECUTIONS.c.sealed_output).where(THIS))


def _insert_links() -> Statement:
    arrays = [bindparam(name, type_=ARRAY(String)) for name in ("names", "texts")]
    link = func.unnest(*arrays).table_valued("name", "value", name="link").render_derived()
    ids = [bindparam(name, type_=Uuid) for name in ("tenant_id", "id")]
    columns = ["tenant_id", "execution_id", "name", "value"]
    return Statement(insert(LINKS).from_select(columns, select(*ids, link.c.name, link.c.value)))


INSERT_LINKS = _insert_links()


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
    links: Mapping[str, str] = field(default_factory=dict)


_NEW: Final = tuple(each.name for each in fields(New))


def inserting(new: New) -> list[Bound]:
    """Keeps a new execution, pending, and the links it is found by."""
    links = dict(new.links)
    # Not `asdict`, which copies each value (measured: 70 us a run).
    kept = Bound(INSERT, {**{name: getattr(new, name) for name in _NEW}, "links": links})
    if not links:
        return [kept]
    key = {"tenant_id": new.tenant_id, "id": new.id}
    return [kept, Bound(INSERT_LINKS, {**key, "names": list(links), "texts": list(links.values())})]


async def get(database: Database, tenant_id: UUID, execution_id: UUID) -> Execution | None:
    """An execution with its steps, without what is sealed."""
    return got(await database.read_all(tenant_id, getting(tenant_id, execution_id)))


async def load(
    database: Database, tenant_id: UUID, execution_id: UUID, beside: Sequence[Bound]
) -> tuple[Execution | None, list[Any]]:
    """An execution with its steps and what is sealed, and the rows of what is read beside it."""
    key = {"tenant_id": tenant_id, "id": execution_id}
    found, of_steps, *more = await database.read_all(
        tenant_id, [Bound(LOAD, key), Bound(LOAD_STEPS, key), *beside]
    )
    return _execution(found, of_steps), more


def getting(tenant_id: UUID, execution_id: UUID) -> list[Bound]:
    """Reads an execution as `get` does; `got` takes the two answers."""
    key = {"tenant_id": tenant_id, "id": execution_id}
    return [Bound(GET, key), Bound(GET_STEPS, key)]


def got(answers: Sequence[list[Any]]) -> Execution | None:
    """The execution that `getting` has read."""
    found, of_steps = answers
    return _execution(found, of_steps)


async def watch(database: Database, tenant_id: UUID, execution_id: UUID) -> Execution | None:
    """An execution as `get` reads it, whose changes are told for a while from now on."""
    key = Bound(WATCH, {"tenant_id": tenant_id, "id": execution_id})
    async with database.tenant(tenant_id, durable=False) as tx:
        _, *answers = await tx.conclude([key, *getting(tenant_id, execution_id)])
    return got(answers)


async def output(database: Database, tenant_id: UUID, execution_id: UUID) -> bytes | None:
    """What an execution came to, sealed; None where it came to nothing."""
    rows = await database.read(tenant_id, OUTPUT, tenant_id=tenant_id, id=execution_id)
    return rows[0].sealed_output if rows else None


def beginning(
    tenant_id: UUID,
    execution_id: UUID,
    position: int,
    step: str,
    attempts: int,
    *,
    repeatable: bool,
) -> Bound:
    """Says that try number `attempts` of a step begins now; no row: another worker is past that.

    `repeatable`: no harm is done where nobody learns what became of it.
    """
    return Bound(
        BEGIN_STEP,
        {
            "tenant_id": tenant_id,
            "execution_id": execution_id,
            "position": position,
            "step": step,
            "attempts": attempts,
            "repeatable": repeatable,
        },
    )


def running(tenant_id: UUID, execution_id: UUID) -> Bound:
    """Says that an execution has begun."""
    return Bound(BEGIN, {"tenant_id": tenant_id, "id": execution_id})


def recording(tenant_id: UUID, execution_id: UUID, step: Step) -> Bound:
    """Keeps how a step stands after its try; no row: another worker is past that."""
    told = {name: getattr(step, name) for name in _RECORDED}
    return Bound(RECORD_STEP, {"tenant_id": tenant_id, "execution_id": execution_id, **told})


def retrying(tenant_id: UUID, execution_id: UUID) -> Bound:
    """Counts that a run is taken up again at a failed step."""
    return Bound(RETRY, {"tenant_id": tenant_id, "id": execution_id})


def _execution(found: list[Any], of_steps: list[Any]) -> Execution | None:
    if not found:
        return None
    return replace(Execution(*found[0]), steps=tuple(Step(*row) for row in of_steps))
