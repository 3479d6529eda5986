"""Refreshes tokens so that a refresh token is redeemed once, whoever dies when.

Under the status row's lock a refresher takes a *lease* with a fence, and in the same transaction
writes its *intent*: the version whose refresh token it is about to redeem. The call's timeout is
below the lease, and who comes to the call late does not make it. What comes back is recorded by
compare-and-set on the version, so that a good answer is never thrown away; a failure counts only
under its fence. Who finds an intent without an end knows that a redemption may have happened: it
tries once more, and if that is refused, the answer is lost for good and the account's owner must
connect again.

A provider may handle a request long after we have given it up. Whoever redeemed the same token in
between would make that request a replay, by which the provider knows a thief, and takes the new
tokens back as well. So nobody tries again after a call without an answer until one lease more is
over. All times are the database's, but how long a process itself has taken.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import Aborted, NotFound, TenonError, Unavailable
from services.chassis.rules import Risk
from services.providers.oauth2 import NotOAuth, Tokens
from services.registry.audit.log import Event, Log
from services.registry.credentials.resolving import Expired
from services.registry.credentials.sealing import Facts, Sealing, Version
from services.registry.credentials.status import planning
from services.registry.credentials.tampering import ITSELF
from services.registry.oauth.exchange import Exchange
from services.registry.oauth.failures import COOL_S, Cooling, is_final, words
from services.registry.oauth.leases import (
    WAIT_S,
    Lease,
    Leases,
    Reconnect,
    RefreshFailing,
    loop_time,
)
from services.registry.oauth.redeeming import Redeeming
from services.registry.store import credentials as credential_store
from services.registry.store import invalidations
from services.registry.store import oauth as store

log = logging.getLogger(__name__)

BEFORE_LEASE: Final = failpoints.declare(
    "refresh.before_lease", "nothing was sent: it is refreshed"
)
AFTER_INTENT: Final = failpoints.declare(
    "refresh.after_intent", "nothing was sent: it is refreshed"
)
AFTER_CALL: Final = failpoints.declare("refresh.after_call", "the answer is lost: reconnect")
BEFORE_RECORD: Final = failpoints.declare("refresh.before_record", "the answer is lost: reconnect")
AFTER_RECORD: Final = failpoints.declare("refresh.after_record", "it is refreshed")

RECORDING_S: Final = 120.0
"""So long it is tried to record an answer while the database is away: it is not given twice."""
OAUTH2: Final = "oauth2"
LOST: Final = "the provider's answer was lost"
LATE: Final = "its tokens were recorded late; it is refreshed to see whether they hold"

_Asked = tuple[UUID, UUID, int | None]


class Refreshing:
    """The one way to newer tokens."""

    def __init__(
        self,
        database: Database,
        sealing: Sealing,
        exchange: Exchange,
        events: Log,
        *,
        cool_s: float = COOL_S,
        rng: Random | None = None,
    ) -> None:
        self._database = database
        self._sealing = sealing
        self._log = events
        self._leases = Leases(database, exchange.timeout_s)
        self._redeeming = Redeeming(sealing, exchange)
        self._cooling = Cooling(cool_s, self._leases.lasting_s, rng)
        self._under_way: dict[_Asked, asyncio.Task[None]] = {}

    async def newer(self, tenant_id: UUID, name: str, version: int) -> None:
        """See that a credential has a newer version than that one.

        Raises Reconnect where there can be none, RefreshFailing where there is none for now.
        """
        rows = await self._database.read(tenant_id, store.NAMED, tenant_id=tenant_id, name=name)
        if not rows:
            raise NotFound(f"there is no credential {name}")
        if rows[0].type != OAUTH2:
            raise NotOAuth(f"credential {name} is of type {rows[0].type}, and has no tokens")
        if rows[0].version == version:
            await self.refresh(tenant_id, rows[0].credential_id, version)

    async def refresh(self, tenant_id: UUID, credential_id: UUID, version: int | None) -> None:
        """The same by the credential's id; without a version: the current one, if it is due.

        However many of this process ask for the same at once, one goes; it goes on if they do not
        wait. Who asks for something else has another answer: what is not due may well have ended.
        """
        asked = (tenant_id, credential_id, version)
        task = self._under_way.get(asked)
        if task is None:
            task = asyncio.create_task(self._refresh(*asked))
            self._under_way[asked] = task
            task.add_done_callback(lambda done: self._ended(asked, done))
        await asyncio.shield(task)

    @asynccontextmanager
    async def finishing(self) -> AsyncIterator[None]:
        """Let what is under way end before the block has: an answer is not given twice."""
        try:
            yield
        finally:
            while self._under_way:
                await asyncio.wait(self._under_way.values())

    def _ended(self, asked: _Asked, task: "asyncio.Task[None]") -> None:
        self._under_way.pop(asked, None)
        if not task.cancelled():
            task.exception()

    async def _refresh(self, tenant_id: UUID, credential_id: UUID, version: int | None) -> None:
        BEFORE_LEASE.hit()
        lease = await self._leases.take(tenant_id, credential_id, version)
        if lease is None:
            return
        AFTER_INTENT.hit()
        try:
            # What waits past this would record under a lease that is over.
            async with asyncio.timeout_at(lease.begun + self._leases.lasting_s):
                tokens = await self._redeeming.redeem(lease)
        except Exception as error:  # whatever it is, it must not be tried again at once
            if not isinstance(error, TenonError | TimeoutError):
                log.exception("credential %s could not be refreshed", credential_id)
            await self._failed(lease, error)
            return
        AFTER_CALL.hit()
        await self._keep(lease, tokens)
        AFTER_RECORD.hit()

    async def _keep(self, lease: Lease, tokens: Tokens) -> None:
        """Record what came, again and again if need be."""
        until = loop_time() + RECORDING_S
        while True:
            try:
                kept = await self._record(lease, tokens)
                break
            except (Aborted, Unavailable):
                if loop_time() > until:
                    raise
            await asyncio.sleep(WAIT_S)
        if not kept:
            await self._redeeming.take_back(lease, tokens)

    async def _record(self, lease: Lease, tokens: Tokens) -> bool:
        """Keep what came as a new version, unless there is a newer one: that is as good.

        False: the credential was revoked meanwhile.
        """
        row = lease.credential
        place = {"tenant_id": lease.tenant_id, "credential_id": row.credential_id}
        async with self._database.tenant(lease.tenant_id) as transaction:
            status = await transaction.one(store.HOLD, **place)
            current = await transaction.one(store.CURRENT, **place)
            if status is None or current is None or status.status == "revoked":
                return False
            if current.version != row.version:
                return True
            keyring = await self._sealing.keyring(transaction, lease.tenant_id)
            values = self._merged(current, tokens)
            version = Version(
                row.credential_id,
                row.version + 1,
                values,
                await self._marks(transaction, lease, values),
                _facts(current, tokens, status.now),
            )
            moved = {"old_version": row.version, "new_version": row.version + 1}
            await transaction.pipeline(
                [
                    *keyring.adding,
                    self._sealing.sealing(keyring.key, version),
                    Bound(credential_store.MOVE, {**lease.place, **moved}),
                    planning(lease.tenant_id, row.credential_id),
                    _standing(lease, status),
                    keyring.counting(1),
                    invalidations.telling(credential=(lease.tenant_id, row.name)),
                ]
            )
            BEFORE_RECORD.hit()
        return True

    def _merged(self, current: Any, tokens: Tokens) -> dict[str, Any]:
        """The new parts; what the provider does not give anew stays as it was (RFC 6749, 6)."""
        before = self._sealing.opened(current) if current.sealed else {}
        return {**before, **tokens.values()}

    async def _marks(
        self, transaction: Transaction, lease: Lease, values: Mapping[str, Any]
    ) -> dict[str, str]:
        slug = (await transaction.one(credential_store.SLUG, tenant_id=lease.tenant_id)).slug
        return self._sealing.fingerprints(slug, lease.credential.name, values)

    async def _failed(self, lease: Lease, error: Exception) -> None:
        """Note a failure under the lease's fence, and tell it; adopt a newer version instead."""
        place = {"tenant_id": lease.tenant_id, "credential_id": lease.credential.credential_id}
        async with self._database.tenant(lease.tenant_id) as transaction:
            await transaction.one(store.HOLD, **place)
            current = await transaction.one(store.CURRENT, **place)
            if current is None or current.version != lease.credential.version:
                # Somebody else has had an answer meanwhile: what we heard is of an old token.
                return
            if is_final(lease, error):
                await self._lost(transaction, lease, error)
            else:
                await transaction.pipeline([self._cooling.noting(lease, error)])
        if is_final(lease, error):
            raise Reconnect(
                f"the account of credential {lease.credential.name} must be connected again"
            )
        if isinstance(error, Expired):
            raise error
        raise RefreshFailing(
            f"credential {lease.credential.name} cannot be refreshed now: {words(error)}"
        )

    async def _lost(self, transaction: Transaction, lease: Lease, error: Exception) -> None:
        why = LOST if lease.again else words(error)
        held = {**lease.place, "held_fence": lease.fence, "why": why}
        if await transaction.run(store.RECONNECT, **held) == 0:
            raise Aborted("somebody else refreshes it by now")
        name = lease.credential.name
        calls = [invalidations.telling(credential=(lease.tenant_id, name))]
        await transaction.pipeline(calls)
        event = Event(
            "reconnect",
            "Credential",
            name,
            lease.credential.credential_id,
            Risk.HIGH,
            outcome="failed",
            error=Reconnect.reason,
            alarming=True,
        )
        await self._log.append(transaction, lease.tenant_id, ITSELF, [event])


def _standing(lease: Lease, status: Any) -> Bound:
    """How a credential stands with new tokens.

    Where others had the lease meanwhile, they may have redeemed the same refresh token, and the
    provider may have taken these tokens back for it: only another refresh tells.
    """
    if status.fence == lease.fence and status.status != "reconnect":
        return Bound(store.REFRESHED, lease.place)
    return Bound(store.RECORDED_LATE, {**lease.place, "why": LATE})


def _facts(current: Any, tokens: Tokens, now: Any) -> Facts:
    def end(seconds: float | None) -> Any:
        return None if seconds is None else now + timedelta(seconds=seconds)

    granted = current.granted or () if tokens.scopes is None else tokens.scopes
    return Facts(
        "refresh",
        "registry",
        end(tokens.expires_in_s),
        end(tokens.refresh_expires_in_s) or current.refresh_expires_at,
        tuple(granted),
    )
