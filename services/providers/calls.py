"""One call of a provider's API, turned into the request that goes out."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, get_args
from urllib.parse import urlencode

from services.chassis.constraints import did_you_mean
from services.chassis.egress import OWNED_HEADERS, Request
from services.chassis.errors import InvalidArgument, Violation
from services.providers.auth import Credential, CredentialRefused, auth_header_name, auth_headers
from services.providers.manifest import (
    Manifest,
    Method,
    Parameter,
    violations,
    with_defaults,
)
from services.providers.urls import expand_path, join, require_within, text_of

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_OURS_ALONE: Final = OWNED_HEADERS | {"accept-encoding", "authorization", "cookie"}
_METHODS: Final = frozenset[str](get_args(Method))


class CallInvalid(InvalidArgument):
    """A call that no provider should get; names what is wrong and never its value."""

    reason = "CALL_INVALID"


@dataclass(frozen=True, slots=True)
class Integration:
    """What a call needs to know of an integration."""

    provider: str
    base_url: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    credential: Credential = field(default_factory=Credential)


@dataclass(frozen=True, slots=True)
class Call:
    """Method and path template below the base URL, with what fills them.

    `{name}` in the path takes its value from `params`, or else from the integration's settings.
    A query value is a scalar or a list of them; None leaves it out. `body` is sent as JSON unless
    it is None. `page` is the address of another page of the same list, as an answer told it.
    """

    method: str
    path: str
    params: Mapping[str, object] = field(default_factory=dict)
    query: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: object = field(default=None, repr=False)
    page: str = field(default="", repr=False)


def operation_call(
    manifest: Manifest,
    name: str,
    *,
    params: Mapping[str, object] | None = None,
    query: Mapping[str, object] | None = None,
    body: object = None,
    config: Mapping[str, object] | None = None,
) -> Call:
    """The call of one of the manifest's operations; `config` fills in what `params` leave out.

    Raises CallInvalid with every unknown, missing or wrong value.
    """
    operation = manifest.operations.get(name)
    if operation is None:
        hint = did_you_mean(name, list(manifest.operations))
        raise CallInvalid(f"{manifest.provider} has no operation {name!r}{hint}")
    settings = manifest.config_with_defaults(config or {})
    given = {**{n: settings[n] for n in operation.path_params if n in settings}, **(params or {})}
    asked = with_defaults(operation.query, query or {})
    found = [
        *_below("params", operation.path_params, given),
        *_below("query", operation.query, asked),
    ]
    if operation.body != (body is not None):
        need = "needs a body" if operation.body else "takes no body"
        found.append(Violation("body", f"{name} {need}"))
    _refuse(found)
    return Call(operation.method, operation.path, given, asked, body=body)


def request_for(manifest: Manifest, integration: Integration, call: Call) -> Request:
    """The request for `call`, with the integration's credential, and the limits of that, on it.

    Raises CallInvalid, UnsafePath or CredentialRefused; none of them holds a value or a secret.
    """
    settings = manifest.config_with_defaults(integration.config)
    method = call.method.upper()
    if method not in _METHODS:
        _refuse([Violation("method", f"must be one of {', '.join(sorted(_METHODS))}")])
    url = _url(base_url_of(manifest, integration), call, settings)
    headers = _headers(manifest, integration, call, settings)
    return Request(method, url, headers, _body(call.body), integration.credential.only)


def _url(base_url: str, call: Call, settings: Mapping[str, object]) -> str:
    if call.page:
        return require_within(base_url, call.page)
    path = expand_path(call.path, {**settings, **call.params})
    query = _query(call.query)
    return join(base_url, path) + (f"?{query}" if query else "")


def base_url_of(manifest: Manifest, integration: Integration) -> str:
    """The URL that every call of this integration stays below; raises CallInvalid."""
    if message := manifest.base_url_problem(integration.base_url):
        _refuse([Violation("base_url", message)])
    return integration.base_url or manifest.base_url.default or ""


def _headers(
    manifest: Manifest, integration: Integration, call: Call, settings: Mapping[str, object]
) -> dict[str, str]:
    """Lower-case names: the manifest's, over them the call's, over them the credential's."""
    credential = integration.credential
    rule = manifest.auth_rule(credential.type)
    if rule is None:
        accepted = ", ".join(accepted.type for accepted in manifest.auth)
        raise CredentialRefused(f"{manifest.provider} takes a credential of type: {accepted}")
    ours_alone = _OURS_ALONE | {auth_header_name(each, settings) for each in manifest.auth}
    _refuse([v for name, value in call.headers.items() for v in _header(name, value, ours_alone)])
    carried = auth_headers(rule, credential, settings)
    return {
        **({"content-type": "application/json"} if call.body is not None else {}),
        **{name.lower(): value for name, value in manifest.headers.items()},
        **{name.lower(): value for name, value in call.headers.items()},
        **carried,
    }


def _header(name: str, value: object, ours_alone: frozenset[str]) -> list[Violation]:
    if not _TOKEN.fullmatch(name):
        return [Violation("headers", "a header's name has a character it cannot have")]
    if name.lower() in ours_alone:
        return [Violation(f"headers.{name}", "is not for a call to set")]
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        return [Violation(f"headers.{name}", "must be text without control characters")]
    return []


def _query(query: Mapping[str, object]) -> str:
    pairs = [
        (name, each)
        for name, value in query.items()
        for each in (value if isinstance(value, list | tuple) else [value])
        if each is not None
    ]
    _refuse(
        [
            Violation(f"query.{name}", "must be text, a number, a boolean, or a list of them")
            for name, value in pairs
            if not isinstance(value, str | int | float)
        ]
    )
    return urlencode([(name, text_of(value)) for name, value in pairs], errors="replace")


def _body(body: object) -> bytes | None:
    if body is None:
        return None
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        # The encoder's own error repeats the value.
        raise CallInvalid("the body cannot be written as JSON") from None


def _below(
    where: str, parameters: Mapping[str, Parameter], values: Mapping[str, object]
) -> list[Violation]:
    found = violations(parameters, values)
    return [Violation(f"{where}.{each.field}", each.description) for each in found]


def _refuse(found: list[Violation]) -> None:
    if found:
        lines = "; ".join(f"{each.field}: {each.description}" for each in found)
        raise CallInvalid(lines, violations=found)
