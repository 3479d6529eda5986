"""Reading the audit logs: pages by filters, single events, counts a day, everything as a stream."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Statement
from services.chassis.errors import NotFound, invalid
from services.chassis.ids import uuid7_floor
from services.registry.audit.log import SEVERITIES
from services.registry.store import audit as store
from services.registry.store.audit import LAST

EXPORT_PAGE: Final = 500
SUMMARY_DAYS: Final = 30
LONGEST_SUMMARY: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are asked for; what is None does not filter.

    `before` is an id: only older ones; `since` and `until` are times, the latter not included.
    """

    before: UUID = LAST
    kind: str | None = None
    object: str | None = None
    actor: str | None = None
    action: str | None = None
    outcome: str | None = None
    min_severity: str | None = None
    min_risk: int = 0
    since: datetime | None = None
    until: datetime | None = None
    pending: bool = False

    def parameters(self) -> dict[str, Any]:
        """As the statement takes them. Raises InvalidArgument for a severity that is none."""
        actor_id = _uuid(self.actor)
        words = {name: value for name, value in asdict(self).items() if name not in _DERIVED}
        return words | {
            "actor_id": actor_id,
            "actor_name": self.actor if actor_id is None else None,
            "severities": _at_least(self.min_severity),
            "everything": not self.pending,
            "before": self._oldest(),
        }

    def _oldest(self) -> UUID:
        """The id to begin below: an id says when, so that a time finds its month."""
        if self.until is None:
            return self.before
        # What a transaction took its time to append has an older id, never a much younger one.
        return min(self.before, uuid7_floor(self.until + _SLACK))


_DERIVED: Final = {"actor", "min_severity", "pending", "before"}
_SLACK: Final = timedelta(minutes=5)


class Audit:
    """Reads a log: a tenant's by its id, the platform's by None."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, tenant_id: UUID | None, asked: Filter, size: int) -> list[Any]:
        """Rows of events, the newest first, with their reviews."""
        parameters = {**asked.parameters(), "size": size}
        return await self.read(tenant_id, store.book_of(tenant_id).page, parameters)

    async def get(self, tenant_id: UUID | None, event_id: UUID) -> Any:
        """One event. Raises NotFound."""
        book = store.book_of(tenant_id)
        rows = await self.read(tenant_id, book.get, {"event_id": event_id})
        return _one(rows, event_id)

    async def summary(
        self, tenant_id: UUID | None, since: datetime | None, until: datetime | None
    ) -> list[Any]:
        """How much was done a day (UTC), by kind, action, risk and outcome; 30 days if not said.

        Raises InvalidArgument for more than a year.
        """
        until = until or datetime.now(UTC) + timedelta(days=1)
        since = since or until - timedelta(days=SUMMARY_DAYS)
        if not timedelta() < until - since <= LONGEST_SUMMARY:
            raise invalid("from_time", "must be before to_time, by a year at most")
        book = store.book_of(tenant_id)
        return await self.read(tenant_id, book.summary, {"since": since, "until": until})

    async def export(self, tenant_id: UUID | None, asked: Filter) -> AsyncIterator[list[Any]]:
        """Every event that is asked for, the newest first, by pages."""
        while rows := await self.page(tenant_id, asked, EXPORT_PAGE):
            yield rows
            asked = replace(asked, before=rows[-1].id)

    async def read(
        self, tenant_id: UUID | None, statement: Statement, parameters: Mapping[str, Any]
    ) -> list[Any]:
        """Rows of a statement of the log's book."""
        if tenant_id is not None:
            return await self._database.read(
                tenant_id, statement, **store.scope_of(tenant_id), **parameters
            )
        async with self._database.system() as transaction:
            return await transaction.all(statement, **parameters)


def _one(rows: list[Any], event_id: UUID) -> Any:
    if not rows:
        raise NotFound(f"auditEvents/{event_id} does not exist")
    return rows[0]


def _at_least(severity: str | None) -> list[str] | None:
    """The severities from one on."""
    if severity is None:
        return None
    known = list(SEVERITIES.values())
    if severity not in known:
        raise invalid("min_severity", f"must be one of {', '.join(known)}")
    return known[known.index(severity) :]


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None
