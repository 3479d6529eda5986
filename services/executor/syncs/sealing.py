"""What streams keep at rest, sealed with the tenant's key: records and the places of transfers.

Each stream has a key of its own by which the digests of its records are made, so that they tell
what has changed also when the tenant has another key by now. It lies sealed, too.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID, uuid5

from services.chassis.secret import Secret
from services.executor.registry.credentials import LeasedKey
from services.executor.repeating import canonical
from services.executor.sealing import Row, opened_bytes, sealed_bytes
from services.executor.store import sync_runs
from services.executor.store.records import Fresh
from services.executor.store.sync_pages import KeptRecord
from services.providers.streams import Item, Place, Unlisted

RECORDS: Final = "executor.records"
RUNS: Final = "executor.sync_runs"
DATA: Final = "sealed_data"
PLACE: Final = "sealed_place"
STATES: Final = "executor.sync_states"
DIGEST_KEY: Final = "sealed_digest_key"


@dataclass(frozen=True, slots=True)
class Keys:
    """What a stream's records are sealed with, and what their digests are made by."""

    sealing: LeasedKey
    digesting: Secret


def fresh(keys: Keys, where: sync_runs.Place, items: Iterable[Item]) -> list[Fresh]:
    """The things of a page as they are kept, the last of each key. Raises Unlisted."""
    last = {item.key: item for item in items}
    try:
        return [_fresh(keys, where, each) for each in last.values()]
    except ValueError:
        raise Unlisted("a thing has a number that no double holds") from None


def sealed_digest_key(keys: Keys, where: sync_runs.Place) -> bytes:
    """A stream's digest key."""
    return sealed_bytes(keys.sealing, _state(where), DIGEST_KEY, keys.digesting.reveal())


def digest_key(key: LeasedKey, where: sync_runs.Place, sealed: bytes) -> Secret:
    """What `sealed_digest_key` was given. Raises Unsealable."""
    return Secret(opened_bytes(key, _state(where), DIGEST_KEY, sealed))


def record_of(key: LeasedKey, tenant_id: UUID, stream_id: UUID, kept: KeptRecord) -> bytes:
    """What a record that is there is, as JSON. Raises Unsealable."""
    row = _row(tenant_id, stream_id, kept.key)
    return opened_bytes(key, row, DATA, kept.sealed_data or b"")


def sealed_place(key: LeasedKey, where: sync_runs.Place, place: Place) -> bytes:
    """Where a transfer stands: a page's address may tell of what is on it."""
    row = Row(RUNS, where.tenant_id, where.run_id)
    return sealed_bytes(key, row, PLACE, canonical(asdict(place)))


def place_of(key: LeasedKey, where: sync_runs.Place, sealed: bytes) -> Place:
    """What `sealed_place` was given. Raises Unsealable."""
    row = Row(RUNS, where.tenant_id, where.run_id)
    said: Mapping[str, Any] = json.loads(opened_bytes(key, row, PLACE, sealed))
    return Place(**said)


def _fresh(keys: Keys, where: sync_runs.Place, item: Item) -> Fresh:
    data = canonical(item.said)
    digest = hmac.digest(keys.digesting.reveal(), data, hashlib.sha256)
    row = _row(where.tenant_id, where.stream_id, item.key)
    return Fresh(item.key, digest, sealed_bytes(keys.sealing, row, DATA, data))


def _state(where: sync_runs.Place) -> Row:
    return Row(STATES, where.tenant_id, where.stream_id)


def _row(tenant_id: UUID, stream_id: UUID, key: str) -> Row:
    return Row(RECORDS, tenant_id, uuid5(stream_id, key))
