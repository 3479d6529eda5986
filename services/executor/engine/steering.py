"""Steers lanes and tenants: what they may, and whether they go.

Whatever makes a lane or a tenant due follows the protocol of `services.executor.engine.lanes`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from operator import itemgetter
from uuid import UUID

from services.chassis.database import Bound, Transaction
from services.executor.engine.lanes import CHANNEL, policy_row
from services.executor.engine.work import LanePolicy
from services.executor.store import lanes as store


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may: None is without limit.

    `weight` is its share where tenants compete; `provider_caps` how much may run at once of the
    lanes of a provider; a tenant that is `paused` runs nothing.
    """

    paused: bool = False
    weight: int = 1
    max_running: int | None = None
    provider_caps: dict[str, int] = field(default_factory=dict)
    work_per_hour: int | None = None


def shaping(
    tenant_id: UUID, policies: Mapping[UUID, tuple[str, LanePolicy]], changing: Sequence[UUID]
) -> list[Bound]:
    """The statements that give lanes their kinds and policies, making those that are new.

    All that are `changing` are locked first and looked at anew, as far as they are there already.
    """
    key = {"tenant_id": tenant_id, "delay": timedelta()}
    lanes = [
        {**key, "lane_id": lane_id, "kind": kind, **policy_row(policy)}
        for lane_id, (kind, policy) in sorted(policies.items(), key=itemgetter(0))
    ]
    return [
        Bound(store.ENSURE_TENANT_LANE, key),
        Bound(store.KEEP_TENANT_LANE, key),
        Bound(store.LOCK_CHANGING, {**key, "lane_ids": list(changing)}),
        *(Bound(store.SHAPE_LANE, lane) for lane in lanes),
        Bound(store.HASTEN_LANES, {**key, "lane_ids": list(changing)}),
    ]


async def shape(
    tx: Transaction, tenant_id: UUID, kind: str, policies: Mapping[UUID, LanePolicy]
) -> None:
    """Give lanes their policies, and look at the tenant."""
    wanted = {lane_id: (kind, policy) for lane_id, policy in policies.items()}
    await tx.pipeline(
        [
            *shaping(tenant_id, wanted, list(wanted)),
            Bound(store.PULL_TENANT_LANE, {"tenant_id": tenant_id, "delay": timedelta()}),
            Bound(store.NOTIFY, {"channel": CHANNEL}),
        ]
    )


async def govern(tx: Transaction, tenant_id: UUID, limits: Limits) -> None:
    """Give a tenant its limits, and look at it anew."""
    key = {"tenant_id": tenant_id, "delay": timedelta()}
    told = {name: getattr(limits, name) for name in store.LIMITS}
    await tx.pipeline(
        [
            Bound(store.ENSURE_TENANT_LANE, key),
            Bound(store.GOVERN, {**key, **told}),
            Bound(store.PULL_TENANT_LANE, key),
            Bound(store.NOTIFY, {"channel": CHANNEL}),
        ]
    )


async def pause(tx: Transaction, tenant_id: UUID, lane_id: UUID, reason: str) -> None:
    """Begin nothing of a lane until it is resumed; what runs goes on."""
    await tx.run(store.SET_PAUSE, tenant_id=tenant_id, lane_id=lane_id, reason=reason)


async def resume(tx: Transaction, tenant_id: UUID, lane_id: UUID) -> None:
    """Let a lane go on, its breaker closed."""
    key = {"tenant_id": tenant_id, "lane_id": lane_id}
    await tx.pipeline(
        _going_on(tenant_id, lane_id, [Bound(store.SET_PAUSE, {**key, "reason": ""})])
    )


async def reset(tx: Transaction, tenant_id: UUID, lane_id: UUID) -> None:
    """Close a lane's breaker; one that is paused stays so."""
    await tx.pipeline(_going_on(tenant_id, lane_id))


def _going_on(tenant_id: UUID, lane_id: UUID, changes: Sequence[Bound] = ()) -> list[Bound]:
    key = {"tenant_id": tenant_id, "lane_id": lane_id, "delay": timedelta()}
    return [
        Bound(store.KEEP_TENANT_LANE, key),
        *changes,
        Bound(store.CLOSE_BREAKER, key),
        Bound(store.PULL_LANE, key),
        Bound(store.PULL_TENANT_LANE, key),
        Bound(store.NOTIFY, {"channel": CHANNEL}),
    ]
