"""What is done to credentials one by one: rotated, revoked, shredded, revealed.

Their values change here without a change of what is wanted, so that YAML's fingerprints stay those
of what was declared. Each is one transaction in the tenant: rows, audit event, kept answer, and the
word to every process that remembers the values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.constraints import did_you_mean
from services.chassis.database import Bound, Transaction
from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound, invalid
from services.chassis.rules import Risk
from services.chassis.secret import Secret
from services.providers import signing_keys
from services.providers.auth import credential_parts
from services.registry.access.changes import By, Changes, Done
from services.registry.audit.log import Event
from services.registry.credentials.sealing import Facts, Sealing, Version, check_newest
from services.registry.credentials.status import beginning, planning
from services.registry.store import credentials as store
from services.registry.store import invalidations
from services.registry.wanted.plan import NOTHING, FieldChange

KIND: Final = "Credential"
WEBHOOK_SECRET: Final = "webhook_secret"  # noqa: S105 - the name of a type
SECRET: Final = "secret"  # noqa: S105 - the name of a part
ED25519: Final = "ed25519"
LONGEST_OVERLAP: Final = timedelta(days=30)
LONGEST_REASON: Final = 1000

Answer = Callable[[Any], bytes]
"""Makes a credential's row the answer to a call."""


@dataclass(frozen=True, slots=True)
class Named:
    """A credential of a tenant, as a caller names it."""

    tenant_id: UUID
    tenant: str
    name: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A rotation: the new values (none: Tenon makes them), and how long the old ones go on."""

    values: Mapping[str, Secret] = field(repr=False)
    overlap: timedelta | None = None


def new_webhook_secret(generate: str) -> Secret:
    """A fresh secret in the form of Standard Webhooks 1.0.0, as a credential's `generate` says."""
    made = signing_keys.new_private_key if generate == ED25519 else signing_keys.new_secret
    return made()


class Changing:
    """The use cases."""

    def __init__(self, changes: Changes, sealing: Sealing) -> None:
        self._changes = changes
        self._sealing = sealing

    async def rotate(self, by: By, named: Named, turn: Turn, answer: Answer) -> bytes:
        """A new version; the old one goes on for the overlap. `generated` tells its secret."""

        async def act(transaction: Transaction) -> Done:
            row = await _locked(transaction, named)
            values, made = _values(row, turn)
            overlap = _overlap(row, turn)
            facts = Facts("generated" if made else "rotated", by.actor.display_name)
            calls = await self.turning(transaction, named.tenant, row, values, facts, overlap)
            await transaction.pipeline(calls)
            found = await _shown(transaction, named)
            told = _telling("rotate", found, Risk.HIGH, {"version": found.version})
            return Done(answer(found), told, _word(named))

        return await self._changes.make_inside(by, act)

    async def generated(self, by: By, credential_id: UUID, version: int) -> Secret | None:
        """The secret that Tenon made for a version which the caller has just made, or asks for
        again: read from where it lies anyway, so that no kept answer holds it longer than it
        counts. None where it counts no more, and for a private key, which stays here.
        """
        found: list[Secret] = []

        async def act(transaction: Transaction) -> Done:
            place = {"tenant_id": by.tenant_id, "credential_id": credential_id}
            row = await transaction.one(store.TOLD, **place, version=version)
            if row is not None:
                found.append(self._sealing.opened(row)[SECRET])
            return Done(b"", None)

        await self._changes.make_inside(replace(by, asked=None), act)
        return next(iter(found), None)

    async def turning(
        self,
        transaction: Transaction,
        tenant: str,
        row: Any,
        values: Mapping[str, Secret],
        facts: Facts,
        overlap: timedelta,
    ) -> list[Bound]:
        """What makes these values the current version of a locked credential."""
        keyring = await self._sealing.keyring(transaction, row.tenant_id)
        version = Version(
            row.credential_id,
            row.version + 1,
            values,
            self._sealing.fingerprints(tenant, row.name, values),
            facts,
        )
        place = {"the_tenant_id": row.tenant_id, "the_credential_id": row.credential_id}
        moved = {"old_version": row.version, "new_version": row.version + 1}
        return [
            *keyring.adding,
            Bound(store.OVERLAP, {**place, "the_version": row.version, "overlap": overlap}),
            self._sealing.sealing(keyring.key, version),
            Bound(store.MOVE, {**place, **moved}),
            beginning(row.tenant_id, row.credential_id),
            planning(row.tenant_id, row.credential_id),
            keyring.counting(1),
        ]

    async def revoke(self, by: By, named: Named, why: str, answer: Answer) -> bytes:
        """Destroy all versions: nobody resolves it any more."""
        if len(why) > LONGEST_REASON:
            raise invalid("reason", f"is longer than {LONGEST_REASON}")

        async def act(transaction: Transaction) -> Done:
            row = await _locked(transaction, named)
            place = {"the_tenant_id": row.tenant_id, "the_credential_id": row.credential_id}
            told = {**place, "by": by.actor.display_name, "why": why}
            await transaction.pipeline([Bound(store.SHRED_ALL, place), Bound(store.REVOKE, told)])
            found = await _shown(transaction, named)
            event = _telling("revoke", found, Risk.CRITICAL, {"reason": why} if why else {})
            return Done(answer(found), event, _word(named))

        return await self._changes.make_inside(by, act)

    async def shred(self, by: By, named: Named, number: int, answer: Answer) -> bytes:
        """Destroy one version that is not the current one."""

        async def act(transaction: Transaction) -> Done:
            row = await _locked(transaction, named)
            if number == row.version:
                raise FailedPrecondition(
                    "the current version can be revoked or rotated away, not shredded",
                    reason="CURRENT_VERSION",
                )
            place = {"the_tenant_id": row.tenant_id, "the_credential_id": row.credential_id}
            if await transaction.run(store.SHRED, **place, the_version=number) == 0:
                raise NotFound(f"credential {named.name} has no version {number} to shred")
            found = await _shown(transaction, named)
            event = _telling("shred", found, Risk.HIGH, {"version": number})
            return Done(answer(found), event, _word(named))

        return await self._changes.make_inside(by, act)

    async def reveal(self, by: By, named: Named) -> tuple[int, Secret]:
        """The current webhook secret, if Tenon made it; who was told stands in the audit log."""
        told: list[tuple[int, Secret]] = []

        async def act(transaction: Transaction) -> Done:
            row = await transaction.one(store.RESOLVE, tenant_id=named.tenant_id, name=named.name)
            if row is None:
                raise _absent(named)
            versions = await transaction.all(
                store.VERSIONS, tenant_id=named.tenant_id, credential_id=row.credential_id
            )
            if row.sealed is None or versions[0].origin != "generated":
                raise FailedPrecondition(
                    "only a webhook secret that Tenon made is told", reason="NOT_GENERATED"
                )
            check_newest(row)
            if versions[0].public_key:
                raise FailedPrecondition(
                    "a private key stays here: receivers need its public key, which everybody"
                    " sees who sees the credential",
                    reason="PRIVATE_KEY",
                )
            told.append((row.version, self._sealing.opened(row)[SECRET]))
            event = _telling("reveal", row, Risk.HIGH, {"version": row.version})
            return Done(b"", event)

        await self._changes.make_inside(by, act)
        return told[0]


async def _locked(transaction: Transaction, named: Named) -> Any:
    asked = {"tenant_id": named.tenant_id, "name": named.name}
    _, rows = await transaction.pipeline([Bound(store.HOLD, asked), Bound(store.HELD, asked)])
    if not rows:
        raise _absent(named)
    return rows[0]


async def _shown(transaction: Transaction, named: Named) -> Any:
    return await transaction.one(store.GET, tenant_id=named.tenant_id, name=named.name)


def _absent(named: Named) -> NotFound:
    return NotFound(f"there is no credential {named.name}")


def _word(named: Named) -> list[Bound]:
    """What every process is told that remembers it."""
    return [invalidations.telling(credential=(named.tenant_id, named.name))]


def _telling(action: str, row: Any, risk: Risk, said: Mapping[str, Any]) -> Event:
    fields = [FieldChange(name, NOTHING, value) for name, value in said.items()]
    return Event(action, KIND, row.name, row.credential_id, risk, fields)


def _values(row: Any, turn: Turn) -> tuple[Mapping[str, Secret], bool]:
    """The values of the next version, and whether Tenon made them."""
    if not turn.values and row.type == WEBHOOK_SECRET:
        return {SECRET: new_webhook_secret(row.generate)}, True
    parts, given = credential_parts(row.type), turn.values.keys()
    unknown = sorted(given - parts.known)
    if unknown:
        hint = did_you_mean(unknown[0], sorted(parts.known))
        raise invalid("values", f"{unknown[0]} is no part of a {row.type} credential{hint}")
    if not parts.needed <= given or not given:
        needed = ", ".join(sorted(parts.needed or parts.known))
        raise InvalidArgument(f"a credential of type {row.type} needs {needed}")
    return turn.values, False


def _overlap(row: Any, turn: Turn) -> timedelta:
    """How long the old values go on: as is said now, or by the credential's rotation."""
    said = turn.overlap
    if said is None:
        said = timedelta(seconds=float(row.rotation["overlap"].removesuffix("s")))
    if not timedelta(0) <= said <= LONGEST_OVERLAP:
        raise invalid("overlap", f"must be 0s to {LONGEST_OVERLAP.days} days")
    return said
