"""Anchors: signed words on how far each log has come, in the database and, if told, outside it.

Whoever may write the whole database can take back the last events together with the head; an
anchor that they cannot reach tells. And no month of a log goes before an anchor stands for its
last event, which is where `VerifyChain` begins afterwards.
"""

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database
from services.chassis.ids import uuid7_floor
from services.chassis.retention import Clock, utc_now
from services.registry.audit.chain import Chains, same
from services.registry.audit.walk import Anchor
from services.registry.store import audit as store

log = logging.getLogger(__name__)

LEADER: Final = "registry.anchors"
EVERY_S: Final = 900.0
TENANTS_AT_ONCE: Final = 200

# A log's head or last event: whose, how far, and the MAC there.
Standing = tuple[UUID | None, int, bytes]


class Anchors:
    """Makes and reads anchors; `file` is where they are also kept, a line each."""

    def __init__(
        self, database: Database, chains: Chains, file: Path | None = None, clock: Clock = utc_now
    ) -> None:
        self._database = database
        self._chains = chains
        self._file = file
        self._clock = clock

    async def follow(self) -> None:
        """Anchor what has grown, at once and then every quarter of an hour. Never returns."""
        while True:
            anchored = await self.keep()
            log.info("anchored %d audit logs", anchored)
            await asyncio.sleep(EVERY_S)

    async def keep(self) -> int:
        """Anchor every log that has grown since the last time; how many."""
        async with self._database.system() as transaction:
            heads = [(row.tenant_id, row) for row in await transaction.all(store.GROWN)]
            platform = await transaction.one(store.PLATFORM.head)
        if platform is not None and platform.seq > 0:
            heads.append((None, platform))
        sound: list[Standing] = [
            (tenant_id, head.seq, bytes(head.mac))
            for tenant_id, head in heads
            if self._is_ours(tenant_id, head)
        ]
        await self._write(sound, pruned=False)
        return len(sound)

    async def close(self, table: str, month: date) -> None:
        """Anchor the last event of every log in a month that is about to go."""
        low, high = uuid7_floor(_moment(month)), uuid7_floor(_moment(_next(month)))
        within = {"low": low, "high": high}
        standing: list[Standing] = []
        if table == "platform_audit_events":
            async with self._database.system() as transaction:
                last = await transaction.one(store.PLATFORM.last_between, **within)
            standing += [(None, last.seq, bytes(last.mac))] if last else []
        elif table == "audit_events":
            standing += [each async for each in self._last_of_tenants(within)]
        await self._write(standing, pruned=True)

    async def known(self, tenant_id: UUID | None) -> list[Anchor]:
        """All anchors of a log, wherever they are."""
        book, scope = store.book_of(tenant_id), store.scope_of(tenant_id)
        if tenant_id is not None:
            rows = await self._database.read(tenant_id, book.anchors, **scope)
        else:
            async with self._database.system() as transaction:
                rows = await transaction.all(book.anchors)
        found = [
            Anchor(row.seq, row.pruned, bytes(row.mac), row.created_at, bytes(row.signature))
            for row in rows
        ]
        return found + await asyncio.to_thread(lambda: list(self._outside(tenant_id)))

    async def _last_of_tenants(self, within: dict[str, UUID]) -> Any:
        async with self._database.system() as transaction:
            tenants = [row.tenant_id for row in await transaction.all(store.HEADED)]
        for tenant_id in tenants:
            scope = store.scope_of(tenant_id)
            for row in await self._database.read(
                tenant_id, store.TENANTS.last_between, **scope, **within
            ):
                yield tenant_id, row.seq, bytes(row.mac)

    def _is_ours(self, tenant_id: UUID | None, head: Any) -> bool:
        ours = same(head.proof, self._chains(tenant_id).proof(head.seq, bytes(head.mac)))
        if not ours:
            log.error("the head of the audit log of %s is not ours", tenant_id or "the platform")
        return ours

    async def _write(self, standing: list[Standing], *, pruned: bool) -> None:
        """Sign and keep: in the database, then outside."""
        signed = [(one[0], self._signed(one, pruned=pruned)) for one in standing]
        for begin in range(0, len(signed), TENANTS_AT_ONCE):
            part = signed[begin : begin + TENANTS_AT_ONCE]
            work = {tenant_id: [_adding(tenant_id, one)] for tenant_id, one in part if tenant_id}
            if work:
                async with self._database.across() as transaction:
                    await transaction.each(work, last=True)
        for one in (anchor for tenant_id, anchor in signed if tenant_id is None):
            async with self._database.system() as transaction:
                await transaction.pipeline([_adding(None, one)])
        if self._file is not None and signed:
            lines = "".join(f"{_line(tenant_id, anchor)}\n" for tenant_id, anchor in signed)
            await asyncio.to_thread(_append, self._file, lines)

    def _signed(self, standing: Standing, *, pruned: bool) -> Anchor:
        tenant_id, seq, mac = standing
        now = self._clock()
        signature = self._chains(tenant_id).signature(seq, mac, now, pruned=pruned)
        return Anchor(seq, pruned, mac, now, signature)

    def _outside(self, tenant_id: UUID | None) -> Iterator[Anchor]:
        if self._file is None or not self._file.exists():
            return
        for text in self._file.read_text().splitlines():
            try:
                words = json.loads(text)
                if words["tenant"] == str(tenant_id or ""):
                    yield _read(words)
            except (ValueError, KeyError, TypeError):
                # The machine may have stopped in the middle of a line.
                log.warning("a line of the anchor file cannot be read")


def _adding(tenant_id: UUID | None, one: Anchor) -> Bound:
    row = {name: getattr(one, name) for name in ("seq", "pruned", "mac", "created_at", "signature")}
    return Bound(store.book_of(tenant_id).add_anchor, {**store.scope_of(tenant_id), **row})


def _line(tenant_id: UUID | None, one: Anchor) -> str:
    words = {
        "tenant": str(tenant_id or ""),
        "seq": one.seq,
        "pruned": one.pruned,
        "mac": one.mac.hex(),
        "time": one.created_at.isoformat(),
        "signature": one.signature.hex(),
    }
    return json.dumps(words)


def _read(words: dict[str, Any]) -> Anchor:
    return Anchor(
        int(words["seq"]),
        bool(words["pruned"]),
        bytes.fromhex(words["mac"]),
        datetime.fromisoformat(words["time"]),
        bytes.fromhex(words["signature"]),
        "the anchor file",
    )


def _append(file: Path, lines: str) -> None:
    with file.open("a") as out:
        out.write(lines)
        out.flush()
        os.fsync(out.fileno())


def _moment(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def _next(month: date) -> date:
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)
