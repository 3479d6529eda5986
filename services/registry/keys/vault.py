"""The registry's keys: what wraps, what fingerprints, what peppers. Nothing leaves but by purpose.

A credential version has a key of its own, wrapped by its tenant's data key, wrapped by a version of
the key-encryption key. Shredding a wrapped key shreds what it opened; rotation rewraps keys only.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final
from uuid import UUID

from services.chassis import envelope
from services.chassis.secret import Secret
from services.registry.audit.chain import Chain
from services.registry.keys.ring import EMPTY, Ring

KEY_ENCRYPTION_KEY: Final = "key-encryption-key"
LEASED: Final = "executor/1"
ANSWERS: Final = "answers/1"
AUDIT: Final = "audit/1"
LINKS: Final = "connect-links/1"
NOBODYS: Final = UUID(int=0)
MOST_OPENED: Final = 10_000
"""Opened data keys that are remembered; the least used goes first."""


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A tenant's opened data key."""

    tenant_id: UUID
    data_key_id: UUID
    key: Secret

    def lease(self) -> Secret:
        """What the executor may have of it: a key derived for its own sealing."""
        return envelope.derive(self.key, LEASED)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A key or an answer as it is stored, and which version of the key-encryption key wraps it."""

    key_version: int
    wrapped: bytes


class Vault:
    """Wraps, unwraps and fingerprints with the deployment's keys."""

    def __init__(self, fingerprint_key: Secret, ring: Ring = EMPTY) -> None:
        self._fingerprinting = fingerprint_key
        self._ring = ring
        self._opened: OrderedDict[tuple[UUID, Wrapped], TenantKey] = OrderedDict()
        self._wraps: Counter[int] = Counter()
        # Threads wrap as well, where there is much to wrap anew.
        self._counting = Lock()

    @property
    def ring(self) -> Ring:
        """The versions that it works with now."""
        return self._ring

    def hold(self, ring: Ring) -> None:
        """Work with these versions from now on."""
        self._ring = ring

    def drain_wraps(self) -> dict[int, int]:
        """How often each version has wrapped since the last time."""
        with self._counting:
            wraps, self._wraps = self._wraps, Counter()
        return dict(wraps)

    def count_wraps(self, wraps: Mapping[int, int]) -> None:
        """So many more by each version; also those that were drained and could not be kept."""
        with self._counting:
            self._wraps.update(wraps)

    def new_tenant_key(self, tenant_id: UUID, data_key_id: UUID) -> tuple[TenantKey, Wrapped]:
        """A fresh data key for a tenant, and how it is stored."""
        key = TenantKey(tenant_id, data_key_id, envelope.new_key())
        return key, self._wrap_tenant_key(key)

    def open_tenant_key(self, tenant_id: UUID, data_key_id: UUID, stored: Wrapped) -> TenantKey:
        """The data key behind its stored form. Raises Unsealable if it was moved or changed."""
        # By its stored form too: what was changed since it was opened must not pass.
        mark = (data_key_id, stored)
        found = self._opened.get(mark)
        if found is None or found.tenant_id != tenant_id:
            found = self._unwrap_tenant_key(tenant_id, data_key_id, stored)
            self._opened[mark] = found
            while len(self._opened) > MOST_OPENED:
                self._opened.popitem(last=False)
        self._opened.move_to_end(mark)
        return found

    def rewrap_tenant_key(self, tenant_id: UUID, data_key_id: UUID, stored: Wrapped) -> Wrapped:
        """The same data key, wrapped by the active version."""
        return self._wrap_tenant_key(self._unwrap_tenant_key(tenant_id, data_key_id, stored))

    def fingerprint(self, tenant: str, name: str, part: str, value: Secret) -> str:
        """Tells whether a part of a credential changed; keyed by tenant, bound to name and part."""
        key = envelope.derive(self._fingerprinting, "fingerprint", tenant.encode())
        return envelope.fingerprint(key, "Credential", f"{name}/{part}", value.reveal())

    def request_hash(self, tenant: str, digest: Secret) -> bytes:
        """A keyed hash of a request, so that a kept one tells nothing of the secrets in it."""
        key = envelope.derive(self._fingerprinting, "request", tenant.encode())
        return bytes.fromhex(envelope.fingerprint(key, "request", tenant, digest.reveal()))

    def link_mark(self, *parts: bytes) -> bytes:
        """Proves that a connect link is ours: an HMAC of what it says."""
        key = envelope.derive(self._fingerprinting, LINKS)
        words = envelope.length_prefixed(*parts)
        return bytes.fromhex(envelope.fingerprint(key, "link", "", words))

    def chain(self, tenant_id: UUID | None) -> Chain:
        """The chain of a tenant's audit log, or of the platform's."""
        scope = (tenant_id or NOBODYS).bytes
        return Chain(envelope.derive(self._fingerprinting, AUDIT, scope))

    def seal_answer(
        self, tenant_id: UUID | None, method: str, request_id: UUID, answer: bytes
    ) -> Wrapped:
        """An answer as it is kept for whoever asks again.

        Also by a worn version, or nobody could ask for the next one: what seals is derived from it.
        """
        ring = self._ring
        key = envelope.derive(ring.key(ring.active), ANSWERS)
        place = _answer_place(tenant_id, method, request_id)
        return self._stored(ring, envelope.seal(key, place, answer))

    def open_answer(
        self, tenant_id: UUID | None, method: str, request_id: UUID, kept: Wrapped
    ) -> bytes:
        """What `seal_answer` was given. Raises Unsealable if it was moved or changed."""
        key = envelope.derive(self._ring.key(kept.key_version), ANSWERS)
        place = _answer_place(tenant_id, method, request_id)
        return envelope.open_sealed(key, place, kept.wrapped).reveal()

    def wrap_sealing_key(self, version: int, private: Secret) -> Wrapped:
        """The private half of a pair that secrets in Git are sealed to, as it is stored."""
        ring = self._ring
        place = _sealing_place(version, ring.active)
        return self._stored(ring, envelope.wrap(ring.wrapping(), place, private))

    def unwrap_sealing_key(self, version: int, stored: Wrapped) -> Secret:
        """It again. Raises Unsealable."""
        place = _sealing_place(version, stored.key_version)
        return envelope.unwrap(self._ring.key(stored.key_version), place, stored.wrapped)

    def _wrap_tenant_key(self, key: TenantKey) -> Wrapped:
        ring = self._ring
        place = _place_of(key.tenant_id, key.data_key_id, ring.active)
        return self._stored(ring, envelope.wrap(ring.wrapping(), place, key.key))

    def _unwrap_tenant_key(self, tenant_id: UUID, data_key_id: UUID, stored: Wrapped) -> TenantKey:
        place = _place_of(tenant_id, data_key_id, stored.key_version)
        key = envelope.unwrap(self._ring.key(stored.key_version), place, stored.wrapped)
        return TenantKey(tenant_id, data_key_id, key)

    def _stored(self, ring: Ring, wrapped: bytes) -> Wrapped:
        """By the ring that wrapped it: in a thread the vault may hold another one by now."""
        self.count_wraps({ring.active: 1})
        return Wrapped(ring.active, wrapped)


def _answer_place(tenant_id: UUID | None, method: str, request_id: UUID) -> envelope.Place:
    return envelope.Place(
        tenant=tenant_id or NOBODYS,
        table="answers",
        row=request_id,
        column=method,
        version=NOBODYS,
        data_key=NOBODYS,
    )


def _place_of(tenant_id: UUID, data_key_id: UUID, version: int) -> envelope.KeyPlace:
    return envelope.KeyPlace(tenant_id, data_key_id, KEY_ENCRYPTION_KEY, version)


def _sealing_place(version: int, key_version: int) -> envelope.KeyPlace:
    return envelope.KeyPlace(NOBODYS, UUID(int=version), KEY_ENCRYPTION_KEY, key_version)
