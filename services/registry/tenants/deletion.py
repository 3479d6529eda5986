"""Deleting a tenant, as those who ask for it see it.

A tenant that goes is *draining*: nothing of it changes any more. The executor lets what runs end,
deletes what it has of it and reports that; then the registry does the same (`purge`), and the
tenant is *purged*. What stays is its slug, which nobody gets again, and the proof: its audit log,
its revisions, and a tombstone that says who let it go, why, and how many rows went.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from services.chassis.database import Database, Transaction
from services.chassis.errors import Aborted, FailedPrecondition, NotFound
from services.chassis.rules import Risk
from services.registry.answers import Asked, Once
from services.registry.audit import log as audit
from services.registry.reviews.demands import POLICY, guarding
from services.registry.store import invalidations, objects, tenants, tombstones


class Deletion:
    """Puts tenants on their way out, and says how far they have gone."""

    def __init__(self, database: Database, log: audit.Log, once: Once) -> None:
        self._database = database
        self._log = log
        self._once = once

    async def delete(
        self,
        tenant_id: UUID,
        actor: audit.Actor,
        asked: Asked | None,
        *,
        force: bool,
        revision: int | None = None,
    ) -> Any:
        """Let a tenant go; its row as it then is. One that goes already is answered as it is.

        Raises FailedPrecondition for one that is in use, unless forced, and for one whose policies
        ask for approval of it; Aborted where its revision is another one.
        """
        async with self._database.tenant(tenant_id) as transaction:
            row = await tenants.hold(transaction, tenant_id)
            kept = await self._once.kept(transaction, asked)
            if row.state == "active" and kept is None:
                _check_revision(row, revision)
                if row.enabled and not force:
                    raise _in_use(row, await tombstones.active_connectors(transaction, tenant_id))
                await _check_policies(transaction, row)
                calls = tombstones.draining(row, _words(actor), forced=force)
                calls += [invalidations.telling(tenant=tenant_id)]
                await transaction.pipeline(calls + self._once.keeping(asked, b""))
                await self._log.append(transaction, tenant_id, actor, [_event(row)])
            return await tenants.read(transaction, tenant_id)

    async def report(self, tenant_id: UUID, rows: Mapping[str, int]) -> None:
        """Note that the executor has nothing of a tenant any more."""
        await tombstones.report(self._database, tenant_id, rows)

    async def tombstone(self, slug: str) -> Any:
        """What is known of a tenant that goes or has gone. Raises NotFound."""
        found = await tombstones.find(self._database, slug)
        if found is None:
            raise NotFound(f"tombstones/{slug} does not exist")
        return found


def _check_revision(row: Any, revision: int | None) -> None:
    if revision not in {None, row.revision}:
        raise Aborted("the tenant has changed meanwhile; look at it again", reason="ETAG_MISMATCH")


async def _check_policies(transaction: Transaction, row: Any) -> None:
    """Refuse what others must approve: to delete a tenant cannot wait, to loosen its policy can."""
    found = await transaction.all(objects.ALL[POLICY], tenant_id=row.tenant_id)
    policies = [objects.complete(POLICY, one) for one in found]
    names = guarding(policies, "Tenant", Risk.CRITICAL)
    if names:
        raise FailedPrecondition(
            f"tenants/{row.slug} has policies that ask for approval: {', '.join(names)}; "
            "change them first, with the approval of others",
            reason="REVIEW_REQUIRED",
            metadata={"policies": ",".join(names)},
        )


def _in_use(row: Any, connectors: int) -> FailedPrecondition:
    return FailedPrecondition(
        f"tenants/{row.slug} is enabled, with {connectors} active connectors; "
        "disable it first, or force it",
        reason="TENANT_IN_USE",
        metadata={"enabled": "true", "active_connectors": str(connectors)},
    )


def _words(actor: audit.Actor) -> dict[str, Any]:
    return {
        "actor_id": actor.principal_id,
        "actor_kind": actor.kind,
        "actor_name": actor.display_name,
        "reason": actor.reason,
    }


def _event(row: Any) -> audit.Event:
    return audit.Event(
        action="delete",
        kind="Tenant",
        object=row.slug,
        object_id=row.tenant_id,
        risk=Risk.CRITICAL,
        revision=row.revision,
    )
