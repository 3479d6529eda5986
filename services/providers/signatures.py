"""Webhook signatures: verified over raw bytes, in constant time, and made.

A scheme of `_SCHEMES` says what is signed, with which key, and how the signatures are written.
Sources: GitHub "Validating webhook deliveries"; Standard Webhooks 1.0.0, "Signature scheme"; Slack
"Verifying requests from Slack"; Stripe "Verify webhook signatures manually"; HubSpot "Validating
requests", v3; Intuit "Managing webhooks notifications".
"""

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.chassis.secret import Secret
from services.providers.manifest import SignatureScheme
from services.providers.signing_keys import (
    ASYMMETRIC,
    NOBODYS,
    SYMMETRIC,
    Key,
    SignatureRefused,
    plain_key,
    standard_key,
    verified,
)

__all__ = ["OF_URLS", "SCHEMES", "TOLERANCE_S", "SignatureRefused", "idle", "sign", "verify"]

TOLERANCE_S: Final = 300
_MAX_SIGNATURES: Final = 16
_MAX_ASYMMETRIC: Final = 2
"""Of an overlap; each costs a tenth of a millisecond, whoever sends it."""
_GITHUB: Final = re.compile(r"sha256=([0-9a-f]{64})")
_SLACK: Final = re.compile(r"v0=([0-9a-f]{64})")
_STRIPE_TIME: Final = re.compile(r"t=([0-9]{1,11})")
_STRIPE_V1: Final = re.compile(r"v1=([0-9a-f]{64})")
# Of 32 bytes: the last sign but one has two bits that stand for nothing, and are 0 (RFC 4648, 3.5).
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,11}")
_TIMESTAMP_MS: Final = re.compile(r"[0-9]{1,14}")
# What HubSpot undoes in an url before it signs it, and no more than that.
_HUBSPOT_PLAIN: Final = re.compile(r"%(?:3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)
# A dot would let bytes move between the id, the timestamp and the body of what was signed.
_ID: Final = re.compile(r"[!-\-/-~]{1,256}")
_SIGNATURE: Final = "webhook-signature"


class _Posted(NamedTuple):
    """What is signed of a POST, and at what time; header names are lower-case."""

    headers: Mapping[str, str]
    body: bytes
    now: float
    url: str


class _Signed(NamedTuple):
    """What came in: the signatures given and the message they should be of."""

    signatures: tuple[bytes, ...]
    message: bytes
    asymmetric: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scheme:
    read: Callable[[_Posted], _Signed]
    key: Callable[[Secret], Key]
    write: Callable[[Key, _Posted, str], dict[str, str]]


def verify(
    scheme: SignatureScheme,
    secrets: Sequence[Secret],
    headers: Mapping[str, str],
    body: bytes,
    now: float,
    url: str = "",
) -> None:
    """Return if any of `secrets` (the current one, and older ones in their overlap) signed `body`.

    `headers` have lower-case names; `body` is what came over the wire; `now` is in seconds since
    the epoch; `url` is where the sender sent it, for schemes of OF_URLS. Raises SignatureRefused
    for everything else, without secrets too. Each secret costs one digest of the body, whether
    signatures are many, none or malformed; what came of asymmetric signatures is verified by some
    key, whether or not an endpoint has one.
    """
    keys, fault = _keys(scheme, secrets), None
    try:
        signed = _SCHEMES[scheme].read(_Posted(headers, body, now, url))
    except SignatureRefused as error:
        signed, fault = _Signed((), body), error
    digests = [key.digest(signed.message) for key in keys]
    matches = [
        hmac.compare_digest(digest, given) and key.shared is not None
        for key, digest in zip(keys, digests, strict=True)
        for given in signed.signatures
    ]
    pairs = [key.public for key in keys if key.public is not None]
    if pairs and signed.asymmetric:
        matches += verified(pairs, signed.asymmetric, signed.message)
    else:
        idle(headers, body)
    if not any(matches):
        raise fault or SignatureRefused("no signature is of this body and secret")


def idle(headers: Mapping[str, str], body: bytes) -> None:
    """Take the time that verifying asymmetric signatures takes, where there is no key for them."""
    verified([NOBODYS], _given(headers, ASYMMETRIC), body)


def sign(
    scheme: SignatureScheme,
    secret: Secret,
    body: bytes,
    now: float,
    id: str,  # noqa: A002 -- the standard's own word
    url: str = "",
) -> dict[str, str]:
    """The headers, with lower-case names, that sign `body` at `now` for message `id` to `url`.

    Raises SignatureRefused for a secret or an id the scheme cannot take.
    """
    posted = _Posted({}, body, now, url)
    return _SCHEMES[scheme].write(_SCHEMES[scheme].key(secret), posted, id)


def _keys(scheme: SignatureScheme, secrets: Sequence[Secret]) -> list[Key]:
    """The keys of those secrets that are some: what was no secret once must not bar its successor.

    Raises SignatureRefused where none is.
    """
    keys, fault = list[Key](), None
    for secret in secrets:
        try:
            keys.append(_SCHEMES[scheme].key(secret))
        except SignatureRefused as error:
            fault = error
    if not keys:
        raise fault or SignatureRefused("the endpoint has no secret")
    return keys


def _match(pattern: re.Pattern[str], headers: Mapping[str, str], name: str) -> re.Match[str]:
    found = pattern.fullmatch(headers.get(name, ""))
    if found is None:
        raise SignatureRefused(f"{name} is missing or malformed")
    return found


def _in_time(sent: float, now: float) -> None:
    if abs(now - sent) > TOLERANCE_S:
        raise SignatureRefused("the timestamp is too old or too new")


def _github_read(posted: _Posted) -> _Signed:
    given = _match(_GITHUB, posted.headers, "x-hub-signature-256")[1]
    return _Signed((bytes.fromhex(given),), posted.body)


def _github_write(key: Key, posted: _Posted, _id: str) -> dict[str, str]:
    return {"x-hub-signature-256": f"sha256={key.digest(posted.body).hex()}"}


def _slack_read(posted: _Posted) -> _Signed:
    given = _match(_SLACK, posted.headers, "x-slack-signature")[1]
    timestamp = _match(_TIMESTAMP, posted.headers, "x-slack-request-timestamp")[0]
    _in_time(int(timestamp), posted.now)
    return _Signed((bytes.fromhex(given),), _slack_message(timestamp, posted.body))


def _slack_message(timestamp: str, body: bytes) -> bytes:
    return f"v0:{timestamp}:".encode("ascii") + body


def _slack_write(key: Key, posted: _Posted, _id: str) -> dict[str, str]:
    timestamp = str(int(posted.now))
    digest = key.digest(_slack_message(timestamp, posted.body))
    return {"x-slack-signature": f"v0={digest.hex()}", "x-slack-request-timestamp": timestamp}


def _stripe_read(posted: _Posted) -> _Signed:
    """One time, and a signature for each secret while an endpoint has two."""
    words = posted.headers.get("stripe-signature", "").split(",")[:_MAX_SIGNATURES]
    times = [found[1] for word in words if (found := _STRIPE_TIME.fullmatch(word))]
    given = [found[1] for word in words if (found := _STRIPE_V1.fullmatch(word))]
    if len(times) != 1 or not given:
        raise SignatureRefused("stripe-signature is missing or malformed")
    _in_time(int(times[0]), posted.now)
    return _Signed(tuple(map(bytes.fromhex, given)), _stripe_message(times[0], posted.body))


def _stripe_message(timestamp: str, body: bytes) -> bytes:
    return f"{timestamp}.".encode("ascii") + body


def _stripe_write(key: Key, posted: _Posted, _id: str) -> dict[str, str]:
    timestamp = str(int(posted.now))
    digest = key.digest(_stripe_message(timestamp, posted.body))
    return {"stripe-signature": f"t={timestamp},v1={digest.hex()}"}


def _hubspot_read(posted: _Posted) -> _Signed:
    given = _match(_BASE64, posted.headers, "x-hubspot-signature-v3")[0]
    timestamp = _match(_TIMESTAMP_MS, posted.headers, "x-hubspot-request-timestamp")[0]
    _in_time(int(timestamp) / 1000, posted.now)
    return _Signed((b64decode(given),), _hubspot_message(timestamp, posted))


def _hubspot_message(timestamp: str, posted: _Posted) -> bytes:
    url = _HUBSPOT_PLAIN.sub(lambda found: chr(int(found[0][1:], 16)), posted.url)
    return f"POST{url}".encode(errors="surrogateescape") + posted.body + timestamp.encode("ascii")


def _hubspot_write(key: Key, posted: _Posted, _id: str) -> dict[str, str]:
    timestamp = str(int(posted.now * 1000))
    digest = key.digest(_hubspot_message(timestamp, posted))
    return {
        "x-hubspot-signature-v3": b64encode(digest).decode("ascii"),
        "x-hubspot-request-timestamp": timestamp,
    }


def _intuit_read(posted: _Posted) -> _Signed:
    given = _match(_BASE64, posted.headers, "intuit-signature")[0]
    return _Signed((b64decode(given),), posted.body)


def _intuit_write(key: Key, posted: _Posted, _id: str) -> dict[str, str]:
    return {"intuit-signature": b64encode(key.digest(posted.body)).decode("ascii")}


def _standard_read(posted: _Posted) -> _Signed:
    headers = posted.headers
    message_id = _match(_ID, headers, "webhook-id")[0]
    timestamp = _match(_TIMESTAMP, headers, "webhook-timestamp")[0]
    _in_time(int(timestamp), posted.now)
    signatures, asymmetric = _given(headers, SYMMETRIC), _given(headers, ASYMMETRIC)
    if not signatures and not asymmetric:
        raise SignatureRefused("webhook-signature has no signature of v1 or v1a")
    message = _standard_message(message_id, timestamp, posted.body)
    return _Signed(signatures, message, asymmetric)


def _given(headers: Mapping[str, str], version: str) -> tuple[bytes, ...]:
    """The signatures of one version in the header of Standard Webhooks, as far as it is read."""
    said = headers.get(_SIGNATURE)
    if said is None:
        # As with most providers.
        return ()
    words = said.split(" ")[:_MAX_SIGNATURES]
    found = [word.partition(",")[2] for word in words if word.startswith(f"{version},")]
    most = _MAX_ASYMMETRIC if version == ASYMMETRIC else _MAX_SIGNATURES
    return tuple(map(_decoded, found[:most]))


def _decoded(text: str) -> bytes:
    """The bytes of a base64 word; nothing for a malformed one, so that its neighbours count."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def _standard_message(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode("ascii") + body


def _standard_write(key: Key, posted: _Posted, message_id: str) -> dict[str, str]:
    if not _ID.fullmatch(message_id):
        raise SignatureRefused("the message id has a dot, white space or nothing in it")
    timestamp = str(int(posted.now))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        _SIGNATURE: key.signature(_standard_message(message_id, timestamp, posted.body)),
    }


_SCHEMES: Final[Mapping[SignatureScheme, _Scheme]] = {
    "github_sha256": _Scheme(_github_read, plain_key, _github_write),
    "standard_webhooks": _Scheme(_standard_read, standard_key, _standard_write),
    "slack_v0": _Scheme(_slack_read, plain_key, _slack_write),
    "stripe_v1": _Scheme(_stripe_read, plain_key, _stripe_write),
    "hubspot_v3": _Scheme(_hubspot_read, plain_key, _hubspot_write),
    "intuit_sha256": _Scheme(_intuit_read, plain_key, _intuit_write),
}
SCHEMES: Final = tuple(_SCHEMES)
OF_URLS: Final[frozenset[SignatureScheme]] = frozenset({"hubspot_v3"})
"""The schemes whose signatures are of the url, too, as its sender has it."""
