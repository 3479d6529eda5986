"""The right to redeem a version's refresh token: a lease with a fence, and an intent beside it.

Both are written under the status row's lock, in one transaction. Whoever comes while another has
the lease waits for the row to change.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import FailedPrecondition, TenonError, Unavailable
from services.chassis.ids import uuid7
from services.registry.credentials.resolving import Expired
from services.registry.store import oauth as store

LEASE_FACTOR: Final = 3.0
"""A lease in timeouts of the call: one to come to it, one for it, one to record its answer; to a
request that its sender has died over they are time to be handled."""
WAIT_S: Final = 0.1


class RefreshFailing(Unavailable):
    """No new token for now; it is tried again."""

    reason = "REFRESH_FAILING"


class Reconnect(FailedPrecondition):
    """No new token ever: the account must be connected again."""

    reason = "CREDENTIAL_RECONNECT"


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


class Leases:
    """Gives them, one at a time for each credential; `timeout_s` bounds one call to a provider."""

    def __init__(self, database: Database, timeout_s: float) -> None:
        self._database = database
        self.timeout_s = timeout_s

    @property
    def lasting_s(self) -> float:
        """How long one lasts."""
        return self.timeout_s * LEASE_FACTOR

    async def take(self, tenant_id: UUID, credential_id: UUID, version: int | None) -> Lease | None:
        """A lease with its intent; None where there is a newer version already."""
        until = loop_time() + self.timeout_s
        while True:
            lease = await self._try(tenant_id, credential_id, version)
            if not isinstance(lease, float):
                return lease
            if loop_time() > until:
                raise RefreshFailing("somebody else is refreshing it", retry_after_s=lease)
            # Another process is at it; whatever becomes of that, the row will say.
            await asyncio.sleep(min(max(lease, 0.01), WAIT_S))

    async def _try(
        self, tenant_id: UUID, credential_id: UUID, version: int | None
    ) -> Lease | float | None:
        """The same, or in how many seconds the other's lease ends."""
        begun = loop_time()
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
                "lasting": timedelta(seconds=self.lasting_s),
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


def loop_time() -> float:
    """The event loop's own clock, in seconds: for how long we have taken, and for nothing else."""
    return asyncio.get_running_loop().time()


def _cooling_down(status: Any, row: Any, app_row: Any) -> TenonError:
    """What is said while nobody tries: what was said when it failed."""
    if app_row is not None and app_row.has_ended:
        return Expired(app_row.name)
    return RefreshFailing(
        f"credential {row.name} cannot be refreshed now: {status.reason}",
        retry_after_s=float(status.cool_left_s),
    )
