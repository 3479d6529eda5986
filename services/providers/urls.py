"""URLs that cannot leave their base: the origin and path prefix of an integration."""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from services.chassis.errors import InvalidArgument
from services.chassis.url_parts import decoded_problem, is_loopback, path_problem

_VARIABLE: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_NEVER_IN_URL: Final = re.compile(r"[^\x21-\x5b\x5d-\x7e]")
_PATH_LITERALS: Final = "/%:@!$&'()*+,;=-._~"


class UnsafePath(InvalidArgument):
    """A path, or the URL made of it, that would leave the integration's base URL."""

    reason = "UNSAFE_PATH"


def base_url_problem(url: str) -> str | None:
    """What is wrong with a base URL, in words that do not repeat it, or None.

    Plain http is for loopback only: a credential goes out with every request.
    """
    if _NEVER_IN_URL.search(url):
        return "may hold only printable ASCII without spaces and backslashes"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https") or not host or port == 0:
        return "must be an http or https URL with a host"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user or password"
    if "?" in url or "#" in url:
        return "must not have a query or fragment"
    if parts.scheme == "http" and not is_loopback(host):
        return "must be https (plain http is for loopback addresses only)"
    return path_problem(parts.path.rstrip("/") or "/")


def template_names(path: str) -> frozenset[str]:
    """The variables of an RFC 6570 level 1 path template."""
    return frozenset(_VARIABLE.findall(path))


def expand_path(template: str, params: Mapping[str, object]) -> str:
    """The template with each `{name}` replaced by its value, reserved characters percent-encoded.

    Raises UnsafePath for a variable without value, for a value or template that would add or
    climb path segments however often it is decoded, and for what is not a path at all.
    """
    names = template_names(template)
    if missing := sorted(names - params.keys()):
        raise UnsafePath(f"the path needs a value for {', '.join(missing)}")
    if problem := path_problem(_VARIABLE.sub("x", template)):
        raise UnsafePath(f"the path {problem}")
    values = {name: _segment(name, params[name]) for name in names}
    path = quote(_VARIABLE.sub(lambda match: values[match[1]], template), safe=_PATH_LITERALS)
    if problem := decoded_problem(path):
        raise UnsafePath(f"the path {problem}")
    return path


def join(base_url: str, path: str) -> str:
    """`path` (as `expand_path` gives it) below `base_url`."""
    return require_within(base_url, base_url.rstrip("/") + path)


def require_within(base_url: str, url: str) -> str:
    """`url`, if it has the origin of `base_url` and lies below its path; else UnsafePath."""
    if _NEVER_IN_URL.search(url):
        raise UnsafePath("the URL may hold only printable ASCII without spaces and backslashes")
    try:
        base, given = urlsplit(base_url), urlsplit(url)
        same = _origin(base_url) == _origin(url)
    except ValueError:
        raise UnsafePath("not a URL") from None
    prefix = base.path.rstrip("/")
    below = given.path == prefix or given.path.startswith(f"{prefix}/")
    if not same or not below or given.username is not None or given.password is not None:
        raise UnsafePath("the URL leaves the integration's base URL")
    if problem := decoded_problem(given.path):
        raise UnsafePath(f"the URL's path {problem}")
    return url


def text_of(value: object) -> str:
    """A scalar as URLs have it: `true`, and whole numbers without a point, as JSON knows but one.

    A whole number comes as 7.0 out of a protobuf Struct.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _segment(name: str, value: object) -> str:
    text = text_of(value)
    if not text or not isinstance(value, str | int | float):
        raise UnsafePath(f"{name} must be a non-empty string, a number or a boolean")
    if problem := decoded_problem("/" + text):
        raise UnsafePath(f"{name} {problem}")
    return quote(text, safe="")
