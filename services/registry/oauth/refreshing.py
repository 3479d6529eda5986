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
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Bound, Database, Transaction
from services.chassis.egress import (
    ConnectFailed,
    EgressError,
    EgressRefused,
    NotPermitted,
    ResponseTooLarge,
    Unsendable,
)
from services.chassis.errors import Aborted, FailedPrecondition, NotFound, TenonError, Unavailable
from services.chassis.ids import uuid7
from services.chassis.rules import Risk
from services.providers import oauth2
from services.providers.oauth2 import AnswerUnclear, App, NotOAuth, Tokens, TokensRefused
from services.registry.audit.log import Event, Log
from services.registry.credentials.resolving import Expired
from services.registry.credentials.sealing import Facts, Sealing, Version
from services.registry.credentials.status import planning
from services.registry.credentials.tampering import ITSELF
from services.registry.oauth.exchange import Exchange
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

LEASE_FACTOR: Final = 3.0
"""A lease in timeouts of the call: one to come to it, one for it, one to record its answer; to a
request that its sender has died over they are time to be handled."""
WAIT_S: Final = 0.1
RECORDING_S: Final = 120.0
"""So long it is tried to record an answer while the database is away: it is not given twice."""
OAUTH2: Final = "oauth2"
CODE: Final = "authorization_code"
COOL_S: Final = 30.0
LONGEST_COOL_S: Final = 3600.0
JITTER: Final = 0.2
LOST: Final = "the provider's answer was lost"
LATE: Final = "its tokens were recorded late; it is refreshed to see whether they hold"


class RefreshFailing(Unavailable):
    """No new token for now; it is tried again."""

    reason = "REFRESH_FAILING"


class Reconnect(FailedPrecondition):
    """No new token ever: the account must be connected again."""

    reason = "CREDENTIAL_RECONNECT"


class TooLate(Unavailable):
    """We were held up until the lease was no longer long enough for the call; nothing was sent."""

    reason = "REFRESH_TOO_LATE"


_Asked = tuple[UUID, UUID, int | None]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to redeem a version's refresh token; `again`: somebody may have before.

    `begun` is the event loop's time before it was taken.
    """

    tenant_id: UUID
    credential: Any
    app_row: Any
    now: Any
    fence: int
    failures: int
    again: bool
    begun: float

    @property
    def place(self) -> dict[str, Any]:
        """The credential, as statements name it."""
        return {
            "the_tenant_id": self.tenant_id,
            "the_credential_id": self.credential.credential_id,
        }


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
        self._exchange = exchange
        self._log = events
        self._cool_s = cool_s
        self._rng = rng or Random()  # noqa: S311 - spreads waits, hides nothing
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
        lease = await self._leased(tenant_id, credential_id, version)
        if lease is None:
            return
        AFTER_INTENT.hit()
        try:
            # What waits past this would record under a lease that is over.
            async with asyncio.timeout_at(lease.begun + self._lease_s):
                tokens = await self._redeemed(lease)
        except Exception as error:  # whatever it is, it must not be tried again at once
            if not isinstance(error, TenonError | TimeoutError):
                log.exception("credential %s could not be refreshed", credential_id)
            await self._failed(lease, error)
            return
        AFTER_CALL.hit()
        await self._keep(lease, tokens)
        AFTER_RECORD.hit()

    @property
    def _lease_s(self) -> float:
        return self._exchange.timeout_s * LEASE_FACTOR

    async def _leased(
        self, tenant_id: UUID, credential_id: UUID, version: int | None
    ) -> Lease | None:
        """A lease with its intent; None where there is a newer version already."""
        until = _time() + self._exchange.timeout_s
        while True:
            lease = await self._try_lease(tenant_id, credential_id, version)
            if not isinstance(lease, float):
                return lease
            if _time() > until:
                raise RefreshFailing("somebody else is refreshing it", retry_after_s=lease)
            # Another process is at it; whatever becomes of that, the row will say.
            await asyncio.sleep(min(max(lease, 0.01), WAIT_S))

    async def _try_lease(
        self, tenant_id: UUID, credential_id: UUID, version: int | None
    ) -> Lease | float | None:
        """The same, or in how many seconds the other's lease ends."""
        begun = _time()
        place = {"tenant_id": tenant_id, "credential_id": credential_id}
        async with self._database.tenant(tenant_id) as transaction:
            status = await transaction.one(store.HOLD, **place)
            row = await transaction.one(store.CURRENT, **place)
            if status is None or row is None or version not in {None, row.version}:
                return None
            if version is None and not status.is_due:
                # Somebody has refreshed it since it was looked up.
                return None
            if status.status == "reconnect":
                raise Reconnect(f"the account of credential {row.name} must be connected again")
            if status.status == "revoked":
                raise Reconnect(f"credential {row.name} was revoked", reason="CREDENTIAL_REVOKED")
            if status.is_leased:
                return float(status.lease_left_s)
            app_row = await self._app_row(transaction, row)
            if status.cool_left_s is not None and status.cool_left_s > 0:
                raise _cooling_down(status, row, app_row)
            leased = {
                "the_tenant_id": tenant_id,
                "the_credential_id": credential_id,
                "new_lease_id": uuid7(),
                "lasting": timedelta(seconds=self._lease_s),
                "version": row.version,
            }
            await transaction.run(store.LEASE, **leased)
        again = status.intent_version == row.version
        fence, failures = status.fence + 1, status.failures
        return Lease(tenant_id, row, app_row, status.now, fence, failures, again, begun)

    async def _app_row(self, transaction: Transaction, row: Any) -> Any:
        if row.app_id is None:
            return None
        place = {"tenant_id": row.tenant_id, "credential_id": row.app_id}
        return await transaction.one(store.CURRENT, **place)

    async def _redeemed(self, lease: Lease) -> Tokens:
        row = lease.credential
        if lease.app_row is None:
            raise NotOAuth(f"credential {row.name} names no app")
        app = self._exchange.app(lease.app_row)
        form = GRANTS[_grant(lease)](self, lease, app)
        if _time() > lease.begun + self._exchange.timeout_s:
            raise TooLate("it took too long to come to the call")
        return await self._exchange.tokens(app, form)

    def _with_refresh_token(self, lease: Lease, _app: App) -> Mapping[str, str]:
        values = self._sealing.opened(lease.credential) if lease.credential.sealed else {}
        if "refresh_token" not in values:
            raise TokensRefused("invalid_grant")
        return oauth2.refresh_form(values["refresh_token"])

    def _by_itself(self, lease: Lease, app: App) -> Mapping[str, str]:
        return oauth2.client_form(app, tuple(lease.credential.scopes))

    def _by_assertion(self, lease: Lease, app: App) -> Mapping[str, str]:
        assertion = self._exchange.assertion(lease.app_row, app, lease.now)
        return oauth2.assertion_form(app, assertion, tuple(lease.credential.scopes))

    async def _keep(self, lease: Lease, tokens: Tokens) -> None:
        """Record what came, again and again if need be."""
        until = _time() + RECORDING_S
        while True:
            try:
                kept = await self._record(lease, tokens)
                break
            except (Aborted, Unavailable):
                if _time() > until:
                    raise
            await asyncio.sleep(WAIT_S)
        if not kept:
            await self._take_back(lease, tokens)

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

    async def _take_back(self, lease: Lease, tokens: Tokens) -> None:
        """Who revoked the credential meanwhile knew nothing of these: they must not outlive it."""
        part = "access_token" if tokens.refresh_token is None else "refresh_token"
        try:
            app = self._exchange.former_app(lease.app_row)
            await self._exchange.revoke(app, tokens.refresh_token or tokens.access_token, part)
        except TenonError as error:
            name = lease.credential.name
            log.warning("new tokens of %s are not taken back: %s", name, error.message)

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
            if _is_final(lease, error):
                await self._lost(transaction, lease, error)
            else:
                await transaction.pipeline([self._cooling(lease, error)])
        if _is_final(lease, error):
            raise Reconnect(
                f"the account of credential {lease.credential.name} must be connected again"
            )
        if isinstance(error, Expired):
            raise error
        raise RefreshFailing(
            f"credential {lease.credential.name} cannot be refreshed now: {_words(error)}"
        )

    async def _lost(self, transaction: Transaction, lease: Lease, error: Exception) -> None:
        why = LOST if lease.again else _words(error)
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

    def _cooling(self, lease: Lease, error: Exception) -> Bound:
        """What notes a failure that may pass; each further one waits twice as long.

        An app that has expired fails at nobody's door, and may be renewed at any moment.
        """
        times = 0 if isinstance(error, Expired) else lease.failures + 1
        known = _is_known(error)
        longest = min(self._cool_s * 2 ** max(0, min(times - 1, 12)), LONGEST_COOL_S)
        cool_s = longest * self._rng.uniform(1 - JITTER, 1 + JITTER)
        if _is_unanswered(error):
            # It may be under way still.
            cool_s = max(cool_s, self._lease_s)
        return Bound(
            store.FAILED,
            {
                **lease.place,
                "held_fence": lease.fence,
                "new_status": _status_after(error),
                "why": _words(error),
                "times": times,
                "cool": timedelta(seconds=cool_s),
                # An intent stands until somebody knows what became of it.
                "intent": None if known and not lease.again else lease.credential.version,
            },
        )


def _time() -> float:
    """The event loop's own clock, in seconds: for how long we have taken, and for nothing else."""
    return asyncio.get_running_loop().time()


def _grant(lease: Lease) -> str:
    return lease.credential.grant or CODE


def _cooling_down(status: Any, row: Any, app_row: Any) -> TenonError:
    """What is said while nobody tries: what was said when it failed."""
    if app_row is not None and app_row.has_ended:
        return Expired(app_row.name)
    return RefreshFailing(
        f"credential {row.name} cannot be refreshed now: {status.reason}",
        retry_after_s=float(status.cool_left_s),
    )


def _standing(lease: Lease, status: Any) -> Bound:
    """How a credential stands with new tokens.

    Where others had the lease meanwhile, they may have redeemed the same refresh token, and the
    provider may have taken these tokens back for it: only another refresh tells.
    """
    if status.fence == lease.fence and status.status != "reconnect":
        return Bound(store.REFRESHED, lease.place)
    return Bound(store.RECORDED_LATE, {**lease.place, "why": LATE})


def _is_final(lease: Lease, error: Exception) -> bool:
    """Whether there is no token ever again; an app that comes by tokens itself can be put right."""
    return isinstance(error, TokensRefused) and error.is_final and _grant(lease) == CODE


def _is_unanswered(error: Exception) -> bool:
    """Whether the provider may have the request still: it was sent, and no word has come back."""
    return not _is_known(error) and not isinstance(error, AnswerUnclear | ResponseTooLarge)


def _is_known(error: Exception) -> bool:
    """Whether it is known that nothing was redeemed: not sent, or refused in so many words."""
    return isinstance(
        error,
        ConnectFailed | EgressRefused | NotPermitted | Unsendable | TokensRefused | NotOAuth,
    ) or (isinstance(error, TenonError) and not isinstance(error, EgressError | AnswerUnclear))


def _status_after(error: Exception) -> str | None:
    """How the credential stands after a failure; None: as before, since it says nothing of it."""
    if isinstance(error, TokensRefused):
        return "invalid"
    # Whether the token is redeemed nobody knows until it is tried again.
    return None if _is_known(error) else "uncertain"


def _words(error: Exception) -> str:
    if isinstance(error, TenonError):
        return error.message
    return "the provider took too long" if isinstance(error, TimeoutError) else "a fault of ours"


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


GRANTS: Final[Mapping[str, Callable[[Refreshing, Lease, App], Mapping[str, str]]]] = {
    CODE: Refreshing._with_refresh_token,  # noqa: SLF001 - this module's own
    "client_credentials": Refreshing._by_itself,  # noqa: SLF001 - likewise
    "jwt_bearer": Refreshing._by_assertion,  # noqa: SLF001 - likewise
}
"""What is sent for new tokens, by how the app comes by them."""
