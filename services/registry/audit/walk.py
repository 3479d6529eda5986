"""One walk along a log's chain, as a pure function of its rows: what is wrong, and where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any, Final, Literal
from uuid import UUID

from services.registry.audit.chain import Chain, same

Kind = Literal["changed", "missing", "truncated", "forked", "forged", "head", "anchor"]

UNKNOWN: Final = 2**63


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at one place of a chain, or from one to another."""

    kind: Kind
    seq: int
    last_seq: int
    message: str
    event_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """A signed word on how far a log had come; `kept` says where it stands."""

    seq: int
    pruned: bool
    mac: bytes
    created_at: datetime
    signature: bytes
    kept: str = "the database"

    def is_ours(self, chain: Chain) -> bool:
        """Whether we signed it."""
        signed = chain.signature(self.seq, self.mac, self.created_at, pruned=self.pruned)
        return same(self.signature, signed)


class Walk:
    """Takes rows in the order of (seq, id), then the head; gives faults.

    It begins behind the newest anchor behind which events were forgotten on purpose.
    """

    def __init__(self, chain: Chain, anchors: Sequence[Anchor], head: Any) -> None:
        self._chain = chain
        self._anchors = [one for one in anchors if one.is_ours(chain)]
        self._foreign = [one for one in anchors if not one.is_ours(chain)]
        self.from_seq = self.seq = self.checked = 0
        self._mac = chain.start
        # Whether what stands at `seq` is ours, so that what follows must follow it.
        self._sound = True
        # The last place at which an event of ours stands.
        self._ours = 0
        self._begin_behind(self._anchors)
        ours = head is not None and self._is_ours(head)
        self._head_seq = head.seq if ours else UNKNOWN
        # By the place: what anchors say its event's MAC is.
        self._said = {one.seq: one for one in self._anchors if one.seq > self.from_seq}
        self._pending: list[Any] = []

    def lacks(self, rows: Sequence[Any]) -> bool:
        """Whether the next page leaves out a place."""
        places = [self.seq, *(row.seq for row in (*self._pending, *rows))]
        return any(later > max(one, self.from_seq) + 1 for one, later in pairwise(places))

    def forgive(self, anchors: Sequence[Anchor]) -> None:
        """Go on behind what was forgotten on purpose since the walk began."""
        pruned = [one for one in anchors if one.pruned and one.seq > self.from_seq]
        ours = [one for one in pruned if one.is_ours(self._chain)]
        self._anchors += ours
        self._begin_behind(ours)

    def _begin_behind(self, anchors: Sequence[Anchor]) -> None:
        pruned = [one for one in anchors if one.pruned]
        begin = max(pruned, key=lambda one: one.seq, default=None)
        if begin is None:
            return
        self.from_seq = begin.seq
        if begin.seq > self.seq:
            self.seq, self._mac, self._sound = begin.seq, begin.mac, True
            self._ours = begin.seq

    def take(self, rows: Sequence[Any]) -> Iterator[Fault]:
        """The faults of a page of rows; the last place of it waits for the next page."""
        groups = [list(of) for _, of in groupby([*self._pending, *rows], attrgetter("seq"))]
        self.checked += len(rows)
        self._pending = groups.pop() if groups else []
        for group in groups:
            yield from self._place(group)

    def end(self, head: Any) -> Iterator[Fault]:
        """The faults of what is left, of the head as it stands after the last row, of anchors."""
        if self._pending:
            yield from self._place(self._pending)
            self._pending = []
        yield from self._head(head)
        for one in self._foreign:
            yield Fault("anchor", one.seq, one.seq, f"an anchor in {one.kept} is not ours")
        beyond = max(self._anchors, key=lambda one: one.seq, default=None)
        last = max(self.seq, head.seq if head is not None and self._is_ours(head) else 0)
        if beyond is not None and beyond.seq > last:
            words = f"an anchor in {beyond.kept} of {beyond.created_at:%Y-%m-%d %H:%M} went on"
            yield Fault("truncated", last + 1, beyond.seq, f"{words} to {beyond.seq}")

    def _is_ours(self, head: Any) -> bool:
        return same(head.proof, self._chain.proof(head.seq, bytes(head.mac)))

    def _place(self, group: Sequence[Any]) -> Iterator[Fault]:
        """The faults of all that stand at one place."""
        seq = group[0].seq
        ours = [row for row in group if same(row.mac, self._chain.mac(row._asdict()))]
        others = [row for row in group if row not in ours]
        if seq <= self.from_seq:
            # Of a month that is forgotten in part: ids and places differ a little in their order.
            yield from (_at("changed", row, "is not as it was written") for row in others)
            return
        gap = seq > self.seq + 1
        if gap:
            yield Fault("missing", self.seq + 1, seq - 1, "events are gone")
        follows = [row for row in ours if same(row.previous, self._mac)]
        chosen = (follows or ours or others)[0]
        yield from self._strangers(ours, others, seq)
        yield from (
            _at("forked", row, "stands where another one stands") for row in ours if row != chosen
        )
        if ours and not follows and self._sound and not gap:
            yield _at("forked", chosen, "follows another event than the one before it")
        yield from self._anchored(chosen, sound=bool(ours))
        self.seq, self._mac, self._sound = seq, bytes(chosen.mac), bool(ours)
        self._ours = seq if ours else self._ours

    def _strangers(self, ours: Sequence[Any], others: Sequence[Any], seq: int) -> Iterator[Fault]:
        """Rows that are not ours: one alone at its place was changed, all else was made up."""
        made_up = others if ours or seq > self._head_seq else others[1:]
        for row in others:
            if row in made_up:
                yield _at("forged", row, "was not written by us")
            else:
                yield _at("changed", row, "is not as it was written")

    def _anchored(self, row: Any, *, sound: bool) -> Iterator[Fault]:
        said = self._said.get(row.seq)
        if said is not None and sound and not same(said.mac, row.mac):
            yield _at("anchor", row, f"is another one than the anchor in {said.kept} says")

    def _head(self, head: Any) -> Iterator[Fault]:
        if head is None:
            if self.seq or self._anchors:
                yield Fault("head", self.seq, self.seq, "the head is not there")
        elif not self._is_ours(head):
            yield Fault("head", head.seq, head.seq, "the head is not ours")
        elif head.seq > self.seq:
            yield Fault("truncated", self.seq + 1, head.seq, "the last events are gone")
        elif head.seq < self._ours:
            yield Fault("head", head.seq, self._ours, "the head stands behind the last event")
        elif head.seq == self.seq and self._sound and not same(head.mac, self._mac):
            yield Fault("head", head.seq, head.seq, "the head says another event than the last")


def _at(kind: Kind, row: Any, words: str) -> Fault:
    return Fault(kind, row.seq, row.seq, f"the event {words}", row.id)
