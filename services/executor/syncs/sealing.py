"""What streams keep at rest: records and the places of transfers, sealed with the tenant's key."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final
from uuid import UUID, uuid5

from services.chassis import envelope
from services.executor.registry.credentials import LeasedKey
from services.executor.repeating import canonical
from services.executor.sealing import Row, opened_bytes, sealed_bytes
from services.executor.store import sync_runs
from services.executor.store.records import Fresh
from services.executor.store.sync_pages import KeptRecord
from services.providers.streams import Item, Place

RECORDS: Final = "executor.records"
RUNS: Final = "executor.sync_runs"
DATA: Final = "sealed_data"
PLACE: Final = "sealed_place"
DIGESTS: Final = "records/1"


def fresh(key: LeasedKey, where: sync_runs.Place, items: Iterable[Item]) -> list[Fresh]:
    """The things of a page as they are kept, the last of each key.

    Their digests are keyed by the tenant's key: they tell whether a thing has changed since it was
    kept under the same key, and nothing else of it.
    """
    digesting = envelope.derive(key.key, DIGESTS).reveal()
    return [_fresh(key, digesting, where, each) for each in {i.key: i for i in items}.values()]


def record_of(key: LeasedKey, tenant_id: UUID, stream_id: UUID, kept: KeptRecord) -> dict[str, Any]:
    """What a record that is there is. Raises Unsealable."""
    row = _row(tenant_id, stream_id, kept.key)
    said: dict[str, Any] = json.loads(opened_bytes(key, row, DATA, kept.sealed_data or b""))
    return said


def sealed_place(key: LeasedKey, where: sync_runs.Place, place: Place) -> bytes:
    """Where a transfer stands: a page's address may tell of what is on it."""
    row = Row(RUNS, where.tenant_id, where.run_id)
    return sealed_bytes(key, row, PLACE, canonical(asdict(place)))


def place_of(key: LeasedKey, where: sync_runs.Place, sealed: bytes) -> Place:
    """What `sealed_place` was given. Raises Unsealable."""
    row = Row(RUNS, where.tenant_id, where.run_id)
    said: Mapping[str, Any] = json.loads(opened_bytes(key, row, PLACE, sealed))
    return Place(**said)


def _fresh(key: LeasedKey, digesting: bytes, where: sync_runs.Place, item: Item) -> Fresh:
    data = canonical(item.said)
    digest = hmac.digest(digesting, data, hashlib.sha256)
    row = _row(where.tenant_id, where.stream_id, item.key)
    return Fresh(item.key, digest, sealed_bytes(key, row, DATA, data))


def _row(tenant_id: UUID, stream_id: UUID, key: str) -> Row:
    return Row(RECORDS, tenant_id, uuid5(stream_id, key))
