"""Positions as callers keep them: text that means something on the server it came from alone.

One that was told in a group which was reset before says in which generation.
"""

import re
from typing import Final
from uuid import UUID

from services.chassis.errors import OutOfRange, invalid
from services.executor.store.consumer_groups import Reached
from services.executor.store.positions import Position

_TOKEN: Final = re.compile(
    r"([0-9a-f]{1,16})\.([0-9]{1,20})\.([0-9a-f]{32})(?:\.([1-9][0-9]{0,17}))?"
)
_LARGEST_XID: Final = 2**64 - 1


def written(reached: Reached, incarnation: int) -> str:
    """The token of a position."""
    position, generation = reached.position, reached.generation
    token = f"{incarnation % 2**64:x}.{position.xid}.{position.event_id.hex}"
    return f"{token}.{generation}" if generation else token


def parsed(token: str, incarnation: int) -> Reached:
    """The position of a token. Raises InvalidArgument, or OutOfRange for another server's."""
    parts = _TOKEN.fullmatch(token)
    if parts is None or int(parts[2]) > _LARGEST_XID:
        raise invalid("position", "is not one that was told")
    if int(parts[1], 16) != incarnation % 2**64:
        raise OutOfRange(
            "the position belongs to another database server; begin with the oldest",
            reason="POSITION_FOREIGN",
        )
    return Reached(Position(int(parts[2]), UUID(hex=parts[3])), int(parts[4] or 0))
