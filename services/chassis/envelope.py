"""The one sealed format: AES-256-GCM, bound to its place and committed to its key.

A sealed value is: 1 byte format version, 12 bytes nonce, 32 bytes key commitment, ciphertext,
16 bytes tag. Each message has its own encryption key and commitment, both from one HKDF over the
given key and the nonce: AES-GCM alone opens one ciphertext under several keys to different texts.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.chassis.errors import Internal
from services.chassis.secret import Secret

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_COMMITMENT_BYTES: Final = 32
_HEADER_BYTES: Final = len(_VERSION) + _NONCE_BYTES + _COMMITMENT_BYTES

_PAYLOAD: Final = b"tenon/payload/1"
_WRAPPED_KEY: Final = b"tenon/wrapped-key/1"
_MESSAGE_KEYS: Final = b"tenon/message-keys/1"
_DERIVED_KEY: Final = b"tenon/derived-key/1"
_FINGERPRINT: Final = b"tenon/fingerprint/1"


class Unsealable(Internal):
    """Not sealed by this key for this place, or no longer whole; which of them is not told."""

    reason = "UNSEALABLE"

    def __init__(self) -> None:
        super().__init__("the sealed value does not open here")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value stands; it opens nowhere else."""

    tenant: UUID
    table: str
    row: UUID
    column: str
    version: UUID
    data_key: UUID

    def associated_data(self) -> bytes:
        """The canonical bytes that the tag covers."""
        return length_prefixed(
            _PAYLOAD,
            self.tenant.bytes,
            self.table.encode(),
            self.row.bytes,
            self.column.encode(),
            self.version.bytes,
            self.data_key.bytes,
        )


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where a wrapped key stands: whose it is, and which version of which key wraps it."""

    tenant: UUID
    data_key: UUID
    wrapping_key: str
    wrapping_version: int

    def associated_data(self) -> bytes:
        """The canonical bytes that the tag covers."""
        return length_prefixed(
            _WRAPPED_KEY,
            self.tenant.bytes,
            self.data_key.bytes,
            self.wrapping_key.encode(),
            self.wrapping_version.to_bytes(8, "big"),
        )


def length_prefixed(*parts: bytes) -> bytes:
    """Each part after its length in 4 bytes, big-endian: no two lists of parts encode alike."""
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


def new_key() -> Secret:
    """256 random bits."""
    return Secret(os.urandom(KEY_BYTES))


def derive(key: Secret, purpose: str, *context: bytes) -> Secret:
    """A 256-bit key of its own for `purpose` and `context`, by HKDF-SHA256 (RFC 5869)."""
    return Secret(_hkdf(key, KEY_BYTES, _DERIVED_KEY, purpose.encode(), *context))


def fingerprint(key: Secret, kind: str, name: str, value: bytes) -> str:
    """HMAC-SHA256 of `value`, in hex: tells whether a secret changed, and nothing else about it.

    Bound to kind and name, so that equal values of two things do not show as equal.
    """
    message = length_prefixed(_FINGERPRINT, kind.encode(), name.encode(), value)
    return hmac.new(key.reveal(), message, hashlib.sha256).hexdigest()


def seal(key: Secret, place: Place, plaintext: bytes) -> bytes:
    """`plaintext`, to be opened only with `key` at `place`."""
    return _encrypt(key, place.associated_data(), plaintext)


def open_sealed(key: Secret, place: Place, sealed: bytes) -> Secret:
    """What `seal` was given. Raises Unsealable for any other key, place or byte."""
    return _decrypt(key, place.associated_data(), sealed)


def wrap(key: Secret, place: KeyPlace, data_key: Secret) -> bytes:
    """`data_key`, to be unwrapped only with `key` at `place`."""
    return _encrypt(key, place.associated_data(), _checked(data_key))


def unwrap(key: Secret, place: KeyPlace, wrapped: bytes) -> Secret:
    """What `wrap` was given. Raises Unsealable for any other key, place or byte."""
    return _decrypt(key, place.associated_data(), wrapped)


def _encrypt(key: Secret, associated: bytes, plaintext: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    message_key, commitment = _message_keys(key, nonce)
    header = _VERSION + nonce + commitment
    return header + AESGCM(message_key).encrypt(nonce, plaintext, associated)


def _decrypt(key: Secret, associated: bytes, sealed: bytes) -> Secret:
    if not sealed.startswith(_VERSION):
        raise Unsealable
    nonce = sealed[len(_VERSION) : len(_VERSION) + _NONCE_BYTES]
    message_key, commitment = _message_keys(key, nonce)
    if not hmac.compare_digest(commitment, sealed[len(_VERSION) + _NONCE_BYTES : _HEADER_BYTES]):
        raise Unsealable
    try:
        return Secret(AESGCM(message_key).decrypt(nonce, sealed[_HEADER_BYTES:], associated))
    except InvalidTag:
        raise Unsealable from None


def _message_keys(key: Secret, nonce: bytes) -> tuple[bytes, bytes]:
    both = _hkdf(key, KEY_BYTES + _COMMITMENT_BYTES, _MESSAGE_KEYS, nonce)
    return both[:KEY_BYTES], both[KEY_BYTES:]


def _hkdf(key: Secret, length: int, *info: bytes) -> bytes:
    hkdf = HKDF(algorithm=SHA256(), length=length, salt=None, info=length_prefixed(*info))
    return hkdf.derive(_checked(key))


def _checked(key: Secret) -> bytes:
    value = key.reveal()
    if len(value) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes")
    return value
