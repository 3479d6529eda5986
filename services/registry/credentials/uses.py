"""How credentials were used, as the executor counted it: use and errors by hour, and status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.chassis.database import Bound, Database
from services.chassis.errors import invalid
from services.registry.keys.replacing import MOST_SEALS, Replacing
from services.registry.store import credential_uses as store
from services.registry.store import keys, tenants

MOST: Final = 10_000
OLDEST: Final = timedelta(days=7)
AHEAD: Final = timedelta(hours=1)
HOUR_S: Final = 3600
LONGEST_LIMIT: Final = 100
MOST_LIMITS: Final = 10


@dataclass(frozen=True, slots=True)
class Use:
    """One credential's use within an hour; times are None where it did not happen."""

    credential_id: UUID
    version: int
    bucket: datetime
    uses: int
    errors: int
    used_at: datetime
    succeeded_at: datetime | None = None
    refused_at: datetime | None = None
    rate_limit: Mapping[str, str] = field(default_factory=dict)


class Uses:
    """Keeps them."""

    def __init__(self, database: Database, replacing: Replacing) -> None:
        self._database = database
        self._replacing = replacing

    async def keep(self, tenant_id: UUID, uses: Sequence[Use], seals: Mapping[UUID, int]) -> None:
        """Add what was counted since the last report. Raises InvalidArgument for what cannot be."""
        _check(uses, seals, datetime.now(UTC))
        ordered = sorted(uses, key=lambda use: (use.credential_id, use.bucket))
        statements = [
            *_counting(tenant_id, ordered),
            *(_limits(tenant_id, use) for use in ordered if use.rate_limit),
        ]
        counting = [_sealing(tenant_id, *each) for each in sorted(seals.items())]
        async with self._database.tenant(tenant_id, durable=False) as transaction:
            # As an apply does, which holds many credentials too: one waits for the other.
            await tenants.hold(transaction, tenant_id)
            if statements:
                await transaction.pipeline(statements)
            counted = await transaction.pipeline(counting) if counting else []
        worn = (
            row.wraps >= MOST_SEALS and row.state == "active" for rows in counted for row in rows
        )
        if any(worn):
            await self._replacing.by_itself(tenant_id)


def _counting(tenant_id: UUID, uses: Sequence[Use]) -> list[Bound]:
    if not uses:
        return []
    ids = [use.credential_id for use in uses]
    counted = {
        "ids": ids,
        "buckets": [use.bucket for use in uses],
        "use_counts": [use.uses for use in uses],
        "error_counts": [use.errors for use in uses],
    }
    # The last word on each credential is of its newest bucket.
    last = list({use.credential_id: use for use in uses}.values())
    noted = {
        "ids": [use.credential_id for use in last],
        "seen_versions": [use.version for use in last],
        "used": [use.used_at for use in last],
        "succeeded": [use.succeeded_at for use in last],
        "refused": [use.refused_at for use in last],
    }
    return [
        Bound(store.COUNT_USES, {"tenant_id": tenant_id, **counted}),
        Bound(store.NOTE_USE, {"tenant_id": tenant_id, **noted}),
    ]


def _limits(tenant_id: UUID, use: Use) -> Bound:
    place = {"the_tenant_id": tenant_id, "the_credential_id": use.credential_id}
    return Bound(store.NOTE_RATE_LIMIT, {**place, "limits": dict(use.rate_limit)})


def _sealing(tenant_id: UUID, data_key_id: UUID, seals: int) -> Bound:
    place = {"the_tenant_id": tenant_id, "the_data_key_id": data_key_id}
    return Bound(keys.COUNT_SEALS, {**place, "more": seals})


def _check(uses: Sequence[Use], seals: Mapping[UUID, int], now: datetime) -> None:
    if len(uses) > MOST or len(seals) > MOST:
        raise invalid("uses", f"has more than {MOST}")
    if len({(use.credential_id, use.bucket) for use in uses}) != len(uses):
        raise invalid("uses", "has two rows of one credential and hour")
    if any(count < 0 for count in seals.values()):
        raise invalid("seals", "must be 0 or more")
    for at, use in enumerate(uses):
        if not 0 <= use.errors <= use.uses or not use.uses:
            raise invalid(f"uses[{at}]", "must have a use, and no more errors than uses")
        moments = (use.bucket, use.used_at, use.succeeded_at, use.refused_at)
        if any(m is not None and not now - OLDEST <= m <= now + AHEAD for m in moments):
            raise invalid(f"uses[{at}]", "is older than 7 days, or of the future")
        if use.bucket.timestamp() % HOUR_S:
            raise invalid(f"uses[{at}].bucket_time", "is not the beginning of an hour")
        words = [*use.rate_limit.keys(), *use.rate_limit.values()]
        if len(use.rate_limit) > MOST_LIMITS or any(len(word) > LONGEST_LIMIT for word in words):
            raise invalid(f"uses[{at}].rate_limit", "is too long")
