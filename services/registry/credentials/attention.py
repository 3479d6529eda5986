"""Looks after credentials: what rotates by itself does, of others it is told; a leader's job.

Tokens are refreshed ahead of their end by a loop of its own, so that a provider that answers slowly
holds up nothing else.
"""

import asyncio
import logging
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database
from services.chassis.errors import TenonError
from services.chassis.rules import Risk
from services.registry.audit.log import Event, Log
from services.registry.credentials.changing import (
    KIND,
    SECRET,
    WEBHOOK_SECRET,
    Changing,
    new_webhook_secret,
)
from services.registry.credentials.sealing import Facts
from services.registry.credentials.tampering import ITSELF
from services.registry.oauth.refreshing import Refreshing
from services.registry.store import credential_status, invalidations
from services.registry.store import credentials as store
from services.registry.store import oauth as oauth_store

log = logging.getLogger(__name__)

LEADER: Final = "registry.credentials"
REFRESHER: Final = "registry.refresh"
EVERY_S: Final = 5.0
REFRESH_EVERY_S: Final = 2.0
BATCH: Final = 200
AT_ONCE: Final = 16
GENERATED: Final = "generated"


class Attention:
    """The loop for what is due."""

    def __init__(self, database: Database, changing: Changing, events: Log) -> None:
        self._database = database
        self._changing = changing
        self._log = events

    async def follow(self) -> None:
        """Do what is due, and look again. Never returns."""
        while True:
            await self.round()
            await asyncio.sleep(EVERY_S)

    async def round(self) -> None:
        """All that is due now; what fails is left for the next round."""
        async with self._database.system() as transaction:
            due = await transaction.all(credential_status.DUE, size=BATCH)
        for row in due:
            try:
                await self._see_to(row.tenant_id, row.credential_id)
            except TenonError as error:
                log.warning("credential %s: %s", row.credential_id, error.message)

    async def _see_to(self, tenant_id: UUID, credential_id: UUID) -> None:
        place = {"tenant_id": tenant_id, "credential_id": credential_id}
        async with self._database.tenant(tenant_id) as transaction:
            _, rows = await transaction.pipeline(
                [Bound(store.HOLD_ONE, place), Bound(credential_status.WHAT_IS_DUE, place)]
            )
            if not rows:
                return
            row, calls, events = rows[0], list[Bound](), list[Event]()
            if row.rotation_is_due and _rotates_itself(row):
                slug = (await transaction.one(store.SLUG, tenant_id=tenant_id)).slug
                values = {SECRET: new_webhook_secret(row.generate)}
                facts = Facts(GENERATED, "registry")
                calls += await self._changing.turning(
                    transaction, slug, row, values, facts, _overlap(row)
                )
                calls.append(invalidations.telling(credential=(tenant_id, row.name)))
                events.append(_event("rotate", row))
            elif row.rotation_is_due:
                calls += _noticed(place, "rotation_due", credential_status.ROTATION_NOTICED)
                events.append(_event("rotation_due", row))
            if row.warning_is_due:
                calls += _noticed(place, "expiring", credential_status.WARNED)
                events.append(_event("expiring", row))
            await transaction.pipeline(calls)
            await self._log.append(transaction, tenant_id, ITSELF, events)


class Refresher:
    """The loop that refreshes tokens ahead of their end."""

    def __init__(self, database: Database, refreshing: Refreshing) -> None:
        self._database = database
        self._refreshing = refreshing

    async def follow(self) -> None:
        """Refresh what is due, and look again, at once where there may be more. Never returns."""
        while True:
            if await self.round() < BATCH:
                await asyncio.sleep(REFRESH_EVERY_S)

    async def round(self) -> int:
        """Refresh what is due now, some at once; how many those were."""
        async with self._database.system() as transaction:
            due = await transaction.all(oauth_store.DUE, size=BATCH)
        gate = asyncio.Semaphore(AT_ONCE)

        async def refresh(row: Any) -> None:
            async with gate:
                try:
                    await self._refreshing.refresh(row.tenant_id, row.credential_id, None)
                except TenonError as error:
                    log.warning("credential %s: %s", row.credential_id, error.message)

        await asyncio.gather(*map(refresh, due))
        return len(due)


def _rotates_itself(row: Any) -> bool:
    return bool(row.type == WEBHOOK_SECRET and row.origin == GENERATED)


def _overlap(row: Any) -> timedelta:
    return timedelta(seconds=float(row.rotation["overlap"].removesuffix("s")))


def _noticed(place: dict[str, UUID], what: str, done: Any) -> list[Bound]:
    the = {"the_tenant_id": place["tenant_id"], "the_credential_id": place["credential_id"]}
    return [Bound(credential_status.NOTICED, {**the, "what": what}), Bound(done, the)]


def _event(action: str, row: Any) -> Event:
    return Event(action, KIND, row.name, row.credential_id, Risk.HIGH, alarming=True)
