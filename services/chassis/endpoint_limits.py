"""Where a credential may be used: patterns of endpoints, and networks of the addresses dialled."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, TypeVar
from urllib.parse import unquote

from yarl import URL

from services.chassis.addresses import Network, canonical_host, ip_of
from services.chassis.errors import InvalidArgument
from services.chassis.url_parts import decoded_problem, is_loopback, path_problem

Read = TypeVar("Read")

_PATTERN: Final = re.compile(
    r"(?P<scheme>[A-Za-z]+)://(?P<any>\*\.)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\\%]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/.*)?"
)
_PORTS: Final = {"http": 80, "https": 443}
_LAST_PORT: Final = 65535
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""A name whose last label is a number is an IPv4 address, spelled somehow."""
_LONGEST_NAME: Final = 253
_PATH_TEXT: Final = re.compile(r"[\x21-\x7e]*")


class BadEndpointLimit(InvalidArgument):
    """A pattern or a network of a limit that cannot be read."""

    reason = "BAD_ENDPOINT_LIMIT"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pattern that has been read; `host` is in canonical form, `path` a prefix of whole segments.

    With a slash at its end the path covers only what is below. `subdomains`: any name below `host`,
    and not `host` itself.
    """

    scheme: str
    host: str
    port: int
    path: str
    subdomains: bool = False

    def covers(self, url: URL) -> bool:
        """Whether a URL, as it is sent, lies here; its path is compared letter by letter."""
        return (
            (url.scheme, url.port) == (self.scheme, self.port)
            and self._covers_host(_canonical(url.raw_host or ""))
            and self._covers_path(url.raw_path)
        )

    def _covers_host(self, host: str) -> bool:
        return host.endswith(f".{self.host}") if self.subdomains else host == self.host

    def _covers_path(self, path: str) -> bool:
        if self.path.endswith("/"):
            return path.startswith(self.path)
        return path == self.path or path.startswith(f"{self.path}/")


@dataclass(frozen=True, slots=True)
class Only:
    """The endpoints and the networks a request is limited to; an empty tuple is no limit."""

    endpoints: tuple[Endpoint, ...] = ()
    networks: tuple[Network, ...] = ()

    def permits_url(self, url: URL) -> bool:
        """Whether the URL lies in an endpoint however a server decodes its path."""
        if not self.endpoints:
            return True
        return not _climbs(url.raw_path) and any(each.covers(url) for each in self.endpoints)

    def permits_address(self, address: str) -> bool:
        """Whether an address, as it is dialled, lies in one of the networks."""
        if not self.networks:
            return True
        found = ip_of(address)
        return found is not None and any(found in network for network in self.networks)


def parse_only(endpoints: Iterable[str] = (), networks: Iterable[str] = ()) -> Only:
    """The limit that patterns and networks (`198.51.100.0/24`, `2001:db8::1`) make together.

    A pattern is `https://host[:port][/path]`. The host may begin with `*.`, for every name below
    it. The path covers itself and all segments below it; with `/*` at its end only what is below.
    Raises BadEndpointLimit.
    """
    return Only(
        tuple(_read(_endpoint, each, "an allowed endpoint") for each in endpoints),
        tuple(_read(_network, each, "an allowed network") for each in networks),
    )


def problem_of(pattern: str) -> str | None:
    """What is wrong with an endpoint's pattern, in words that do not repeat it, or None."""
    return _problem(_endpoint, pattern)


def network_problem_of(text: str) -> str | None:
    """What is wrong with a network, in words that do not repeat it, or None."""
    return _problem(_network, text)


class _Unreadable(ValueError):
    """What is wrong, as a sentence without its subject."""


def _read(read: Callable[[str], Read], text: str, subject: str) -> Read:
    try:
        return read(text)
    except _Unreadable as wrong:
        raise BadEndpointLimit(f"{subject} {wrong}") from None


def _problem(read: Callable[[str], object], text: str) -> str | None:
    try:
        read(text)
    except _Unreadable as wrong:
        return str(wrong)
    return None


def _endpoint(pattern: str) -> Endpoint:
    found = _PATTERN.fullmatch(pattern)
    if found is None:
        raise _Unreadable("must be https://host[:port][/path]")
    scheme, host = found["scheme"].lower(), _host(found["host"])
    if scheme not in _PORTS or (scheme == "http" and not is_loopback(host)):
        raise _Unreadable("must be https (plain http is for loopback addresses only)")
    if found["any"] and ("." not in host or ip_of(host) is not None):
        raise _Unreadable("may have *. only before a name of two labels or more")
    port = int(found["port"] or _PORTS[scheme])
    if not 0 < port <= _LAST_PORT:
        raise _Unreadable(f"has a port that is not 1 to {_LAST_PORT}")
    return Endpoint(scheme, host, port, _prefix(found["path"] or "/"), bool(found["any"]))


def _host(text: str) -> str:
    """A host as people write it, in the form that is dialled: IDNA, lower case."""
    try:
        host = canonical_host(URL.build(scheme="https", host=text.strip("[]")).raw_host or "")
    except ValueError:  # IDNA's errors are of this kind.
        host = ""
    if ip_of(host) is None and (text.startswith("[") or not _is_name(host)):
        raise _Unreadable("has a host that is neither a name nor an address")
    return _canonical(host)


def _is_name(host: str) -> bool:
    short = len(host) <= _LONGEST_NAME
    return short and bool(_NAME.fullmatch(host)) and not _NUMBER.fullmatch(host)


def _canonical(host: str) -> str:
    """One form of each host: an address has many spellings."""
    address = ip_of(host)
    return canonical_host(host) if address is None else str(address)


def _prefix(path: str) -> str:
    """The path without its `*`; a slash at its end means that only what is below it counts."""
    whole = path.removesuffix("/*")
    if "*" in whole:
        raise _Unreadable("may have * only as the last part of its path")
    if not _PATH_TEXT.fullmatch(whole):
        raise _Unreadable("may have only printable ASCII in its path; percent-encode the rest")
    if problem := path_problem(whole or "/"):
        raise _Unreadable(f"has a path that {problem}")
    return whole.rstrip("/") if whole == path else f"{whole}/"


def _network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError:
        raise _Unreadable("must be an address or a network, host bits zero") from None
    if network.prefixlen == 0:
        raise _Unreadable("would be every address")
    return network


def _climbs(path: str) -> bool:
    try:
        return decoded_problem(path, _as_lenient_servers) is not None
    except UnicodeDecodeError:
        # Bytes that are no UTF-8 are how overlong dots are written.
        return True


def _as_lenient_servers(path: str) -> str:
    """Decoded once, as servers do that take wide dots for dots and ignore spaces beside them."""
    return unicodedata.normalize("NFKC", unquote(path, errors="strict")).replace(" ", "")
