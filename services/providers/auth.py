"""Credentials: which fields each type has, and how one is put on a request."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from services.chassis.endpoint_limits import Only
from services.chassis.errors import InvalidArgument
from services.chassis.secret import Secret
from services.providers.manifest import CARRIED_AS, AuthRule, AuthType


@dataclass(frozen=True, slots=True)
class Parts:
    """The secret parts of one type of credential: those it needs, and those it may have."""

    needed: frozenset[str]
    optional: frozenset[str] = frozenset()

    @property
    def known(self) -> frozenset[str]:
        """All of them."""
        return self.needed | self.optional


def _parts(*needed: str, optional: tuple[str, ...] = ()) -> Parts:
    return Parts(frozenset(needed), frozenset(optional))


_PARTS: Final[Mapping[str, Parts]] = {
    "api_key": _parts("key", optional=("secret",)),
    "bearer": _parts("token"),
    "basic": _parts("username", "password"),
    # Without a value, Tenon makes one.
    "webhook_secret": _parts(optional=("secret",)),
    # The provider gives them; some may be brought along.
    "oauth2": _parts(optional=("access_token", "refresh_token", "id_token")),
    "oauth2_client": _parts("client_id", optional=("client_secret",)),
    "jwt_key": _parts("private_key", "issuer", optional=("key_id", "subject")),
    "client_certificate": _parts("certificate", "private_key"),
}
CREDENTIAL_TYPES: Final = tuple(_PARTS)
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


def credential_parts(credential_type: str) -> Parts:
    """The parts of a credential of this type. Raises CredentialRefused for one we do not know."""
    try:
        return _PARTS[credential_type]
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
    if CARRIED_AS.get(credential.type, credential.type) != rule.type:
        raise CredentialRefused(f"this needs a credential of type {rule.type}")
    if rule.type == "none":
        return {}
    parts, given = credential_parts(rule.type), frozenset(credential.fields)
    if not parts.needed <= given <= parts.known:
        needed = ", ".join(sorted(parts.needed))
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
