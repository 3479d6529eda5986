"""What a tenant wants of its lanes: its limits, each one's policy, and whose lane it is.

The lane of a connector, of a stream, or of an endpoint that events go out to, has the id of that,
and its `owner` says what that is. Nothing of an `inactive` one begins; it waits. What waits for one
that is `gone` is claimed at once, whatever else holds the lane, only to fail; once it is empty the
lane goes too. Why operators or a breaker paused a lane is kept elsewhere (`pause_reason`): neither
undoes the other.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from services.chassis.database import Bound, Transaction
from services.executor.deliveries import policies
from services.executor.engine import lanes, steering
from services.executor.engine.steering import Limits
from services.executor.engine.work import LanePolicy
from services.executor.executions import runs
from services.executor.executions.runs import CONNECTOR
from services.executor.store import governed
from services.executor.store.projected import ProjectedObject
from services.executor.syncs import streams

log = logging.getLogger(__name__)

Owner = Literal["active", "inactive", "gone"]

A_MINUTE_S: Final = 60
KINDS: Final = [runs.KIND, policies.KIND, streams.KIND]
ENDPOINT: Final = "WebhookEndpoint"
OUTBOUND: Final = "OUTBOUND"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a lane is to be."""

    kind: str
    owner: Owner
    policy: LanePolicy


@dataclass(frozen=True, slots=True)
class Changes:
    """What of a tenant's lanes is not as it is wanted."""

    policies: Mapping[UUID, tuple[str, LanePolicy]]
    owners: Mapping[UUID, Owner]

    @property
    def lane_ids(self) -> list[UUID]:
        """Every lane that changes."""
        return sorted({*self.policies, *self.owners})

    @property
    def gone(self) -> list[UUID]:
        """The lanes whose owner has gone."""
        return [lane_id for lane_id, owner in self.owners.items() if owner == "gone"]


async def govern(
    tx: Transaction, tenant_id: UUID, limits: Limits, objects: Sequence[ProjectedObject]
) -> None:
    """Bring a tenant's lanes to what it wants; only what changed is touched.

    The last of the caller's transaction, since everybody else waits for the lanes it holds.
    """
    key = {"tenant_id": tenant_id}
    ruling, found = await tx.pipeline(
        [Bound(governed.LIMITS_OF, key), Bound(governed.LANES_OF, {**key, "kinds": KINDS})]
    )
    changes = changes_of(found, lanes_of(objects))
    if changes.lane_ids:
        await _change(tx, tenant_id, changes)
    if changes.lane_ids or [Limits(*row) for row in ruling] != [limits]:
        await steering.govern(tx, tenant_id, limits)


def lanes_of(objects: Sequence[ProjectedObject]) -> dict[UUID, Wanted]:
    """The lane of each connector, stream and outbound endpoint, as it is to be."""
    providers = {each.name: each.spec["provider"] for each in objects if each.kind == "Integration"}
    return {
        each.object_id: Wanted(kind, "active" if each.spec["is_active"] else "inactive", policy)
        for each in objects
        for kind, policy in _lane_of(each, providers)
    }


def _lane_of(
    each: ProjectedObject, providers: Mapping[str, str]
) -> Iterator[tuple[str, LanePolicy]]:
    if each.kind == CONNECTOR:
        yield runs.KIND, policy_of(each.spec, providers)
    elif each.kind == ENDPOINT and each.spec["direction"] == OUTBOUND:
        yield policies.KIND, policies.policy_of(each.spec)
    elif each.kind == streams.STREAM:
        yield streams.KIND, streams.policy_of(each.spec)


def policy_of(spec: Mapping[str, Any], providers: Mapping[str, str]) -> LanePolicy:
    """A connector's policy; its provider is that of its first step. `providers`: by integration."""
    lane, first = spec["lane"], spec["steps"][0]["integration"]
    rate = lane["rate_per_minute"]
    return LanePolicy(
        concurrency=lane["concurrency"],
        provider=providers.get(first, ""),
        ordering=lane["ordering"],
        rate_per_s=rate / A_MINUTE_S if rate else None,
        # What a second holds may begin at once: a minute sees that much more at most.
        burst=max(1, rate // A_MINUTE_S),
    )


def changes_of(found: Sequence[Any], wanted: Mapping[UUID, Wanted]) -> Changes:
    """What to change in the lanes that were found; one that nobody wants has lost its owner."""
    stand = {row.lane_id: row for row in found}
    policies = {
        lane_id: (each.kind, each.policy)
        for lane_id, each in wanted.items()
        if lane_id not in stand or not _has(stand[lane_id], each.policy)
    }
    owners: dict[UUID, Owner] = {lane_id: each.owner for lane_id, each in wanted.items()}
    owners |= dict.fromkeys(stand.keys() - wanted.keys(), "gone")
    changing = {
        lane_id: owner
        for lane_id, owner in owners.items()
        # A new lane's owner is active.
        if owner != (stand[lane_id].owner if lane_id in stand else "active")
    }
    return Changes(policies, changing)


def _has(row: Any, policy: LanePolicy) -> bool:
    return all(getattr(row, name) == value for name, value in lanes.policy_row(policy).items())


async def _change(tx: Transaction, tenant_id: UUID, changes: Changes) -> None:
    """The lanes first, in their order; `steering.govern` then looks at the tenant."""
    key = {"tenant_id": tenant_id}
    owners = {"lane_ids": list(changes.owners), "owners": list(changes.owners.values())}
    gone = {**key, "lane_ids": changes.gone}
    *_, waiting = await tx.pipeline(
        [
            *steering.shaping(tenant_id, changes.policies, changes.lane_ids),
            Bound(governed.SET_OWNERS, {**key, **owners}),
            Bound(governed.HASTEN_WORK, gone),
            Bound(governed.COUNT_WAITING, gone),
        ]
    )
    for row in waiting:
        log.warning(
            "the owner of lane %s is gone: %d pieces of work that wait for it end",
            row.lane_id,
            row.waiting,
        )
