"""How the sender of a webhook proves who it is, by the endpoint's `auth`. Pure.

SIGNATURE signs the raw body as the provider's manifest says. BEARER, BASIC (RFC 6750, RFC 7617),
API_KEY and CUSTOM show a header: the one Tenon would send with the same credential. NONE proves
nothing of the sender: the url is the secret, its last part the `url_token` of the endpoint.

Each version of the credential that counts is compared in constant time, and each costs a digest of
the body, so that the time of a refusal does not tell by what an endpoint is entered, or whether
there is one.
"""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from services.chassis.errors import NotFound
from services.chassis.secret import Secret
from services.executor.registry.credentials import Resolved, Values
from services.providers.auth import Credential, CredentialRefused, auth_headers
from services.providers.manifest import AuthRule, SignatureScheme
from services.providers.signatures import OF_URLS, SignatureRefused, idle, verify
from services.providers.signing_keys import is_public

SIGNATURE: Final = "SIGNATURE"
NONE: Final = "NONE"
SECRET: Final = "secret"  # noqa: S105 - the name of a part
API_KEY_HEADER: Final = "X-API-Key"
TOKEN_BYTES: Final = 16
STRANGERS_SCHEME: Final[SignatureScheme] = "github_sha256"


class NotLetIn(NotFound):
    """No such endpoint, or not for this sender; `detail` is for operators alone."""

    def __init__(self, detail: str) -> None:
        super().__init__("not found")
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook as it came over the wire; header names are lower-case.

    What an app's stream brings comes by nobody's endpoint: it has no `tenant` and no `endpoint`.
    `token` is what stands behind the endpoint in the url; empty where nothing does. `target` is
    path and query as they came.
    """

    tenant: str
    endpoint: str
    headers: Mapping[str, str]
    body: bytes
    token: str = field(default="", repr=False)
    target: str = field(default="", repr=False)

    @property
    def path(self) -> str:
        """Where the endpoint is, without its token."""
        return f"/v1/{self.tenant}/{self.endpoint}"


class Proof(NamedTuple):
    """What lets a sender in: any of the `known` secrets, the newest first.

    `scheme` is how signatures are made, `header` the one that is shown, in lower case; `public_url`
    is where senders reach us, of which some signatures are, too.
    """

    auth: str
    known: Sequence[Secret]
    scheme: SignatureScheme = STRANGERS_SCHEME
    header: str = ""
    public_url: str = ""

    @property
    def of_url(self) -> bool:
        """Whether it is of the url, which has to be known then."""
        return self.auth == SIGNATURE and self.scheme in OF_URLS


def proof_of(
    spec: Mapping[str, Any], scheme: SignatureScheme, credential: Resolved, public_url: str = ""
) -> Proof:
    """What an endpoint of this spec asks for; nothing is known where the credential is of no use.

    Raises KeyError for an `auth` that senders do not have.
    """
    auth = auth_of(spec)
    ways = _WAYS[auth]
    versions = (credential.values, *credential.previous)
    known = [one for each in versions for one in ways.known(credential.type, each)]
    header = (spec.get("auth_header") or ways.header).lower()
    return Proof(auth, known, scheme, header, public_url)


def auth_of(spec: Mapping[str, Any]) -> str:
    """How senders prove who they are to an endpoint of this spec."""
    # What was projected before there was a choice says nothing.
    return spec.get("auth") or SIGNATURE


def prove(proof: Proof, delivery: Delivery, now: float) -> None:
    """Return if a delivery shows what it must; `now` is in seconds since the epoch.

    Raises NotLetIn for everything else.
    """
    _WAYS[proof.auth].check(proof, delivery, now)
    if delivery.token and proof.auth != NONE:
        raise NotLetIn("nothing stands behind this endpoint in its url")


def asks_rightly(proof: Proof, delivery: Delivery, said: str | None) -> bool:
    """Whether who asks about an url, before there is anything to prove, knows what they must.

    That is the url's token where it has one, and where a token is `said` besides, the same one.
    """
    if delivery.token and proof.auth != NONE:
        return False
    shown = [delivery.token] if proof.auth == NONE else []
    shown += [] if said is None else [said]
    return all(_is_one_of(_tokens(proof, delivery), token) for token in shown)


def url_token(secret: Secret, path: str) -> str:
    """The last part of the url of an endpoint that asks for NONE, and what others' setters-up know.

    The first 128 bits of HMAC-SHA-256 (RFC 2104) of the url's `path` before it, such as
    `/v1/acme/orders`, keyed by the endpoint's webhook_secret; base64url without padding (RFC 4648).
    So it is stored nowhere, is another one for each endpoint, and changes with the secret, the old
    one going on for the overlap.
    """
    digest = hmac.digest(secret.reveal(), path.encode(), hashlib.sha256)
    return urlsafe_b64encode(digest[:TOKEN_BYTES]).decode().rstrip("=")


def _secrets(_type: str, values: Values) -> Sequence[Secret]:
    secret = values.get(SECRET)
    return [secret] if secret is not None and secret.reveal() else []


def _unknown_to_others(kind: str, values: Values) -> Sequence[Secret]:
    """What an url may be made from: no public key."""
    return [each for each in _secrets(kind, values) if not is_public(each)]


def _carried(kind: str, values: Values) -> Sequence[Secret]:
    """The value of the header that carries a credential of this type, without a scheme's name."""
    rule = _RULES.get(kind)
    with suppress(CredentialRefused):
        carrying = auth_headers(rule, Credential(kind, values), {}) if rule else {}
        return [Secret(value) for value in carrying.values()]
    return []


def _signed(proof: Proof, delivery: Delivery, now: float) -> None:
    url = proof.public_url + delivery.target
    try:
        verify(proof.scheme, proof.known, delivery.headers, delivery.body, now, url)
    except SignatureRefused as error:
        raise NotLetIn(error.detail) from None


def _in_url(proof: Proof, delivery: Delivery, _now: float) -> None:
    _compare(_tokens(proof, delivery), delivery.token, delivery)


def _tokens(proof: Proof, delivery: Delivery) -> list[bytes]:
    return [url_token(each, delivery.path).encode() for each in proof.known]


def _after(scheme: str) -> Callable[[Proof, Delivery, float], None]:
    """Checks a header's value behind the scheme's name, whose case does not count (RFC 9110)."""
    prefix = f"{scheme} ".lower() if scheme else ""

    def check(proof: Proof, delivery: Delivery, _now: float) -> None:
        said = delivery.headers.get(proof.header, "")
        given = said[len(prefix) :] if said[: len(prefix)].lower() == prefix else ""
        known = [each.reveal() for each in proof.known]
        _compare(known, given.strip(" "), delivery)

    return check


def _compare(known: Sequence[bytes], given: str, delivery: Delivery) -> None:
    matches = _is_one_of(known, given)
    for each in known:
        # Thrown away: a signature would have cost it.
        hmac.digest(each, delivery.body, hashlib.sha256)
    idle(delivery.headers, delivery.body)
    if not matches:
        raise NotLetIn("what is shown is missing or wrong")


def _is_one_of(known: Sequence[bytes], given: str) -> bool:
    # It may hold bytes that are no text.
    said = given.encode(errors="surrogatepass")
    matches = [hmac.compare_digest(each, said) for each in known]
    return any(matches)


_RULES: Final[Mapping[str, AuthRule]] = {
    "api_key": AuthRule(type="api_key"),
    "bearer": AuthRule(type="bearer"),
    "basic": AuthRule(type="basic"),
}


@dataclass(frozen=True, slots=True)
class _Way:
    """One way of proving who one is: what one version of a credential lets in, and the check."""

    known: Callable[[str, Values], Sequence[Secret]]
    check: Callable[[Proof, Delivery, float], None]
    header: str = ""


_WAYS: Final[Mapping[str, _Way]] = {
    SIGNATURE: _Way(_secrets, _signed),
    NONE: _Way(_unknown_to_others, _in_url),
    "BEARER": _Way(_carried, _after("Bearer"), "Authorization"),
    "BASIC": _Way(_carried, _after("Basic"), "Authorization"),
    "API_KEY": _Way(_carried, _after(""), API_KEY_HEADER),
    "CUSTOM": _Way(_carried, _after("")),
}
WAYS: Final = frozenset(_WAYS)
