"""How executions end: well, or not, or before their time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import String, and_, bindparam, case, func, null, or_, select, update

from services.chassis.database import Bound, Statement
from services.executor.store.executions import (
    CHANGED_CHANNEL,
    NOW,
    OF_THIS,
    SECONDS_TAKEN,
    THIS,
    bound,
)
from services.executor.tables import EXECUTION_STEPS as STEPS
from services.executor.tables import EXECUTIONS

OUTCOME_UNKNOWN: Final = "OUTCOME_UNKNOWN"
UNKNOWN: Final = "a call that is not safe to repeat was under way, and its outcome is unknown"


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution ends: its last state, why, and what it came to, masked and sealed."""

    state: str
    reason: str = ""
    message: str = ""
    masked_output: Mapping[str, Any] = field(default_factory=dict)
    sealed_output: bytes | None = field(default=None, repr=False)


_FAILED_STEPS = (
    select(func.count())
    .where(OF_THIS, or_(STEPS.c.state == "failed", STEPS.c.state == "timeout"))
    .correlate(None)
    .scalar_subquery()
)
FINISH = Statement(
    update(EXECUTIONS)
    .where(THIS, EXECUTIONS.c.ended_at.is_(None))
    .values(
        **bound(EXECUTIONS, "state", "failure_reason", "failure_message"),
        **bound(EXECUTIONS, "masked_output", "sealed_output"),
        failed_steps=_FAILED_STEPS,
        started_at=func.coalesce(EXECUTIONS.c.started_at, NOW - SECONDS_TAKEN),
        ended_at=NOW,
        sealed_input=null(),
    )
)
FORGET_OUTPUTS = Statement(update(STEPS).where(OF_THIS).values(sealed_output=null()))
NOTIFY_ENDED = Statement(
    select(func.pg_notify(CHANGED_CHANNEL, bindparam("execution", type_=String)))
)


def _end_steps() -> Statement:
    """Ends the step under way; where its call is not safe to repeat, nobody knows what it did."""
    in_flight = STEPS.c.failure_reason == ""
    unknown = and_(in_flight, ~STEPS.c.repeatable)

    def said(kept: Any, of_unknown: str, of_run: str) -> Any:
        why = bindparam(of_run, type_=String)
        return case((unknown, of_unknown), (in_flight, why), else_=kept)

    return Statement(
        update(STEPS)
        .where(OF_THIS, STEPS.c.state == "running")
        .values(
            state=case((unknown, "failed"), else_=bindparam("step_state", type_=String)),
            failure_reason=said(STEPS.c.failure_reason, OUTCOME_UNKNOWN, "reason"),
            failure_message=said(STEPS.c.failure_message, UNKNOWN, "message"),
            ended_at=NOW,
        )
    )


END_STEPS = _end_steps()


def _say_unknown() -> Statement:
    # Within one transaction the time stands still.
    step = (
        select(STEPS.c.step)
        .where(OF_THIS, STEPS.c.failure_reason == OUTCOME_UNKNOWN, STEPS.c.ended_at == NOW)
        .correlate(None)
        .limit(1)
        .scalar_subquery()
    )
    told = func.concat(EXECUTIONS.c.failure_message, "; step ", step, ": ", UNKNOWN)
    return Statement(update(EXECUTIONS).where(THIS, step.is_not(None)).values(failure_message=told))


SAY_UNKNOWN = _say_unknown()


def finishing(
    tenant_id: UUID, execution_id: UUID, ending: Ending, took_s: float = 0.0
) -> list[Bound]:
    """End an execution, forget its sealed state, and tell who waits.

    `took_s` is how long ago it began, where that was not kept.
    """
    key = {"tenant_id": tenant_id, "id": execution_id}
    told = {
        "state": ending.state,
        "failure_reason": ending.reason,
        "failure_message": ending.message,
        "masked_output": dict(ending.masked_output),
        "sealed_output": ending.sealed_output,
        "took_s": took_s,
    }
    return [
        Bound(FINISH, {**key, **told}),
        Bound(FORGET_OUTPUTS, key),
        Bound(NOTIFY_ENDED, {"execution": str(execution_id)}),
    ]


def giving_up(tenant_id: UUID, execution_id: UUID, ending: Ending) -> list[Bound]:
    """End an execution before its time, and say so where a call's outcome is unknown by that."""
    key = {"tenant_id": tenant_id, "id": execution_id}
    step_state = "timeout" if ending.state == "timeout" else "failed"
    told = {"step_state": step_state, "reason": ending.reason, "message": ending.message}
    return [
        Bound(END_STEPS, {**key, **told}),
        *finishing(tenant_id, execution_id, ending),
        Bound(SAY_UNKNOWN, key),
    ]
