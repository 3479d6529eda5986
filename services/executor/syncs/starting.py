"""A transfer of a stream and its work, made in the transaction of whatever wants it."""

from typing import Literal
from uuid import UUID

from services.chassis.ids import uuid7
from services.executor.engine.work import Started, WorkItem
from services.executor.store import sync_runs as store
from services.executor.store.projected import ProjectedObject
from services.executor.store.sync_runs import NewRun
from services.executor.syncs.streams import KIND, policy_of

Trigger = tuple[Literal["event", "rpc", "schedule"], UUID]


def started(
    tenant_id: UUID,
    stream: ProjectedObject,
    trigger: Trigger,
    *,
    whole: bool = False,
    run_id: UUID | None = None,
) -> Started:
    """A transfer to begin; `whole`: of all, and not of what has changed alone."""
    run_id = run_id or uuid7()
    new = NewRun(tenant_id, run_id, stream.object_id, stream.name, whole, *trigger)
    item = WorkItem(KIND, stream.object_id, run_id, policy=policy_of(stream.spec))
    return Started(item, [store.adding(new)])
