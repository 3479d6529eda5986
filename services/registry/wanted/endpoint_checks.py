"""Whether endpoints make sense, and what is routed to them: pure."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from services.chassis.egress_requests import OWNED_HEADERS
from services.chassis.expressions import ExpressionError
from services.chassis.ids import SLUG, SLUG_RULE
from services.chassis.jsonpath import JsonPath, JsonPathError
from services.chassis.templates import Template
from services.providers import brokers
from services.providers.catalog import Catalog
from services.providers.urls import base_url_problem
from services.registry.wanted.objects import Complete, Key

Found = Iterator[tuple[str, str]]
Known = Mapping[Key, Complete]

INBOUND: Final = "INBOUND"
OUTBOUND: Final = "OUTBOUND"
NEEDING_SECRET: Final[Mapping[str, str]] = {
    "SIGNATURE": "what signatures are checked with",
    "NONE": "what the token in the url is made from",
}
"""Why senders of an inbound endpoint cannot do without its secret, by how they prove themselves."""
SHOWN: Final[Mapping[str, frozenset[str]]] = {
    "BEARER": frozenset({"bearer"}),
    "API_KEY": frozenset({"api_key"}),
    "BASIC": frozenset({"basic"}),
    "CUSTOM": frozenset({"api_key", "bearer"}),
    "OAUTH2": frozenset({"oauth2"}),
    "MTLS": frozenset({"client_certificate"}),
}
"""The types of credential that each way of proving who one is takes."""
EVERYBODY: Final = "*"
SHOWN_TO_BROKERS: Final = ("SIGNATURE", "NONE", "BASIC", "BEARER")
"""The ways of proving who one is that a broker knows; the first two are none."""
BROKERS_OWN: Final = "nats-"
OUTWARD: Final = frozenset({"OAUTH2", "MTLS"})
"""What senders of webhooks to us do not have."""
LONGEST_TIMEOUT_S: Final = 30.0
LONGEST_WAIT_S: Final = 7 * 86_400.0
MOST_AT_ONCE: Final = 1000
_HEADER: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_RESERVED: Final = OWNED_HEADERS | {
    *("authorization", "content-type", "webhook-id", "webhook-timestamp", "webhook-signature"),
}


def check_endpoint(one: Complete, known: Known, catalog: Catalog) -> Found:
    """The faults of an endpoint."""
    spec = one.spec()
    secret = known.get(("Credential", spec["secret"]))
    if secret is not None and secret.spec()["type"] != "webhook_secret":
        yield "spec.secret", "must be a Credential of type webhook_secret"
    yield from _auth(spec, known)
    yield from _redaction(spec["redact"])
    yield from (_inbound if spec["direction"] == INBOUND else _outbound)(spec, known, catalog)
    yield from _stream(one, known, catalog)


def stream_of(one: Complete, known: Known) -> tuple[str, str] | None:
    """Provider and app of the stream that an endpoint owns; None where it owns none."""
    spec = one.spec()
    integration = known.get(("Integration", spec["integration"]))
    if not (spec["app"] and spec["secret"] and integration):
        return None
    return integration.fields["spec.provider"], spec["app"]


def check_routes(one: Complete, known: Known) -> Found:
    """Whether a subscription says where from and where to."""
    spec = one.spec()
    acting = (spec["action"]["integration"], spec["sync"]["integration"])
    if sum(map(bool, (spec["connector"], spec["deliver_to"], *acting))) != 1:
        yield "spec.connector", "give one of connector, deliver_to, action and sync"
    for field, way in (("endpoint", INBOUND), ("deliver_to", OUTBOUND)):
        endpoint = known.get(("WebhookEndpoint", spec[field]))
        if endpoint is not None and endpoint.spec()["direction"] != way:
            yield f"spec.{field}", f"must be a WebhookEndpoint of direction {way}"
    if spec["transform"] and not spec["deliver_to"]:
        yield "spec.transform", "is for what is delivered; steps and actions have templates"


def _redaction(paths: Sequence[str]) -> Found:
    for index, text in enumerate(paths):
        try:
            JsonPath.of_place(text)
        except JsonPathError as error:
            yield f"spec.redact[{index}]", error.message


def _auth(spec: Mapping[str, Any], known: Known) -> Found:
    takes = SHOWN.get(spec["auth"], frozenset())
    credential = known.get(("Credential", spec["credential"]))
    if takes and not spec["credential"]:
        yield "spec.credential", f"is required where auth is {spec['auth']}"
    elif spec["credential"] and not takes:
        yield "spec.credential", f"is not used where auth is {spec['auth']}"
    elif credential is not None and credential.spec()["type"] not in takes:
        types = " or ".join(sorted(takes))
        yield "spec.credential", f"must be a Credential of type {types}"
    if spec["auth_header"] and spec["auth"] not in {"API_KEY", "CUSTOM"}:
        yield "spec.auth_header", "is for auth API_KEY and CUSTOM"
    elif spec["auth_header"] and not _is_free(spec["auth_header"]):
        yield "spec.auth_header", "is not the name of a header that may be set"
    if spec["auth"] == "CUSTOM" and not spec["auth_header"]:
        yield "spec.auth_header", "is required where auth is CUSTOM"


def _inbound(spec: Mapping[str, Any], known: Known, catalog: Catalog) -> Found:
    if not spec["integration"]:
        yield "spec.integration", "is required: whose webhooks arrive here"
    for field in ("url", "headers", "subject"):
        if spec[field]:
            yield f"spec.{field}", "is for endpoints of direction OUTBOUND"
    if spec["auth"] in OUTWARD:
        yield "spec.auth", f"{spec['auth']} is for endpoints of direction OUTBOUND"
    if spec["auth"] in NEEDING_SECRET and not (spec["secret"] or spec["app"]):
        yield "spec.secret", f"is required: {NEEDING_SECRET[spec['auth']]}"
    elif spec["secret"] and spec["auth"] not in NEEDING_SECRET:
        yield "spec.secret", f"is not used where auth is {spec['auth']}"
    integration = known.get(("Integration", spec["integration"]))
    provider = integration.spec()["provider"] if integration else ""
    manifest = catalog.manifests.get(provider)
    if manifest is not None and manifest.webhook is None:
        yield "spec.integration", f"{manifest.provider} sends no webhooks that we can verify"


def _stream(one: Complete, known: Known, catalog: Catalog) -> Found:
    """Whether an endpoint owns a stream, or receives from one, as it can be."""
    spec = one.spec()
    if spec["tenants"] and not (spec["app"] and spec["secret"]):
        yield "spec.tenants", "is for the owner of an app's stream: with app and secret"
    for index, slug in enumerate(spec["tenants"]):
        if slug != EVERYBODY and not SLUG.fullmatch(slug):
            yield f"spec.tenants[{index}]", f"must be * or the name of a tenant: {SLUG_RULE}"
    yield from _owner_of(spec)
    if not spec["app"]:
        return
    if spec["direction"] != INBOUND:
        yield "spec.app", "is for endpoints of direction INBOUND"
        return
    if not SLUG.fullmatch(spec["app"]):
        yield "spec.app", f"must be {SLUG_RULE}"
    if spec["auth"] != "SIGNATURE":
        yield "spec.auth", "must be SIGNATURE: an app's stream is signed"
    integration = known.get(("Integration", spec["integration"]))
    manifest = catalog.manifests.get(integration.spec()["provider"]) if integration else None
    if manifest and not (manifest.webhook and manifest.webhook.app):
        yield "spec.app", f"{manifest.provider} sends no streams of apps that we know"
    if other := _same_stream(one, known):
        yield "spec.app", f"{other} does the same for this app already"


def _owner_of(spec: Mapping[str, Any]) -> Found:
    """Whether a receiver, and nobody else, says whose stream it believes."""
    receives = spec["app"] and not spec["secret"]
    if spec["app_owner"] and not receives:
        yield "spec.app_owner", "is for a receiver of an app's stream: with app, without secret"
    elif receives and not spec["app_owner"]:
        yield "spec.app_owner", "is required: the tenant that runs the app; its items are believed"
    elif receives and not SLUG.fullmatch(spec["app_owner"]):
        yield "spec.app_owner", f"must be the name of a tenant: {SLUG_RULE}"


def _same_stream(one: Complete, known: Known) -> str | None:
    """Another endpoint that owns the same stream, or receives the items of the same accounts."""
    place = _part_in_stream(one, known)
    others = (other for other in known.values() if other.key != one.key)
    return next((other.name for other in others if _part_in_stream(other, known) == place), None)


def _part_in_stream(one: Complete, known: Known) -> tuple[str, str, str] | None:
    if one.kind != "WebhookEndpoint" or not one.fields["spec.app"]:
        return None
    if owned := stream_of(one, known):
        return ("owner", *owned)
    return "receiver", one.fields["spec.app"], one.fields["spec.integration"]


def _outbound(spec: Mapping[str, Any], _known: Known, _catalog: Catalog) -> Found:
    if spec["integration"]:
        yield "spec.integration", "is for endpoints of direction INBOUND"
    if not spec["url"]:
        yield "spec.url", "is required: where events are sent"
    else:
        yield from SENT.get(brokers.scheme_of(spec["url"]), _to_url)(spec)
    for name, value in spec["headers"].items():
        if not _is_free(name):
            yield f"spec.headers.{name}", "is not the name of a header that may be set"
        elif not value.isprintable() or not value.isascii():
            yield f"spec.headers.{name}", "must be printable ASCII"
    yield from _policy(spec["delivery"])


def _to_url(spec: Mapping[str, Any]) -> Found:
    if problem := base_url_problem(spec["url"].partition("?")[0]):
        yield "spec.url", problem
    elif spec["auth"] == "MTLS" and not spec["url"].lower().startswith("https://"):
        yield "spec.url", "must be https where auth is MTLS: a certificate is shown in TLS"
    if not spec["secret"]:
        yield "spec.secret", "is required: what deliveries are signed with"
    if spec["subject"]:
        yield "spec.subject", "is for brokers, whose url begins with tls:// or nats://"


def _to_broker(spec: Mapping[str, Any]) -> Found:
    if problem := brokers.url_problem(spec["url"]):
        yield "spec.url", problem
    if not spec["subject"]:
        yield "spec.subject", "is required: what events are published to"
    elif problem := _subject_problem(spec["subject"]):
        yield "spec.subject", problem
    if spec["auth"] not in SHOWN_TO_BROKERS:
        yield "spec.auth", f"must be one of {', '.join(SHOWN_TO_BROKERS)} for a broker"
    for name in spec["headers"]:
        if name.lower().startswith(BROKERS_OWN):
            yield f"spec.headers.{name}", "is a header by which the broker is told what to do"


def _subject_problem(text: str) -> str | None:
    """What is wrong with a subject whatever its templates come to."""
    try:
        parts = Template.parse(text).parts
    except ExpressionError:
        return None  # Told with all else that is wrong with templates.
    return brokers.subject_problem("".join(p if isinstance(p, str) else "x" for p in parts))


SENT: Final[Mapping[str, Callable[[Mapping[str, Any]], Found]]] = dict.fromkeys(
    brokers.ENCRYPTED, _to_broker
)
"""What is asked of an outbound endpoint by the scheme of its url; of all others, of a url."""


def _policy(policy: Mapping[str, Any]) -> Found:
    path = "spec.delivery"
    if not 0 < _seconds(policy["timeout"]) <= LONGEST_TIMEOUT_S:
        yield f"{path}.timeout", f"must be more than 0s and at most {LONGEST_TIMEOUT_S:.0f}s"
    for index, wait in enumerate(policy["retries"]):
        if not 0 < _seconds(wait) <= LONGEST_WAIT_S:
            yield f"{path}.retries[{index}]", "must be more than 0s and at most 7 days"
    if not 1 <= policy["concurrency"] <= MOST_AT_ONCE:
        yield f"{path}.concurrency", f"must be 1 to {MOST_AT_ONCE}"
    if policy["rate_per_minute"] < 0:
        yield f"{path}.rate_per_minute", "must be 0, which is without limit, or more"
    if (policy["ordering"] == "key") != bool(policy["key"]):
        yield f"{path}.key", "goes with ordering: key, and only with that"


def _is_free(name: str) -> bool:
    return bool(_HEADER.fullmatch(name)) and name.lower() not in _RESERVED


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))
