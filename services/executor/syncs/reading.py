"""The records of a stream as services read them: in full, opened page by page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database
from services.chassis.envelope import Unsealable
from services.chassis.errors import FailedPrecondition
from services.executor.registry.credentials import LeasedKey, Secrets
from services.executor.store import sync_pages as store
from services.executor.store.sync_pages import KeptRecord
from services.executor.syncs import sealing
from services.executor.syncs.runs import Named, stream_of
from services.executor.syncs.streams import stream_name


@dataclass(frozen=True, slots=True)
class Record:
    """One thing of a stream; `data` is JSON, and empty where the provider has it no more."""

    key: str
    version: int
    changed_at: datetime
    deleted_at: datetime | None
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """Which records to list; `gone`: those that the provider has no more as well."""

    tenant_id: UUID
    stream: Named
    gone: bool = False
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Records by key, and the token of the next page."""

    records: tuple[Record, ...]
    next_page_token: str


class Records:
    """The use case."""

    def __init__(self, database: Database, secrets: Secrets) -> None:
        self._database = database
        self._secrets = secrets

    async def page(self, query: RecordQuery) -> RecordPage:
        """A page of records. Raises NotFound, and FailedPrecondition where one does not open."""
        name, size = stream_name(*query.stream), pages.page_size(query.page_size)
        marks = (str(query.tenant_id), name, query.gone)
        after = pages.after_of(query.page_token, *marks)
        stream = await stream_of(self._database, query.tenant_id, query.stream)
        kept = await store.records(
            self._database, query.tenant_id, stream.object_id, after, size + 1, gone=query.gone
        )
        shown = kept[:size]
        # Fewer came than there may be: the rest did not fit.
        more = len(kept) > size or await self._has_more(query, stream.object_id, shown)
        token = pages.next_token(shown[-1].key, *marks) if more else ""
        opened = await self._opened(query.tenant_id, stream.object_id, shown)
        return RecordPage(tuple(opened), token)

    async def _has_more(self, query: RecordQuery, stream_id: UUID, shown: list[KeptRecord]) -> bool:
        """Whether there is anything behind what is shown."""
        if not shown:
            return False
        after = shown[-1].key
        found = await store.records(
            self._database, query.tenant_id, stream_id, after, 1, gone=query.gone
        )
        return bool(found)

    async def _opened(
        self, tenant_id: UUID, stream_id: UUID, kept: list[KeptRecord]
    ) -> list[Record]:
        """Records, each opened with the key it was sealed with."""
        try:
            ids = {each.data_key_id for each in kept if each.data_key_id}
            keys = {one: await self._secrets.lease_key(tenant_id, one) for one in ids}
            return [_record(keys, tenant_id, stream_id, each) for each in kept]
        except Unsealable:
            raise FailedPrecondition(
                "a record does not open any more; reset the stream and transfer it once more",
                reason="RECORD_UNREADABLE",
            ) from None


def _record(
    keys: Mapping[UUID, LeasedKey], tenant_id: UUID, stream_id: UUID, kept: KeptRecord
) -> Record:
    data = b""
    if kept.data_key_id is not None:
        data = sealing.record_of(keys[kept.data_key_id], tenant_id, stream_id, kept)
    return Record(kept.key, kept.version, kept.changed_at, kept.deleted_at, data)
