"""Usage of API keys: what processes counted comes in, and how it stands goes out."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database
from services.chassis.errors import invalid
from services.chassis.ids import uuid7_floor
from services.chassis.usage import MOST, Counted, Use
from services.registry.store import usage as store

WINDOWS: Final[Mapping[str, timedelta]] = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=30),
}
SHOWN: Final = 100
# What is older or younger lies in months that may not be there.
OLDEST: Final = timedelta(days=7)
AHEAD: Final = timedelta(hours=1)
TAIL_BITS: Final = 74


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of time up to now, the most frequent first."""

    period: timedelta
    count: int
    by_method: Sequence[tuple[str, int]]
    by_address: Sequence[tuple[str, int]]


class Usage:
    """Keeps and tells it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(self, counted: Counted) -> None:
        """Add what a process counted; keys and principals that are not known are passed over.

        Raises InvalidArgument for what nobody can have counted.
        """
        _check(counted, datetime.now(UTC).timestamp())
        # In one order, so that two who keep the same rows wait instead of locking each other out.
        uses = sorted(counted.uses, key=_row_id)
        used: dict[str, float] = {}
        for use in uses:
            used[use.key_id] = max(used.get(use.key_id, 0), use.last)
        stays = sorted(counted.stays, key=lambda stay: (stay.principal_id, stay.tenant_id))
        statements = [
            *(Bound(store.COUNT, _row(use)) for use in uses),
            *(
                Bound(store.USED, {"the_key_id": key_id, "used_at": _moment(used[key_id])})
                for key_id in sorted(used)
            ),
            *(
                Bound(
                    store.SWITCH,
                    {
                        "the_principal_id": stay.principal_id,
                        "the_tenant_id": stay.tenant_id,
                        "switched_at": _moment(stay.since),
                    },
                )
                for stay in stays
            ),
        ]
        async with self._database.system(durable=False) as transaction:
            await transaction.pipeline(statements)

    async def windows(self, key_id: str) -> list[Window]:
        """How a key was used in the last hour, day, week and month."""
        now = datetime.now(UTC)
        asked = {
            "key_id": key_id,
            "oldest": uuid7_floor(now - WINDOWS["month"]),
            **{name: now - period for name, period in WINDOWS.items()},
        }
        async with self._database.system() as transaction:
            by_method, by_address = await transaction.pipeline(
                [Bound(store.BY_METHOD, asked), Bound(store.BY_ADDRESS, asked)]
            )
        return [
            Window(
                period,
                sum(getattr(row, name) for row in by_method),
                _most(by_method, name),
                _most(by_address, name),
            )
            for name, period in WINDOWS.items()
        ]

    async def switches(self, principal_id: UUID) -> dict[str, datetime]:
        """Since when, by slug, a principal works in each of its tenants."""
        async with self._database.system() as transaction:
            rows = await transaction.all(store.SWITCHES, principal_id=principal_id)
        return {row.slug: row.switched_at for row in rows}


def _check(counted: Counted, now: float) -> None:
    if len(counted.uses) > 2 * MOST or len(counted.stays) > MOST:
        raise invalid("uses", f"has more than {MOST}")
    oldest, youngest = now - OLDEST.total_seconds(), now + AHEAD.total_seconds()
    for at, use in enumerate(counted.uses):
        if use.count < 1:
            raise invalid(f"uses[{at}].count", "must be at least 1")
        if not oldest <= use.bucket <= youngest or not oldest <= use.last <= youngest:
            raise invalid(f"uses[{at}]", "is older than 7 days, or of the future")


def _row_id(use: Use) -> UUID:
    """The id of the row a use is counted in: the bucket's time, and a hash of what is counted."""
    words = repr((use.key_id, use.method, use.address, use.user_agent))
    tail = int.from_bytes(hashlib.sha256(words.encode()).digest(), "big") & (2**TAIL_BITS - 1)
    low = tail & (2**62 - 1)
    floor = uuid7_floor(_moment(use.bucket))
    return UUID(int=floor.int | (tail >> 62) << 64 | low)


def _row(use: Use) -> dict[str, Any]:
    return {
        "the_id": _row_id(use),
        "the_key_id": use.key_id,
        "method": use.method,
        "address": use.address,
        "user_agent": use.user_agent,
        "count": use.count,
        "bucket_at": _moment(use.bucket),
    }


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _most(rows: Sequence[Any], window: str) -> list[tuple[str, int]]:
    found = [(row.name, getattr(row, window)) for row in rows if getattr(row, window)]
    return sorted(found, key=lambda each: (-each[1], each[0]))[:SHOWN]
