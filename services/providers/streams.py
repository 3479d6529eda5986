"""A provider's lists of things: how they are asked for, page by page, and how their things are told
apart. Pure.

What has changed since a time is asked for by a *cursor*, a field of each thing by which the list is
ordered. Page numbers shift while things move to the end of such a list, so that one would be passed
over. So the next page is not the provider's next one, but what has changed since the last thing of
this one.

Only where more things than a page holds are of one moment, or where a list has no such order, the
provider's own pages are *walked*. So that none is passed over there, they are walked again until
they are what they were before: a thing that changes leaves its moment for good, so that this ends.
A list without an order that is never twice the same is refused.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import pairwise
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

from services.chassis.errors import FailedPrecondition
from services.providers.bodies import WHOLE, BodyPath, at

MOST_RESTARTS: Final = 3
"""How often a transfer goes back to its last cursor because a page's address has ended."""
MOST_WALKS: Final = 5
"""How often a list without an order is read again because it was another one."""
LONGEST_WORD: Final = 500
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
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
    what has been on the `pages` of it up to here, and `walked` what was on all of them the last of
    `walks` times. `mark` is one of those pages, which must not come again. `tries`: how often its
    next page has failed to come.
    """

    since: str = ""
    url: str = ""
    high: str = ""
    in_order: bool = True
    walk: int = 0
    walked: int = 0
    walks: int = 0
    pages: int = 0
    mark: str = ""
    restarts: int = 0
    tries: int = 0

    def query(self, stream: Stream) -> dict[str, _Value]:
        """What is asked for, where that is no page's address."""
        changed = {stream.cursor.query: self.since} if stream.cursor and self.since else {}
        return {**stream.query, **changed}

    def failed(self) -> "Place":
        """The same, once its next page has failed to come."""
        return replace(self, tries=self.tries + 1)

    def restarted(self) -> "Place | None":
        """The same without the page's address, which has been forgotten there; None: too often."""
        if not self.url or self.restarts >= MOST_RESTARTS:
            return None
        return replace(_anew(self), restarts=self.restarts + 1)

    def after(self, items: Sequence[Item], url: str | None) -> "Place | None":
        """Where it stands once a page is here, whose next one is at `url`; None: that was all.

        Raises Unlisted where pages come again, and where a list is never twice the same.
        """
        seen = [each.cursor for each in items if each.cursor]
        in_order = self.in_order and all(_rank(a) <= _rank(b) for a, b in pairwise(seen))
        later = in_order and bool(seen) and _rank(seen[-1]) > _rank(self.since)
        walk, high = _with(self.walk, items), self.reached(items)
        now = replace(self, high=high, in_order=in_order, walk=walk, tries=0)
        if url and not later:
            return _walking(now, url)
        if self.url and walk != self.walked:
            return _walked_again(now)
        return replace(_anew(now), since=seen[-1], walked=0, walks=0, restarts=0) if url else None

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


def _walking(place: Place, url: str) -> Place:
    """At the next page of a walk; those at powers of two are marked (R. P. Brent, 1980)."""
    if url in {place.url, place.mark}:
        raise Unlisted("the list's pages come again and again")
    pages = place.pages + 1
    mark = url if pages & (pages - 1) == 0 else place.mark
    return replace(place, url=url, pages=pages, mark=mark)


def _walked_again(place: Place) -> Place:
    """At the first page of a walk, which was not this time what it was the last time."""
    settles = place.in_order and bool(place.since)
    if place.walks >= MOST_WALKS and not settles:
        raise Unlisted("the list is another one each time it is read to its end")
    return replace(_anew(place), walked=place.walk, walks=place.walks + 1)


def _anew(place: Place) -> Place:
    return replace(place, url="", walk=0, pages=0, mark="")


def _item(stream: Stream, said: Mapping[str, Any]) -> Item:
    key = _word(at(said, stream.key))
    if not key:
        raise Unlisted(f"a thing has no {stream.key} that could tell it from the others")
    cursor = _word(at(said, stream.cursor.field)) if stream.cursor else ""
    if stream.cursor and not cursor:
        raise Unlisted(f"a thing has no {stream.cursor.field}, by which its list is ordered")
    return Item(key, said, cursor)


def _word(value: object) -> str:
    """A short text or a whole number; empty for all else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = value if isinstance(value, str) else str(value) if abs(value) < 10**30 else ""
    return text if len(text) <= LONGEST_WORD and text.isprintable() else ""


def _with(walk: int, items: Sequence[Item]) -> int:
    """What has been on pages, with those of one more; the order does not count."""
    words = (f"{each.key}\0{each.cursor}".encode() for each in items)
    found = (int.from_bytes(blake2b(each, digest_size=7).digest()) for each in words)
    return (walk + sum(found)) % 2**56


def _rank(cursor: str) -> tuple[int, int, str]:
    """Whole numbers by their value, times (ISO 8601) by theirs, all else as text after these."""
    if not cursor:
        return (0, 0, "")
    if cursor.isascii() and cursor.isdecimal():
        return (1, int(cursor[:30]), "")
    if _TIME.match(cursor):
        with suppress(ValueError, OverflowError):
            said = datetime.fromisoformat(cursor)
            since = said.replace(tzinfo=said.tzinfo or UTC) - _EPOCH
            return (1, since // timedelta(microseconds=1), "")
    return (2, 0, cursor)
