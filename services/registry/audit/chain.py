"""The chain that holds an audit log together, as pure functions of a key.

Every event carries its place, the MAC of the event before it, and a MAC over all of itself. The key
is not in the database: who may write every row there can neither change an event nor make one up.
"""

import hmac
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.envelope import length_prefixed
from services.chassis.secret import Secret

_START: Final = b"tenon/audit-start/1"
_EVENT: Final = b"tenon/audit-event/1"
_HEAD: Final = b"tenon/audit-head/1"
_ANCHOR: Final = b"tenon/audit-anchor/1"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

# What an event says, in the order in which it is signed.
SIGNED: Final = (
    *("id", "told_id", "seq", "created_at", "actor_id", "actor_kind", "actor_name", "actor_role"),
    *("session", "address", "user_agent", "reason", "method", "action", "kind", "object"),
    *("object_id", "outcome", "severity", "error", "repeats", "fields", "risk", "revision"),
    *("request_id", "source", "commit", "file", "line", "previous"),
)

Row = Mapping[str, Any]


class Chain:
    """The chain of one log; its key is that log's own, so that no event fits into another's."""

    def __init__(self, key: Secret) -> None:
        self._key = key.reveal()

    @property
    def start(self) -> bytes:
        """What the first event follows, and the MAC of a head that nothing has moved."""
        return self._mac(_START)

    def mac(self, row: Row) -> bytes:
        """The MAC of an event as it is stored: of every column, the MAC before it among them."""
        return self._mac(_EVENT, *(_bytes(row[column]) for column in SIGNED))

    def proof(self, seq: int, mac: bytes) -> bytes:
        """What proves that a head was moved by us."""
        return self._mac(_HEAD, _bytes(seq), mac)

    def signature(self, seq: int, mac: bytes, at: datetime, *, pruned: bool) -> bytes:
        """What proves that an anchor was made by us."""
        return self._mac(_ANCHOR, _bytes(seq), mac, _bytes(at), b"pruned" if pruned else b"")

    def _mac(self, *parts: bytes) -> bytes:
        return hmac.digest(self._key, length_prefixed(*parts), "sha256")


# The chain of a tenant's log, or, for None, of the platform's.
Chains = Callable[[UUID | None], Chain]


def same(one: bytes, other: bytes) -> bool:
    """Whether two MACs are one; the database gives some as memory views."""
    return hmac.compare_digest(bytes(one), bytes(other))


def _bytes(value: Any) -> bytes:
    """A stored value in the one way it is signed."""
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, datetime):
        return str((value - _EPOCH) // _MICROSECOND).encode()
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
