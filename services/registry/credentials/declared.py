"""Secrets that a document declares, or a provider gave: written with the object they are of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound
from services.chassis.secret import Secret
from services.registry.credentials.changing import SECRET, WEBHOOK_SECRET, new_webhook_secret
from services.registry.credentials.sealing import Facts, Keyring, Sealing, Version
from services.registry.credentials.status import beginning, keeping, planning
from services.registry.store import credentials as store
from services.registry.wanted.objects import SECRET_VALUES, Complete
from services.registry.wanted.plan import Change

GENERATE: Final = "spec.generate"


@dataclass(frozen=True, slots=True)
class Place:
    """Whose credential it is, and under which data key its values go."""

    tenant: str
    tenant_id: UUID
    credential_id: UUID
    who: str
    keyring: Keyring

    @property
    def the_one(self) -> dict[str, Any]:
        """The credential, as statements name it."""
        return {"the_tenant_id": self.tenant_id, "the_credential_id": self.credential_id}


class DeclaredSecrets:
    """Makes versions of what is declared."""

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing

    def written(self, change: Change, writing: Bound, place: Place) -> Iterator[Bound]:
        """What writes a credential, its new version where there are new values, and its status."""
        held = {"tenant_id": place.tenant_id, "credential_id": place.credential_id}
        yield Bound(store.HOLD_ONE, held)
        yield writing
        values = _new_values(change)
        if values is None:
            yield keeping(place.tenant_id, place.credential_id)
        else:
            yield from self._version(change, values, place)
        yield planning(place.tenant_id, place.credential_id)

    def _version(
        self, change: Change, values: Mapping[str, Secret], place: Place
    ) -> Iterator[Bound]:
        one, number = change.after, change.after.version + 1
        if one.fields["spec.type"] == WEBHOOK_SECRET and number > 1:
            old = {"the_version": number - 1, "overlap": _overlap(one)}
            yield Bound(store.OVERLAP, {**place.the_one, **old})
        version = Version(
            place.credential_id,
            number,
            values,
            self._sealing.fingerprints(place.tenant, one.name, values),
            _facts(change, place.who, declared=bool(one.fields[SECRET_VALUES])),
        )
        yield self._sealing.sealing(place.keyring.key, version)
        yield Bound(store.MOVE, {**place.the_one, "old_version": number - 1, "new_version": number})
        yield place.keyring.counting(1)
        yield beginning(place.tenant_id, place.credential_id)


def derived(one: Complete, who: str, *, new: bool) -> dict[str, Any]:
    """The columns of a credential that its spec does not say as they stand there."""
    found = {
        "declared": dict(one.fields[SECRET_VALUES]),
        "expires_at": moment_of(one.fields["spec.expires"]),
    }
    return {**found, "version": 0, "created_by": who} if new else found


def moment_of(text: str) -> datetime | None:
    """The time in a text of RFC 3339; None where it is empty. Raises ValueError."""
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone")
    return moment


def _new_values(change: Change) -> Mapping[str, Secret] | None:
    """The values of a new version, or None where the current one stays."""
    said = change.after.fields
    before = change.before.fields if change.before else {}
    if said[SECRET_VALUES]:
        changes = before.get(SECRET_VALUES) != said[SECRET_VALUES]
        return change.declared.secrets if changes else None
    # Nobody says the secret of a webhook: Tenon makes it.
    ruling = (SECRET_VALUES, GENERATE)
    if said["spec.type"] == WEBHOOK_SECRET and any(before.get(f) != said[f] for f in ruling):
        return {SECRET: new_webhook_secret(said[GENERATE])}
    return None


def _overlap(one: Complete) -> timedelta:
    return timedelta(seconds=float(one.fields["spec.rotation"]["overlap"].removesuffix("s")))


def _facts(change: Change, who: str, *, declared: bool) -> Facts:
    said = change.declared.facts
    if not said:
        return Facts("declared" if declared else "generated", who)
    return Facts(
        "oauth",
        who,
        moment_of(said["expires_at"]),
        moment_of(said["refresh_expires_at"]),
        tuple(said["scopes"]),
    )
