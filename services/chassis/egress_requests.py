"""What may go out: a method, a URL and headers that nothing on the way reads in two ways."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from services.chassis.egress_errors import NotPermitted, Unsendable
from services.chassis.egress_identities import Identity
from services.chassis.endpoint_limits import Only

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A method or a header's name; source: RFC 9110 §5.6.2."""
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]*")
_URL: Final = re.compile(r"(?i:https?)://([^/?#]+)(?:[/?#].*)?")
_WRITTEN_AS_IS: Final = re.compile(r"[\x21-\x5b\x5d-\x7e]+")
_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""A name or an address, and a port: RFC 3986 §3.2 without user, percent signs and zones."""

OWNED_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that say where a message goes or ends: only the connection itself writes them."""


@dataclass(frozen=True, slots=True)
class Request:
    """What goes out. The URL is sent as it stands, so it must be percent-encoded already.

    `only` limits where it may go; None is no limit. `identity` is shown in the TLS handshake.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    only: Only | None = field(default=None, repr=False)
    identity: Identity | None = field(default=None, repr=False)


def checked_url(request: Request) -> URL:
    """The URL to send `request` to. Raises Unsendable, and NotPermitted for one outside `only`."""
    _check_method(request.method)
    for name, value in request.headers.items():
        _check_header(name, value)
    url = _parsed(request.url)
    if request.only is not None and not request.only.permits_url(url):
        place = place_of(url)
        raise NotPermitted(f"the call to {place} is outside its credential's allowed endpoints")
    if request.identity is not None and url.scheme != "https":
        raise Unsendable("a client certificate can be shown over https only")
    return url


def place_of(url: URL) -> str:
    """Host and port, the part of a URL that messages may tell."""
    return f"{url.raw_host}:{url.port}"


def _check_method(method: str) -> None:
    if not _TOKEN.fullmatch(method) or method.upper() in {"CONNECT", "TRACE"}:
        raise Unsendable("the method is not one that can be sent")


def _check_header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise Unsendable("a header's name is not one that can be sent")
    if name.lower() in OWNED_HEADERS:
        raise Unsendable(f"the header {name} belongs to the connection")
    if not _VALUE.fullmatch(value):
        raise Unsendable(f"the header {name} holds a control character")


def _parsed(text: str) -> URL:
    if not _WRITTEN_AS_IS.fullmatch(text):
        raise Unsendable("a URL has only printable ASCII, no backslash; percent-encode the rest")
    found = _URL.fullmatch(text)
    if found is None:
        raise Unsendable("a URL begins with http:// or https:// and a host")
    if "@" in found[1]:
        raise Unsendable("a URL with a user or a password in it is not sent")
    if not _AUTHORITY.fullmatch(found[1]):
        raise Unsendable("the host in the URL is not a name or a plain address")
    return _read(text)


def _read(text: str) -> URL:
    try:
        # Already encoded: what was signed is what is sent.
        url = URL(text, encoded=True)
        # The parts are read here, since yarl finds fault with a port only then.
        whole = bool(url.raw_host and url.port)
    except ValueError:
        whole = False
    if not whole:
        raise Unsendable("the URL has no host or no port to go to")
    return url
