"""Webhook signatures: verified over raw bytes, in constant time, and made.

A scheme of `_SCHEMES` says what is signed, with which key, and how the signatures are written.
Sources: GitHub "Validating webhook deliveries"; Standard Webhooks 1.0.0, "Signature scheme".
"""

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.chassis.errors import Unauthenticated
from services.chassis.secret import Secret
from services.providers.manifest import SignatureScheme

TOLERANCE_S: Final = 300
_MAX_SIGNATURES: Final = 16
_GITHUB: Final = re.compile(r"sha256=([0-9a-f]{64})")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,11}")
# A dot would let bytes move between the id, the timestamp and the body of what was signed.
_ID: Final = re.compile(r"[!-\-/-~]{1,256}")
_SECRET_PREFIX: Final = b"whsec_"


class SignatureRefused(Unauthenticated):
    """Not signed by who should have; `detail` tells operators why and is never for the sender."""

    reason = "SIGNATURE_REFUSED"

    def __init__(self, detail: str) -> None:
        super().__init__("the signature is missing or wrong")
        self.detail = detail


@dataclass(frozen=True, slots=True)
class _Signed:
    """What came in: the signatures given and the message they should be of."""

    signatures: tuple[bytes, ...]
    message: bytes


@dataclass(frozen=True, slots=True)
class _Scheme:
    read: Callable[[Mapping[str, str], bytes, float], _Signed]
    key: Callable[[Secret], bytes]
    write: Callable[[bytes, bytes, float, str], dict[str, str]]


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
    one digest of the body, whether signatures are many, none or malformed.
    """
    keys, fault = _keys(scheme, secrets), None
    try:
        signed = _SCHEMES[scheme].read(headers, body, now)
    except SignatureRefused as error:
        signed, fault = _Signed((), body), error
    digests = [_digest(key, signed.message) for key in keys]
    matches = [hmac.compare_digest(ours, given) for ours in digests for given in signed.signatures]
    if not any(matches):
        raise fault or SignatureRefused("no signature is of this body and secret")


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


def _keys(scheme: SignatureScheme, secrets: Sequence[Secret]) -> list[bytes]:
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


def _match(pattern: re.Pattern[str], headers: Mapping[str, str], name: str) -> re.Match[str]:
    found = pattern.fullmatch(headers.get(name, ""))
    if found is None:
        raise SignatureRefused(f"{name} is missing or malformed")
    return found


def _github_read(headers: Mapping[str, str], body: bytes, _now: float) -> _Signed:
    given = _match(_GITHUB, headers, "x-hub-signature-256")[1]
    return _Signed((bytes.fromhex(given),), body)


def _github_key(secret: Secret) -> bytes:
    if not secret.reveal():
        raise SignatureRefused("the secret is empty")
    return secret.reveal()


def _github_write(key: bytes, body: bytes, _now: float, _id: str) -> dict[str, str]:
    return {"x-hub-signature-256": f"sha256={_digest(key, body).hex()}"}


def _standard_read(headers: Mapping[str, str], body: bytes, now: float) -> _Signed:
    message_id = _match(_ID, headers, "webhook-id")[0]
    timestamp = _match(_TIMESTAMP, headers, "webhook-timestamp")[0]
    if abs(now - int(timestamp)) > TOLERANCE_S:
        raise SignatureRefused("webhook-timestamp is too old or too new")
    given = headers.get("webhook-signature", "").split(" ")[:_MAX_SIGNATURES]
    signatures = tuple(
        _decoded(word.removeprefix("v1,")) for word in given if word.startswith("v1,")
    )
    if not signatures:
        raise SignatureRefused("webhook-signature has no v1 signature")
    return _Signed(signatures, _standard_message(message_id, timestamp, body))


def _decoded(text: str) -> bytes:
    """The bytes of a base64 word; nothing for a malformed one, so that its neighbours count."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def _standard_key(secret: Secret) -> bytes:
    try:
        key = b64decode(secret.reveal().removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        raise SignatureRefused("the secret is not base64") from None
    if not key:
        raise SignatureRefused("the secret is empty")
    return key


def _standard_message(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode("ascii") + body


def _standard_write(key: bytes, body: bytes, now: float, message_id: str) -> dict[str, str]:
    if not _ID.fullmatch(message_id):
        raise SignatureRefused("the message id has a dot, white space or nothing in it")
    timestamp = str(int(now))
    digest = _digest(key, _standard_message(message_id, timestamp, body))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{b64encode(digest).decode('ascii')}",
    }


_SCHEMES: Final[Mapping[SignatureScheme, _Scheme]] = {
    "github_sha256": _Scheme(_github_read, _github_key, _github_write),
    "standard_webhooks": _Scheme(_standard_read, _standard_key, _standard_write),
}
SCHEMES: Final = tuple(_SCHEMES)
