"""Webhook signatures: verified over raw bytes, in constant time, and made.

A scheme of `_SCHEMES` says what is signed, with which key, and how the signatures are written. A
key of Standard Webhooks is symmetric (`whsec_`, written `v1`) or a pair (`whsk_` signs, `whpk_`
verifies; Ed25519, written `v1a`): then who verifies can sign nothing.
Sources: GitHub "Validating webhook deliveries"; Standard Webhooks 1.0.0, "Signature scheme"; RFC
8032 for Ed25519.
"""

import hashlib
import hmac
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis.errors import Unauthenticated
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.providers.manifest import SignatureScheme

TOLERANCE_S: Final = 300
_MAX_SIGNATURES: Final = 16
_MAX_ASYMMETRIC: Final = 2
"""Of an overlap; each costs a tenth of a millisecond, whoever sends it."""
_GITHUB: Final = re.compile(r"sha256=([0-9a-f]{64})")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,11}")
# A dot would let bytes move between the id, the timestamp and the body of what was signed.
_ID: Final = re.compile(r"[!-\-/-~]{1,256}")
_SECRET_PREFIX: Final = b"whsec_"
_PRIVATE_PREFIX: Final = b"whsk_"
_PUBLIC_PREFIX: Final = b"whpk_"
_SYMMETRIC: Final = "v1"
_ASYMMETRIC: Final = "v1a"
_SIGNATURE: Final = "webhook-signature"
SECRET_BYTES: Final = 32
_ED25519_BYTES: Final = 32


class SignatureRefused(Unauthenticated):
    """Not signed by who should have; `detail` tells operators why and is never for the sender."""

    reason = "SIGNATURE_REFUSED"

    def __init__(self, detail: str) -> None:
        super().__init__("the signature is missing or wrong")
        self.detail = detail


@dataclass(frozen=True, slots=True)
class _Key:
    """What one secret signs with and verifies by: bytes, or one half of a pair or both.

    A pair has no `shared` bytes; of a public key alone `private` is missing.
    """

    shared: bytes | None = field(default=None, repr=False)
    private: Ed25519PrivateKey | None = field(default=None, repr=False)
    public: Ed25519PublicKey | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Signed:
    """What came in: the signatures given and the message they should be of."""

    signatures: tuple[bytes, ...]
    message: bytes
    asymmetric: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scheme:
    read: Callable[[Mapping[str, str], bytes, float], _Signed]
    key: Callable[[Secret], _Key]
    write: Callable[[_Key, bytes, float, str], dict[str, str]]


def verify(
    scheme: SignatureScheme,
    secrets: Sequence[Secret],
    headers: Mapping[str, str],
    body: bytes,
    now: float,
) -> None:
    """Return if any of `secrets` (the current one, and older ones in their overlap) signed `body`.

    `headers` have lower-case names; `body` is what came over the wire; `now` is in seconds since
    the epoch. Raises SignatureRefused for everything else, without secrets too. Each secret costs
    one digest of the body, whether signatures are many, none or malformed; what came of asymmetric
    signatures is verified by some key, whether or not an endpoint has one.
    """
    keys, fault = _keys(scheme, secrets), None
    try:
        signed = _SCHEMES[scheme].read(headers, body, now)
    except SignatureRefused as error:
        signed, fault = _Signed((), body), error
    digests = [_digest(key.shared or b"", signed.message) for key in keys]
    matches = [
        hmac.compare_digest(digest, given) and key.shared is not None
        for key, digest in zip(keys, digests, strict=True)
        for given in signed.signatures
    ]
    pairs = [key.public for key in keys if key.public is not None]
    if pairs and signed.asymmetric:
        matches += _verified(pairs, signed.asymmetric, signed.message)
    else:
        idle(headers, body)
    if not any(matches):
        raise fault or SignatureRefused("no signature is of this body and secret")


def idle(headers: Mapping[str, str], body: bytes) -> None:
    """Take the time that verifying asymmetric signatures takes, where there is no key for them."""
    _verified([_NOBODYS], _given(headers, _ASYMMETRIC), body)


def sign(
    scheme: SignatureScheme,
    secret: Secret,
    body: bytes,
    now: float,
    id: str,  # noqa: A002 -- the standard's own word
) -> dict[str, str]:
    """The headers, with lower-case names, that sign `body` at `now` for message `id`.

    Raises SignatureRefused for a secret or an id the scheme cannot take.
    """
    return _SCHEMES[scheme].write(_SCHEMES[scheme].key(secret), body, now, id)


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
        public = _standard_key(secret).public
    except SignatureRefused:
        return ""
    return f"whpk_{b64encode(public.public_bytes_raw()).decode()}" if public is not None else ""


def is_public(secret: Secret) -> bool:
    """Whether everybody may know it: it is a public key."""
    return secret.reveal().startswith(_PUBLIC_PREFIX)


def _keys(scheme: SignatureScheme, secrets: Sequence[Secret]) -> list[_Key]:
    """The keys of those secrets that are some: what was no secret once must not bar its successor.

    Raises SignatureRefused where none is.
    """
    keys, fault = [], SignatureRefused("the endpoint has no secret")
    for secret in secrets:
        try:
            keys.append(_SCHEMES[scheme].key(secret))
        except SignatureRefused as error:
            fault = error
    if not keys:
        raise fault
    return keys


def _digest(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def _verified(
    keys: Sequence[Ed25519PublicKey], given: Sequence[bytes], message: bytes
) -> list[bool]:
    return [_is_of(key, each, message) for key in keys for each in given]


def _is_of(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _match(pattern: re.Pattern[str], headers: Mapping[str, str], name: str) -> re.Match[str]:
    found = pattern.fullmatch(headers.get(name, ""))
    if found is None:
        raise SignatureRefused(f"{name} is missing or malformed")
    return found


def _github_read(headers: Mapping[str, str], body: bytes, _now: float) -> _Signed:
    given = _match(_GITHUB, headers, "x-hub-signature-256")[1]
    return _Signed((bytes.fromhex(given),), body)


def _github_key(secret: Secret) -> _Key:
    if not secret.reveal():
        raise SignatureRefused("the secret is empty")
    if is_public(secret):
        raise SignatureRefused("the secret is a public key")
    return _Key(secret.reveal())


def _github_write(key: _Key, body: bytes, _now: float, _id: str) -> dict[str, str]:
    return {"x-hub-signature-256": f"sha256={_digest(key.shared or b'', body).hex()}"}


def _standard_read(headers: Mapping[str, str], body: bytes, now: float) -> _Signed:
    message_id = _match(_ID, headers, "webhook-id")[0]
    timestamp = _match(_TIMESTAMP, headers, "webhook-timestamp")[0]
    if abs(now - int(timestamp)) > TOLERANCE_S:
        raise SignatureRefused("webhook-timestamp is too old or too new")
    signatures, asymmetric = _given(headers, _SYMMETRIC), _given(headers, _ASYMMETRIC)
    if not signatures and not asymmetric:
        raise SignatureRefused("webhook-signature has no signature of v1 or v1a")
    return _Signed(signatures, _standard_message(message_id, timestamp, body), asymmetric)


def _given(headers: Mapping[str, str], version: str) -> tuple[bytes, ...]:
    """The signatures of one version in the header of Standard Webhooks, as far as it is read."""
    words = headers.get(_SIGNATURE, "").split(" ")[:_MAX_SIGNATURES]
    found = [word.partition(",")[2] for word in words if word.startswith(f"{version},")]
    most = _MAX_ASYMMETRIC if version == _ASYMMETRIC else _MAX_SIGNATURES
    return tuple(map(_decoded, found[:most]))


def _decoded(text: str) -> bytes:
    """The bytes of a base64 word; nothing for a malformed one, so that its neighbours count."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def _standard_key(secret: Secret) -> _Key:
    text = secret.reveal()
    for prefix, read in _READ.items():
        if text.startswith(prefix):
            return read(_bytes_of(text.removeprefix(prefix)))
    return _Key(_bytes_of(text))


def _bytes_of(text: bytes) -> bytes:
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        raise SignatureRefused("the secret is not base64") from None
    if not key:
        raise SignatureRefused("the secret is empty")
    return key


def _private(key: bytes) -> _Key:
    """Of 32 bytes, or of these with the 32 of the public key, which must be theirs."""
    if len(key) not in {_ED25519_BYTES, 2 * _ED25519_BYTES}:
        raise SignatureRefused("the private key has neither 32 nor 64 bytes")
    private = Ed25519PrivateKey.from_private_bytes(key[:_ED25519_BYTES])
    public = private.public_key()
    if key[_ED25519_BYTES:] not in {b"", public.public_bytes_raw()}:
        raise SignatureRefused("the private key does not go with its public key")
    return _Key(private=private, public=public)


def _public(key: bytes) -> _Key:
    if len(key) != _ED25519_BYTES:
        raise SignatureRefused("the public key has not 32 bytes")
    return _Key(public=Ed25519PublicKey.from_public_bytes(key))


_READ: Final[Mapping[bytes, Callable[[bytes], _Key]]] = {
    _SECRET_PREFIX: _Key,
    _PRIVATE_PREFIX: _private,
    _PUBLIC_PREFIX: _public,
}
_NOBODYS: Final = Ed25519PrivateKey.generate().public_key()


def _standard_message(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode("ascii") + body


def _standard_write(key: _Key, body: bytes, now: float, message_id: str) -> dict[str, str]:
    if not _ID.fullmatch(message_id):
        raise SignatureRefused("the message id has a dot, white space or nothing in it")
    timestamp = str(int(now))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        _SIGNATURE: _signature(key, _standard_message(message_id, timestamp, body)),
    }


def _signature(key: _Key, message: bytes) -> str:
    if key.shared is not None:
        return f"{_SYMMETRIC},{b64encode(_digest(key.shared, message)).decode('ascii')}"
    if key.private is not None:
        return f"{_ASYMMETRIC},{b64encode(key.private.sign(message)).decode('ascii')}"
    raise SignatureRefused("a public key signs nothing")


_SCHEMES: Final[Mapping[SignatureScheme, _Scheme]] = {
    "github_sha256": _Scheme(_github_read, _github_key, _github_write),
    "standard_webhooks": _Scheme(_standard_read, _standard_key, _standard_write),
}
SCHEMES: Final = tuple(_SCHEMES)
