"""Positions as callers keep them: text that means something on the server it came from alone."""

import re
from typing import Final
from uuid import UUID

from services.chassis.errors import OutOfRange, invalid
from services.executor.store.positions import Position

_TOKEN: Final = re.compile(r"([0-9a-f]{1,16})\.([0-9]{1,20})\.([0-9a-f]{32})")
_LARGEST_XID: Final = 2**64 - 1


def written(position: Position, incarnation: int) -> str:
    """The token of a position."""
    return f"{incarnation % 2**64:x}.{position.xid}.{position.event_id.hex}"


def parsed(token: str, incarnation: int) -> Position:
    """The position of a token. Raises InvalidArgument, or OutOfRange for another server's."""
    parts = _TOKEN.fullmatch(token)
    if parts is None or int(parts[2]) > _LARGEST_XID:
        raise invalid("position", "is not one that was told")
    if int(parts[1], 16) != incarnation % 2**64:
        raise OutOfRange(
            "the position belongs to another database server; begin with the oldest",
            reason="POSITION_FOREIGN",
        )
    return Position(int(parts[2]), UUID(hex=parts[3]))
