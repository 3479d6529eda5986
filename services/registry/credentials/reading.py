"""Credentials as people see them: masked, with how they stand and how they are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import NotFound
from services.registry.credentials.status import Finding, findings
from services.registry.store import credential_uses
from services.registry.store import credentials as store

DAY: Final = timedelta(hours=24)
MONTH: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Shown:
    """One credential's row with what it shows, its use and, where asked for, its versions."""

    row: Any
    findings: tuple[Finding, ...]
    usage: Any = None
    versions: Sequence[Any] = ()


class Reading:
    """Reads them; nothing sealed is read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, tenant_id: UUID, after: str, size: int, finding: Finding | None = None
    ) -> list[Shown]:
        """By name, from behind a name on; only those that show a finding, if one is named."""
        found: list[Shown] = []
        while len(found) < size:
            rows = await self._database.read(
                tenant_id, store.LIST, tenant_id=tenant_id, after=after, size=size
            )
            usage = await self._usage(tenant_id, rows)
            shown = [Shown(row, tuple(findings(row)), usage.get(row.credential_id)) for row in rows]
            found += [one for one in shown if finding is None or finding in one.findings]
            if len(rows) < size:
                break
            after = rows[-1].name
        return found[:size]

    async def get(self, tenant_id: UUID, name: str) -> Shown:
        """One with its versions."""
        rows = await self._database.read(tenant_id, store.GET, tenant_id=tenant_id, name=name)
        if not rows:
            raise NotFound(f"there is no credential {name}")
        row = rows[0]
        versions = await self._database.read(
            tenant_id, store.VERSIONS, tenant_id=tenant_id, credential_id=row.credential_id
        )
        usage = await self._usage(tenant_id, rows)
        return Shown(row, tuple(findings(row)), usage.get(row.credential_id), versions)

    async def _usage(self, tenant_id: UUID, rows: Sequence[Any]) -> Mapping[UUID, Any]:
        ids = [row.credential_id for row in rows]
        if not ids:
            return {}
        windows = await self._database.read(
            tenant_id, credential_uses.WINDOWS, tenant_id=tenant_id, ids=ids
        )
        return {window.credential_id: window for window in windows}
