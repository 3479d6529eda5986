"""Credentials: which fields each type has, and how one is put on a request."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from services.chassis.endpoint_limits import Only
from services.chassis.errors import InvalidArgument
from services.chassis.secret import Secret
from services.providers.manifest import AuthRule, AuthType

_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "api_key": frozenset({"key"}),
    "bearer": frozenset({"token"}),
    "basic": frozenset({"username", "password"}),
    "webhook_secret": frozenset({"secret"}),
}
CREDENTIAL_TYPES: Final = tuple(_FIELDS)
_HEADER_VALUE: Final = re.compile(
    rb"[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?"
)


class CredentialRefused(InvalidArgument):
    """A credential that cannot be used as it is; the message never holds any of it."""

    reason = "CREDENTIAL_REFUSED"


@dataclass(frozen=True, slots=True)
class Credential:
    """Secret material of one type, by field; `none` stands for having no credential.

    `only` limits where it may be sent, whatever the integration says; None is no limit.
    """

    type: str = "none"
    fields: Mapping[str, Secret] = field(default_factory=dict)
    only: Only | None = None


def credential_fields(credential_type: str) -> frozenset[str]:
    """The fields a credential of this type must have, no more and no fewer.

    Raises CredentialRefused for a type we do not know.
    """
    try:
        return _FIELDS[credential_type]
    except KeyError:
        known = ", ".join(CREDENTIAL_TYPES)
        raise CredentialRefused(f"the type of a credential is one of: {known}") from None


def _api_key(fields: Mapping[str, Secret]) -> bytes:
    return fields["key"].reveal()


def _bearer(fields: Mapping[str, Secret]) -> bytes:
    return fields["token"].reveal()


def _basic(fields: Mapping[str, Secret]) -> bytes:
    """RFC 7617: `username:password` as UTF-8 in base64; a username has no colon."""
    username = fields["username"].reveal()
    if b":" in username:
        raise CredentialRefused("the username of a basic credential has no colon")
    return b64encode(username + b":" + fields["password"].reveal())


_VALUES: Final[Mapping[AuthType, Callable[[Mapping[str, Secret]], bytes]]] = {
    "api_key": _api_key,
    "bearer": _bearer,
    "basic": _basic,
}


def auth_header_name(rule: AuthRule, settings: Mapping[str, object]) -> str:
    """The header this rule writes, as the integration's settings may have it, in lower case."""
    chosen = settings.get(rule.header_setting) if rule.header_setting else None
    return str(chosen or rule.header).lower()


def auth_headers(
    rule: AuthRule, credential: Credential, settings: Mapping[str, object]
) -> dict[str, str]:
    """The request headers that carry `credential` by `rule`; lower-case names, values in clear.

    Raises CredentialRefused for a credential of another type, with other fields, or with
    characters no header can carry.
    """
    if credential.type != rule.type:
        raise CredentialRefused(f"this needs a credential of type {rule.type}")
    if rule.type == "none":
        return {}
    if frozenset(credential.fields) != credential_fields(rule.type):
        needed = ", ".join(sorted(credential_fields(rule.type)))
        raise CredentialRefused(f"a credential of type {rule.type} has the fields: {needed}")
    value = _VALUES[rule.type](credential.fields)
    if not _HEADER_VALUE.fullmatch(value):
        raise CredentialRefused("the credential is empty or has characters no header can carry")
    return {auth_header_name(rule, settings): rule.prefix + _text(value)}


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        # The decoder's own error carries the bytes.
        raise CredentialRefused("the credential is not UTF-8 text") from None
