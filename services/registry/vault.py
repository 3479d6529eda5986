"""The registry's keys: what wraps, what fingerprints, what peppers. Nothing leaves but by purpose.

A credential version has a key of its own, wrapped by its tenant's data key, wrapped by a version of
the key-encryption key. Shredding a wrapped key shreds what it opened; rotation rewraps keys only.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.chassis import envelope
from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.chassis.secret import Secret
from services.registry.audit.chain import Chain
from services.registry.store import credentials as store

KEY_VERSION: Final = 1
KEY_ENCRYPTION_KEY: Final = "key-encryption-key"
LEASED: Final = "executor/1"
ANSWERS: Final = "answers/1"
AUDIT: Final = "audit/1"
NOBODYS: Final = UUID(int=0)


class WrongKeyError(TenonError):
    """The key-encryption key is not the one this database was sealed with."""

    reason = "WRONG_KEY"


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A tenant's opened data key."""

    tenant_id: UUID
    data_key_id: UUID
    key: Secret

    def lease(self) -> Secret:
        """What the executor may have of it: a key derived for its own sealing."""
        return envelope.derive(self.key, LEASED)


class Vault:
    """Wraps, unwraps and fingerprints with the deployment's keys."""

    def __init__(self, key_encryption_key: Secret, fingerprint_key: Secret) -> None:
        self._wrapping = key_encryption_key
        self._fingerprinting = fingerprint_key

    async def prove(self, database: Database) -> None:
        """Leave a proof of the key at the first start; refuse a later start with another key."""
        proof = envelope.derive(self._wrapping, "proof")
        async with database.system() as transaction:
            # Of several that start at once one leaves its proof; the others must have the same.
            await transaction.run(store.ADD_KEY_VERSION, version=KEY_VERSION, proof=proof.reveal())
            row = await transaction.one(store.KEY_VERSION, version=KEY_VERSION)
        if Secret(bytes(row.proof)) != proof:
            raise WrongKeyError(
                "the key-encryption key is not the one this database was sealed with; "
                "set TENON_REGISTRY_KEY_ENCRYPTION_KEY_FILE to the right one"
            )

    def new_tenant_key(self, tenant_id: UUID, data_key_id: UUID) -> tuple[TenantKey, bytes]:
        """A fresh data key for a tenant, and how it is stored."""
        key = envelope.new_key()
        return TenantKey(tenant_id, data_key_id, key), envelope.wrap(
            self._wrapping, _place_of(tenant_id, data_key_id), key
        )

    def open_tenant_key(self, tenant_id: UUID, data_key_id: UUID, wrapped: bytes) -> TenantKey:
        """The data key behind its stored form. Raises Unsealable if it was moved or changed."""
        key = envelope.unwrap(self._wrapping, _place_of(tenant_id, data_key_id), wrapped)
        return TenantKey(tenant_id, data_key_id, key)

    def fingerprint(self, tenant: str, name: str, part: str, value: Secret) -> str:
        """Tells whether a part of a credential changed; keyed by tenant, bound to name and part."""
        key = envelope.derive(self._fingerprinting, "fingerprint", tenant.encode())
        return envelope.fingerprint(key, "Credential", f"{name}/{part}", value.reveal())

    def request_hash(self, tenant: str, digest: Secret) -> bytes:
        """A keyed hash of a request, so that a kept one tells nothing of the secrets in it."""
        key = envelope.derive(self._fingerprinting, "request", tenant.encode())
        return bytes.fromhex(envelope.fingerprint(key, "request", tenant, digest.reveal()))

    def chain(self, tenant_id: UUID | None) -> Chain:
        """The chain of a tenant's audit log, or of the platform's."""
        scope = (tenant_id or NOBODYS).bytes
        return Chain(envelope.derive(self._fingerprinting, AUDIT, scope))

    def seal_answer(
        self, tenant_id: UUID | None, method: str, request_id: UUID, answer: bytes
    ) -> bytes:
        """An answer as it is kept for whoever asks again."""
        key = envelope.derive(self._wrapping, ANSWERS)
        return envelope.seal(key, _answer_place(tenant_id, method, request_id), answer)

    def open_answer(
        self, tenant_id: UUID | None, method: str, request_id: UUID, sealed: bytes
    ) -> bytes:
        """What `seal_answer` was given. Raises Unsealable if it was moved or changed."""
        key = envelope.derive(self._wrapping, ANSWERS)
        place = _answer_place(tenant_id, method, request_id)
        return envelope.open_sealed(key, place, sealed).reveal()


def _answer_place(tenant_id: UUID | None, method: str, request_id: UUID) -> envelope.Place:
    return envelope.Place(
        tenant=tenant_id or NOBODYS,
        table="answers",
        row=request_id,
        column=method,
        version=NOBODYS,
        data_key=NOBODYS,
    )


def _place_of(tenant_id: UUID, data_key_id: UUID) -> envelope.KeyPlace:
    return envelope.KeyPlace(tenant_id, data_key_id, KEY_ENCRYPTION_KEY, KEY_VERSION)
