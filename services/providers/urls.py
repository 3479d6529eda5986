"""URLs that cannot leave their base: the origin and path prefix of an integration."""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from services.chassis.errors import InvalidArgument

_VARIABLE: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_NEVER: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_NEVER_IN_URL: Final = re.compile(r"[^\x21-\x5b\x5d-\x7e]")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH_LITERALS: Final = "/%:@!$&'()*+,;=-._~"
_MAX_DECODINGS: Final = 4


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
    if parts.scheme == "http" and not _is_loopback(host):
        return "must be https (plain http is for loopback addresses only)"
    return _path_problem(parts.path.rstrip("/") or "/")


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
    if problem := _path_problem(_VARIABLE.sub("x", template)):
        raise UnsafePath(f"the path {problem}")
    values = {name: _segment(name, params[name]) for name in names}
    path = quote(_VARIABLE.sub(lambda match: values[match[1]], template), safe=_PATH_LITERALS)
    if problem := _decoded_problem(path):
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
    if problem := _decoded_problem(given.path):
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


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _segment(name: str, value: object) -> str:
    text = text_of(value)
    if not text or not isinstance(value, str | int | float):
        raise UnsafePath(f"{name} must be a non-empty string, a number or a boolean")
    if problem := _decoded_problem("/" + text):
        raise UnsafePath(f"{name} {problem}")
    return quote(text, safe="")


def _path_problem(path: str) -> str | None:
    if not path.startswith("/"):
        return "must begin with /"
    if any(mark in path for mark in "?#{}"):
        return "must not have ?, #, { or }"
    if _BAD_PERCENT.search(path):
        return "has a % that encodes nothing"
    return _decoded_problem(path)


def _decoded_problem(path: str) -> str | None:
    """What any server could see in `path` however often it decodes it."""
    for _ in range(_MAX_DECODINGS):
        if problem := _segments_problem(path):
            return problem
        decoded = unquote(path)
        if decoded == path:
            return None
        path = decoded
    return "is percent-encoded too many times"


def _segments_problem(path: str) -> str | None:
    if _NEVER.search(path):
        return "has a control character or a backslash"
    segments = [segment.partition(";")[0] for segment in path.split("/")[1:]]
    if any(segment in (".", "..") for segment in segments):
        return "has a . or .. segment"
    if any(segment == "" for segment in segments[:-1]):
        return "has an empty segment"
    return None
