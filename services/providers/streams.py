"""A provider's lists of things: how they are asked for, page by page, and how their things are told
apart. Pure.

What has changed since a time is asked for by a *cursor*, a field of each thing by which the list is
ordered. Page numbers shift while things move to the end of such a list, so that one would be passed
over. So the next page is not the provider's next one, but what has changed since the last thing of
this one.

Only where more things than a page holds are of one moment, the provider's own pages are *walked*.
So that none is passed over there, they are walked again until they are what they were before: a
thing that changes leaves that moment for good, so that this ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

from services.chassis.errors import FailedPrecondition
from services.providers.bodies import WHOLE, BodyPath, at

MOST_RESTARTS: Final = 3
"""How often a transfer goes back to its last cursor because a page's address has ended."""
LONGEST_KEY: Final = 500
_Value = str | int | bool


class Cursor(BaseModel):
    """By what a list is ordered, the oldest first: `field` of each thing.

    `query` asks for those whose value is the same or later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: BodyPath
    query: str


class Stream(BaseModel):
    """A list: the operation that brings a page of it, and where on that things and their keys are.

    Without a `cursor` all of it is asked for each time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    operation: str
    query: dict[str, _Value] = {}
    items: BodyPath = WHOLE
    key: BodyPath
    cursor: Cursor | None = None


class Unlisted(FailedPrecondition):
    """An answer that is no page of the stream."""

    reason = "STREAM_UNREADABLE"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing of a list; `cursor` is empty where the stream has none."""

    key: str
    said: Mapping[str, Any] = field(repr=False)
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a transfer stands: what it asks for next, and the latest cursor it has seen.

    `url` is the provider's own next page of what was asked for, where that is next. `walk` tells
    what has been on such pages from the first one on, and `walked` what was on all of them before.
    """

    since: str = ""
    url: str = ""
    high: str = ""
    restarts: int = 0
    walk: int = 0
    walked: int = 0

    def query(self, stream: Stream) -> dict[str, _Value]:
        """What is asked for, where that is no page's address."""
        changed = {stream.cursor.query: self.since} if stream.cursor and self.since else {}
        return {**stream.query, **changed}

    def restarted(self) -> "Place | None":
        """The same without the page's address, which has been forgotten there; None: too often."""
        if not self.url or self.restarts >= MOST_RESTARTS:
            return None
        return replace(self, url="", walk=0, restarts=self.restarts + 1)

    def after(self, items: Sequence[Item], url: str | None) -> "Place | None":
        """Where it stands once a page is here, whose next one is at `url`; None: that was all.

        Raises Unlisted for a page that is its own next one.
        """
        if url and url == self.url:
            raise Unlisted("the list's next page is the page itself")
        seen = [each.cursor for each in items if each.cursor]
        in_order = bool(seen) and all(_rank(a) <= _rank(b) for a, b in pairwise(seen))
        later = in_order and _rank(seen[-1]) > _rank(self.since)
        now = replace(self, high=self.reached(items), walk=_with(self.walk, items))
        if url and not later:
            return replace(now, url=url)
        if self.url and in_order and now.walk != self.walked:
            return replace(now, url="", walk=0, walked=now.walk)
        return replace(now, since=seen[-1], url="", walk=0, walked=0) if url else None

    def reached(self, items: Sequence[Item]) -> str:
        """The latest cursor that is seen, once a page is here."""
        return max([self.high, *(each.cursor for each in items)], key=_rank)


def items_of(stream: Stream, body: object) -> list[Item]:
    """The things on a page. Raises Unlisted where it is none, or a thing has no key."""
    found = at(body, stream.items)
    if found is None and stream.items != WHOLE:
        # An empty list is left out by some.
        found = []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Unlisted("the answer has no list of objects where the stream's things stand")
    return [_item(stream, each) for each in found]


def _item(stream: Stream, said: Mapping[str, Any]) -> Item:
    key = _word(at(said, stream.key))
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise Unlisted(f"a thing has no {stream.key} that could tell it from the others")
    cursor = _word(at(said, stream.cursor.field)) if stream.cursor else ""
    if stream.cursor and not cursor:
        raise Unlisted(f"a thing has no {stream.cursor.field}, by which its list is ordered")
    return Item(key, said, cursor)


def _word(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return value if isinstance(value, str) else str(value) if abs(value) < 10**30 else ""


def _with(walk: int, items: Sequence[Item]) -> int:
    """What has been on pages, with those of one more; the order does not count."""
    words = (f"{each.key}\0{each.cursor}".encode() for each in items)
    found = (int.from_bytes(blake2b(each, digest_size=7).digest()) for each in words)
    return (walk + sum(found)) % 2**56


def _rank(cursor: str) -> tuple[int, int, str]:
    """Whole numbers by their value, all else (times of ISO 8601) as text; nothing is before all."""
    if cursor.isascii() and cursor.isdecimal():
        return (1, int(cursor[:30]), "")
    return (1 if cursor else 0, 0, cursor)
