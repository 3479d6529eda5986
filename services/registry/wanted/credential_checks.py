"""Whether credentials, and the connections and apps that go with them, make sense: pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from services.chassis.constraints import did_you_mean
from services.chassis.endpoint_limits import network_problem_of, problem_of
from services.chassis.errors import NotFound
from services.providers.auth import credential_parts
from services.providers.catalog import Catalog
from services.providers.manifest import Manifest
from services.registry.wanted.objects import Complete, Key

Found = Iterator[tuple[str, str]]
Known = Mapping[Key, Complete]

APPS: Final[Mapping[str, frozenset[str]]] = {
    "oauth2_client": frozenset({"authorization_code", "client_credentials"}),
    "jwt_key": frozenset({"jwt_bearer"}),
}
"""The types of credential that are apps, and the grants by which each comes by tokens."""
OAUTH2: Final = "oauth2"
WEBHOOK_SECRET: Final = "webhook_secret"  # noqa: S105 - the name of a type
CODE: Final = "authorization_code"
PRODUCTION: Final = "production"

SHORTEST_ROTATION_S: Final = 86_400.0
LONGEST_ROTATION_S: Final = 3650 * 86_400.0
LONGEST_OVERLAP_S: Final = 30 * 86_400.0


def check_credential(one: Complete, known: Known, catalog: Catalog) -> Found:
    """The faults of a credential."""
    spec = one.spec()
    yield from _parts(spec)
    yield from _expiry(spec["expires"])
    yield from _rotation(spec["rotation"])
    for index, pattern in enumerate(spec["allowed_endpoints"]):
        if problem := problem_of(pattern):
            yield f"spec.allowed_endpoints[{index}]", problem
    for index, network in enumerate(spec["allowed_ranges"]):
        if problem := network_problem_of(network):
            yield f"spec.allowed_ranges[{index}]", problem
    yield from _livemode(spec["provider_metadata"], spec["environment"])
    manifest = _manifest(spec["provider"], catalog)
    if spec["provider"] and manifest is None:
        names = [each.provider for each in catalog]
        yield "spec.provider", f"is not in the catalog{did_you_mean(spec['provider'], names)}"
    elif spec["type"] in APPS:
        yield from _app(spec, manifest)
    elif spec["config"]:
        yield "spec.config", "is for apps: credentials of type oauth2_client or jwt_key"
    if spec["generate"] and (spec["type"] != WEBHOOK_SECRET or spec["values"]):
        yield "spec.generate", "is for credentials of type webhook_secret without values"
    yield from _tokens(spec, known, catalog)


def check_app_of(one: Complete, known: Known) -> Found:
    """The faults of the app that an integration names."""
    spec = one.spec()
    app = known.get(("Credential", spec["app"]))
    if app is None:
        return
    if app.spec()["type"] not in APPS:
        yield "spec.app", "must be a Credential of type oauth2_client or jwt_key"
    elif app.spec()["provider"] != spec["provider"]:
        yield "spec.app", "is an app of another provider"


def check_provider_of(one: Complete, known: Known) -> Found:
    """Whether an integration's credential is of its provider, where it says of which it is."""
    spec = one.spec()
    credential = known.get(("Credential", spec["credential"]))
    if credential and credential.spec()["provider"] not in {"", spec["provider"]}:
        yield "spec.credential", "is a credential of another provider"


def check_connection(one: Complete, known: Known) -> Found:
    """The faults of a connection."""
    spec = one.spec()
    integration = known.get(("Integration", spec["integration"]))
    credential = known.get(("Credential", spec["credential"]))
    if integration is None or credential is None:
        return
    provider, of = integration.spec()["provider"], credential.spec()
    if of["provider"] not in {"", provider}:
        yield "spec.credential", "is a credential of another provider"
    if of["type"] in APPS or of["type"] == WEBHOOK_SECRET:
        yield "spec.credential", f"a credential of type {of['type']} is not an account's"
    yield from _livemode(spec["provider_metadata"], integration.spec()["environment"])
    if other := _same_account(one, known):
        yield "spec.external_account_id", f"{other} is of this account already"


def account_of(one: Complete, known: Known) -> tuple[str, str, str] | None:
    """Provider, app and account of a connection; None where it does not say them all."""
    if one.kind != "Connection" or not one.fields["spec.external_account_id"]:
        return None
    integration = known.get(("Integration", one.fields["spec.integration"]))
    if integration is None or not integration.fields["spec.app"]:
        return None
    return (
        integration.fields["spec.provider"],
        integration.fields["spec.app"],
        one.fields["spec.external_account_id"],
    )


def _same_account(one: Complete, known: Known) -> str | None:
    account = account_of(one, known)
    if account is None:
        return None
    others = (other for other in known.values() if other.key != one.key)
    return next((other.name for other in others if account_of(other, known) == account), None)


def _parts(spec: Mapping[str, Any]) -> Found:
    parts, has = credential_parts(spec["type"]), set(spec["values"])
    for missing in sorted(parts.needed - has):
        yield "spec.values", f"a credential of type {spec['type']} needs {missing}"
    for unknown in sorted(has - parts.known):
        hint = did_you_mean(unknown, sorted(parts.known))
        yield f"spec.values.{unknown}", f"is no part of a {spec['type']} credential{hint}"


def _expiry(text: str) -> Found:
    if not text:
        return
    try:
        good = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        good = False
    if not good:
        yield "spec.expires", "must be a time with its zone, such as 2027-01-31T00:00:00Z"


def _rotation(rotation: Mapping[str, Any]) -> Found:
    every, overlap = rotation["every"], _seconds(rotation["overlap"])
    if every is not None and not SHORTEST_ROTATION_S <= _seconds(every) <= LONGEST_ROTATION_S:
        yield "spec.rotation.every", "must be 24h to 3650 days"
    if not 0 <= overlap <= LONGEST_OVERLAP_S:
        yield "spec.rotation.overlap", "must be 0s to 30 days"
    elif every is not None and overlap >= _seconds(every):
        yield "spec.rotation.overlap", "must be shorter than every"


def _livemode(metadata: Mapping[str, Any] | None, environment: str) -> Found:
    """What is live must not be taken for a sandbox's, nor the other way round."""
    live = (metadata or {}).get("livemode")
    if live is None:
        return
    if not isinstance(live, bool):
        yield "spec.provider_metadata.livemode", "must be true or false"
    elif live != (environment == PRODUCTION):
        of = PRODUCTION if live else "sandbox or development"
        words = f"does not agree with the environment {environment}; this is of {of}"
        yield "spec.provider_metadata.livemode", words


def _app(spec: Mapping[str, Any], manifest: Manifest | None) -> Found:
    if manifest is None:
        yield "spec.provider", "is required: an app is a provider's"
        return
    if manifest.oauth2 is None:
        yield "spec.provider", f"{manifest.provider} has no OAuth 2.0 that we know"
        return
    for fault in manifest.oauth2.config_violations(spec["config"] or {}):
        yield f"spec.config.{fault.field}", fault.description


def _tokens(spec: Mapping[str, Any], known: Known, catalog: Catalog) -> Found:
    if spec["type"] != OAUTH2:
        for field in ("app", "grant"):
            if spec[field]:
                yield f"spec.{field}", "is for credentials of type oauth2"
        return
    app = known.get(("Credential", spec["app"]))
    if app is None:
        if not spec["app"]:
            yield "spec.app", "is required: the Credential of the app that gets the tokens"
        return
    grant = spec["grant"] or CODE
    if app.spec()["type"] not in APPS:
        yield "spec.app", "must be a Credential of type oauth2_client or jwt_key"
    elif grant not in APPS[app.spec()["type"]]:
        yield "spec.grant", f"an app of type {app.spec()['type']} comes by no tokens this way"
    if spec["provider"] not in {"", app.spec()["provider"]}:
        yield "spec.app", "is an app of another provider"
    manifest = _manifest(app.spec()["provider"], catalog)
    if manifest and manifest.oauth2 and grant not in manifest.oauth2.grants:
        offered = ", ".join(manifest.oauth2.grants)
        yield "spec.grant", f"{manifest.provider} offers {offered}"


def _manifest(provider: str, catalog: Catalog) -> Manifest | None:
    try:
        return catalog.get(provider)
    except NotFound:
        return None


def _seconds(duration: str) -> float:
    return timedelta(seconds=float(duration.removesuffix("s"))).total_seconds()
