"""Where a broker is, and the subjects that are published to it: pure, for NATS.

Sources: the NATS documentation, "Client Protocol" and "Subject-Based Messaging".
"""

import re
from dataclasses import dataclass
from typing import Final

from services.chassis.errors import InvalidArgument
from services.chassis.url_parts import is_loopback

ENCRYPTED: Final = {"nats": False, "tls": True}
"""By the scheme of a url: whether nothing is said before the connection is encrypted."""
PORT: Final = 4222
MOST_HOSTS: Final = 16
LONGEST_SUBJECT: Final = 1024

_HOST: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_LAST_PORT: Final = 65535
_WORD: Final = r"[!-)+,\-/-=?-~]+"
"""Printable ASCII but for `.`, which parts tokens, and the wildcards `*` and `>`."""
_ONE_TOKEN: Final = re.compile(_WORD)
_TOKENS: Final = re.compile(rf"{_WORD}(?:\.{_WORD})*")


class BadBroker(InvalidArgument):
    """A broker's url that cannot be read, or a subject that nothing is published to."""

    reason = "BAD_BROKER"


@dataclass(frozen=True, slots=True)
class Host:
    """One server of a broker."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Broker:
    """The servers of one cluster, and whether they are spoken to by TLS alone."""

    hosts: tuple[Host, ...]
    encrypted: bool


def scheme_of(url: str) -> str:
    """The scheme of a url."""
    return url.partition("://")[0]


def parse(url: str) -> Broker:
    """The broker at `tls://host[:port][,host[:port]…]`, or `nats://` alike. Raises BadBroker.

    Plain nats is for loopback only: payloads and a credential go over it.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ENCRYPTED:
        raise BadBroker("must begin with tls:// or nats://")
    if "@" in rest:
        raise BadBroker("must not hold a user or password")
    hosts = tuple(map(_host, rest.split(",")))
    if len(hosts) > MOST_HOSTS:
        raise BadBroker(f"must have at most {MOST_HOSTS} hosts")
    if not ENCRYPTED[scheme] and not all(is_loopback(each.name) for each in hosts):
        raise BadBroker("must be tls (plain nats is for loopback addresses only)")
    return Broker(hosts, ENCRYPTED[scheme])


def url_problem(url: str) -> str | None:
    """What is wrong with a broker's url, in words that do not repeat it, or None."""
    try:
        parse(url)
    except BadBroker as error:
        return error.message
    return None


def subject_problem(subject: str) -> str | None:
    """What keeps a text from being a subject that events are published to, or None.

    What begins with $ is the server's own: publishing there changes its streams.
    """
    if subject.startswith("$"):
        return "must not begin with $"
    if len(subject) > LONGEST_SUBJECT:
        return f"must have at most {LONGEST_SUBJECT} characters"
    if not _TOKENS.fullmatch(subject):
        return "must be printable ASCII tokens joined by dots, without spaces and wildcards"
    return None


def is_token(text: str) -> bool:
    """Whether a text is one token of a subject: no dot, no wildcard, no space."""
    return bool(_ONE_TOKEN.fullmatch(text))


def _host(text: str) -> Host:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or PORT) if found else 0
    if found is None or not 0 < port <= _LAST_PORT:
        raise BadBroker("must be host[:port], several joined by commas, and nothing after them")
    return Host(found["v6"] or found["name"], port)
