"""What webhooks are signed with: shared secrets, and pairs of keys.

A key of Standard Webhooks is symmetric (`whsec_`, its signatures are written `v1`) or one of a pair
(`whsk_` signs, `whpk_` verifies; Ed25519, written `v1a`): then who verifies can sign nothing.
Sources: Standard Webhooks 1.0.0, "Signature scheme"; RFC 8032.
"""

import hashlib
import hmac
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis.errors import Unauthenticated
from services.chassis.redaction import remember
from services.chassis.secret import Secret

SYMMETRIC: Final = "v1"
ASYMMETRIC: Final = "v1a"
SECRET_BYTES: Final = 32
_ED25519_BYTES: Final = 32
_SECRET_PREFIX: Final = b"whsec_"
_PRIVATE_PREFIX: Final = b"whsk_"
_PUBLIC_PREFIX: Final = b"whpk_"


class SignatureRefused(Unauthenticated):
    """Not signed by who should have; `detail` tells operators why and is never for the sender."""

    reason = "SIGNATURE_REFUSED"

    def __init__(self, detail: str) -> None:
        super().__init__("the signature is missing or wrong")
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Key:
    """What one secret signs with and verifies by: bytes, or one half of a pair or both.

    A pair has no `shared` bytes; of a public key alone `private` is missing.
    """

    shared: bytes | None = field(default=None, repr=False)
    private: Ed25519PrivateKey | None = field(default=None, repr=False)
    public: Ed25519PublicKey | None = field(default=None, repr=False)

    def digest(self, message: bytes) -> bytes:
        """HMAC-SHA-256 of a message by the shared bytes; by none where there are none."""
        return hmac.digest(self.shared or b"", message, hashlib.sha256)

    def signature(self, message: bytes) -> str:
        """The signature as Standard Webhooks writes it. Raises SignatureRefused."""
        if self.shared is not None:
            return f"{SYMMETRIC},{b64encode(self.digest(message)).decode('ascii')}"
        if self.private is not None:
            return f"{ASYMMETRIC},{b64encode(self.private.sign(message)).decode('ascii')}"
        raise SignatureRefused("a public key signs nothing")


def plain_key(secret: Secret) -> Key:
    """The key that is the secret's own bytes. Raises SignatureRefused."""
    if not secret.reveal():
        raise SignatureRefused("the secret is empty")
    if is_public(secret):
        raise SignatureRefused("the secret is a public key")
    return Key(secret.reveal())


def standard_key(secret: Secret) -> Key:
    """The key as Standard Webhooks writes one. Raises SignatureRefused."""
    text = secret.reveal()
    for prefix, read in _READ.items():
        if text.startswith(prefix):
            return read(_bytes_of(text.removeprefix(prefix)))
    return Key(_bytes_of(text))


def new_secret() -> Secret:
    """A fresh symmetric secret: `whsec_` and 32 bytes in base64."""
    return remember(Secret(_SECRET_PREFIX + b64encode(os.urandom(SECRET_BYTES))))


def new_private_key() -> Secret:
    """A fresh private key: `whsk_` and, in base64, its 32 bytes with those of its public key."""
    made = Ed25519PrivateKey.generate()
    pair = made.private_bytes_raw() + made.public_key().public_bytes_raw()
    return remember(Secret(_PRIVATE_PREFIX + b64encode(pair)))


def public_key(secret: Secret) -> str:
    """What verifies the signatures made with a private key: `whpk_` and 32 bytes in base64.

    Empty for a secret that has no public half, and for what is no key.
    """
    try:
        public = standard_key(secret).public
    except SignatureRefused:
        return ""
    return f"whpk_{b64encode(public.public_bytes_raw()).decode()}" if public is not None else ""


def is_public(secret: Secret) -> bool:
    """Whether everybody may know it: it is a public key."""
    return secret.reveal().startswith(_PUBLIC_PREFIX)


def verified(
    keys: Sequence[Ed25519PublicKey], given: Sequence[bytes], message: bytes
) -> list[bool]:
    """Of each key and each signature whether they go together."""
    return [_is_of(key, each, message) for key in keys for each in given]


def _is_of(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _bytes_of(text: bytes) -> bytes:
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        raise SignatureRefused("the secret is not base64") from None
    if not key:
        raise SignatureRefused("the secret is empty")
    return key


def _private(key: bytes) -> Key:
    """Of 32 bytes, or of these with the 32 of the public key, which must be theirs."""
    if len(key) not in {_ED25519_BYTES, 2 * _ED25519_BYTES}:
        raise SignatureRefused("the private key has neither 32 nor 64 bytes")
    private = Ed25519PrivateKey.from_private_bytes(key[:_ED25519_BYTES])
    public = private.public_key()
    if key[_ED25519_BYTES:] not in {b"", public.public_bytes_raw()}:
        raise SignatureRefused("the private key does not go with its public key")
    return Key(private=private, public=public)


def _public(key: bytes) -> Key:
    if len(key) != _ED25519_BYTES:
        raise SignatureRefused("the public key has not 32 bytes")
    return Key(public=Ed25519PublicKey.from_public_bytes(key))


_READ: Final[Mapping[bytes, Callable[[bytes], Key]]] = {
    _SECRET_PREFIX: Key,
    _PRIVATE_PREFIX: _private,
    _PUBLIC_PREFIX: _public,
}
NOBODYS: Final = Ed25519PrivateKey.generate().public_key()
"""Verifies nothing; it takes as long as one that does."""
