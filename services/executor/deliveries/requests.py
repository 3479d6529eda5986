"""The request that carries a delivery: signed by Standard Webhooks 1.0.0, with the sender's proof.

During a rotation's overlap it is signed with both secrets, in one header, so that a receiver may
change over at any moment.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from services.chassis.egress import Identity, Request
from services.chassis.endpoint_limits import Only
from services.chassis.errors import FailedPrecondition
from services.chassis.secret import Secret
from services.executor.registry.credentials import Resolved
from services.executor.store.projected import ProjectedObject
from services.providers.auth import Credential, auth_headers
from services.providers.manifest import AuthRule
from services.providers.signatures import SignatureRefused, sign

SCHEME: Final = "standard_webhooks"
SIGNATURE: Final = "webhook-signature"
MESSAGE_PREFIX: Final = "evt_"

_BEARER: Final = AuthRule(type="bearer", prefix="Bearer ")
RULES: Final[Mapping[str, AuthRule]] = {
    "BEARER": _BEARER,
    # The registry gives an access token as the token of a bearer.
    "OAUTH2": _BEARER,
    "BASIC": AuthRule(type="basic", prefix="Basic "),
}
DEFAULT_HEADER: Final = "X-API-Key"
MTLS: Final = "MTLS"


def request_of(
    spec: Mapping[str, Any],
    message_id: UUID,
    body: bytes,
    secrets: Sequence[Secret],
    credential: Credential,
    now: float,
    identity: Identity | None = None,
) -> Request:
    """The request for an endpoint; every try of a delivery has the same `webhook-id`.

    An `identity` is shown in the TLS handshake.

    Raises FailedPrecondition or CredentialRefused where the endpoint's secrets cannot be used.
    """
    headers = {
        "content-type": "application/json",
        "user-agent": "Tenon-Webhooks",
        **{name.lower(): value for name, value in spec["headers"].items()},
        **_proof(spec, credential),
        **signed(message_id, body, secrets, now),
    }
    return Request("POST", spec["url"], headers, body, credential.only or Only(), identity)


def identity_of(endpoint: ProjectedObject, known: Resolved | None) -> Identity | None:
    """What an endpoint of `auth: MTLS` is shown, for itself alone and for this version alone.

    Raises FailedPrecondition where the credential has no certificate.
    """
    if endpoint.spec["auth"] != MTLS:
        return None
    if known is None or not {"certificate", "private_key"} <= known.values.keys():
        raise FailedPrecondition("the endpoint has no certificate to show", reason="NO_CERTIFICATE")
    name = f"{endpoint.object_id}/{known.credential_id}/{known.version}"
    return Identity(name, known.values["certificate"], known.values["private_key"])


def signed(message_id: UUID, body: bytes, secrets: Sequence[Secret], now: float) -> dict[str, str]:
    """The three headers, with a signature by each secret, the newest first."""
    if not secrets:
        raise FailedPrecondition("the endpoint has no secret to sign with", reason="NO_SECRET")
    made, fault = list[dict[str, str]](), ""
    for each in secrets:
        try:
            made.append(sign(SCHEME, each, body, now, f"{MESSAGE_PREFIX}{message_id}"))
        except SignatureRefused as error:
            # What was no secret once must not bar its successor.
            fault = error.detail
    if not made:
        raise FailedPrecondition(fault, reason="BAD_SECRET")
    return {**made[0], SIGNATURE: " ".join(each[SIGNATURE] for each in made)}


def message_headers(
    message_id: UUID, body: bytes, secrets: Sequence[Secret], now: float
) -> dict[str, str]:
    """The headers of a message that may go out unsigned: without a secret, its id and the time."""
    if secrets:
        return signed(message_id, body, secrets, now)
    return {"webhook-id": f"{MESSAGE_PREFIX}{message_id}", "webhook-timestamp": str(int(now))}


def _proof(spec: Mapping[str, Any], credential: Credential) -> dict[str, str]:
    if credential.type == "none" or spec["auth"] == MTLS:
        return {}
    rule = RULES.get(spec["auth"]) or AuthRule(
        type="api_key" if credential.type == "api_key" else "bearer",
        header=spec["auth_header"] or DEFAULT_HEADER,
    )
    return auth_headers(rule, credential, {})
