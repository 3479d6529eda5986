"""Secrets sealed to a public key, so that whoever has that may write one and nobody else read it.

HPKE (RFC 9180), base mode: X25519, HKDF-SHA256, AES-256-GCM; what a seal is for is its `info`. As
text a seal is `tenon-seal-1.VERSION.BODY`, and the public key `tenon-sealing-key-1.VERSION.BODY`:
the key's version as a decimal number from 1, and base64url (RFC 4648 §5) without padding.
"""

import base64
import re
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from services.chassis.envelope import Unsealable, length_prefixed
from services.chassis.errors import InvalidArgument
from services.chassis.secret import Secret

LARGEST: Final = 64 * 2**10
"""Bytes of one secret."""

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_KEY_BYTES: Final = 32
_OVERHEAD_BYTES: Final = 32 + 16
"""The encapsulated key before the ciphertext, the tag after it."""
_PURPOSE: Final = b"tenon/seal/1"
_SEAL: Final = "tenon-seal-1"
_SEALING_KEY: Final = "tenon-sealing-key-1"
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
_BODY: Final = re.compile(r"[A-Za-z0-9_-]+")


class NotASeal(InvalidArgument):
    """Not what `seal` gives; how it differs is not told, since it may be a secret in clear."""

    reason = "NOT_A_SEAL"

    def __init__(self) -> None:
        super().__init__("not what `tenon seal` prints")


class NotASealingKey(InvalidArgument):
    """Not a public key, or none that anything can be sealed to."""

    reason = "NOT_A_SEALING_KEY"

    def __init__(self) -> None:
        super().__init__("not what `tenon seal --print-key` prints")


class TooLarge(InvalidArgument):
    """More than LARGEST bytes."""

    reason = "SECRET_TOO_LARGE"

    def __init__(self) -> None:
        super().__init__(f"a secret has at most {LARGEST // 2**10} KiB")


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a seal is for; it opens for nothing else. `tenant` is the slug, `name` the object's."""

    tenant: str
    kind: str
    name: str
    part: str

    def info(self) -> bytes:
        """The canonical bytes that the key of a seal is derived with."""
        words = (self.tenant, self.kind, self.name, self.part)
        return length_prefixed(_PURPOSE, *(word.encode() for word in words))


def new_pair() -> tuple[Secret, bytes]:
    """A private key and its public key, 32 bytes each."""
    private = X25519PrivateKey.generate()
    return Secret(private.private_bytes_raw()), private.public_key().public_bytes_raw()


def seal(public: bytes, version: int, purpose: Purpose, plaintext: Secret) -> str:
    """`plaintext` as text that only the private key of `public` opens, and only for `purpose`.

    Raises TooLarge, and NotASealingKey where nothing can be sealed to `public`.
    """
    if len(plaintext.reveal()) > LARGEST:
        raise TooLarge
    if not _VERSION.fullmatch(str(version)):
        raise NotASealingKey
    try:
        key = X25519PublicKey.from_public_bytes(public)
        body = _SUITE.encrypt(plaintext.reveal(), key, purpose.info())
    except ValueError:
        # Of another length, or of low order: any private key would open (RFC 7748 §6.1).
        raise NotASealingKey from None
    return _written(_SEAL, version, body)


def version_of(sealed: str) -> int:
    """Which version of the key opens a seal. Raises NotASeal."""
    return _parsed(sealed)[0]


def open_box(private: Secret, purpose: Purpose, sealed: str) -> Secret:
    """What `seal` was given. Raises NotASeal, and Unsealable for any other key, purpose or byte."""
    _, body = _parsed(sealed)
    key = X25519PrivateKey.from_private_bytes(private.reveal())
    try:
        return Secret(_SUITE.decrypt(body, key, purpose.info()))
    except InvalidTag:
        raise Unsealable from None


def sealing_key_text(version: int, public: bytes) -> str:
    """A public key as a line of text, to be kept for sealing without asking anybody."""
    return _written(_SEALING_KEY, version, public)


def sealing_key_of(text: str) -> tuple[int, bytes]:
    """Version and public key out of what `sealing_key_text` gave. Raises NotASealingKey."""
    version, public = _read(_SEALING_KEY, text) or (0, b"")
    if len(public) != _KEY_BYTES:
        raise NotASealingKey
    return version, public


def _parsed(sealed: str) -> tuple[int, bytes]:
    version, body = _read(_SEAL, sealed) or (0, b"")
    if not _OVERHEAD_BYTES <= len(body) <= _OVERHEAD_BYTES + LARGEST:
        raise NotASeal
    return version, body


def _written(form: str, version: int, body: bytes) -> str:
    return f"{form}.{version}.{base64.urlsafe_b64encode(body).decode().rstrip('=')}"


def _read(form: str, text: str) -> tuple[int, bytes] | None:
    """Version and body of the one text that has them; None for any other."""
    version, _, body = text.removeprefix(f"{form}.").partition(".")
    if not _VERSION.fullmatch(version) or not _BODY.fullmatch(body):
        return None
    if len(body) % 4 == 1:
        return None
    found = int(version), base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    # Bits of base64 that say nothing may not differ, nor may the form.
    return found if _written(form, *found) == text else None
