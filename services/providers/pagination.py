"""From one page of a list to the next one's address."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import urldefrag, urljoin

from services.providers.manifest import PaginationStyle
from services.providers.urls import UnsafePath, require_within

_TARGET: Final = re.compile(r"[\s,]*<([^<>]*)>")
_PARAM: Final = re.compile(
    r"\s*;\s*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\",;]*)))?)?"
)
_QUOTED_PAIR: Final = re.compile(r"\\(.)")


def next_url(
    style: PaginationStyle, url: str, headers: Mapping[str, str], base_url: str
) -> str | None:
    """The address of the page after that at `url`, or None after the last.

    `headers` are those of its answer, with lower-case names. Raises UnsafePath for a page outside
    `base_url`: a credential goes with the request for it.
    """
    found = _STYLES[style](url, headers)
    return None if found is None else require_within(base_url, found)


def links(header: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Target and parameters of each link in a Link header (RFC 8288, appendix B.2).

    Parameter names are lower-case and the first of a name counts; what is malformed is skipped.
    """
    position = 0
    while found := _TARGET.match(header, position):
        params: dict[str, str] = {}
        position = found.end()
        while param := _PARAM.match(header, position):
            position = param.end()
            if param[1]:
                value = param[3] if param[2] is None else _QUOTED_PAIR.sub(r"\1", param[2])
                params.setdefault(param[1].lower(), value or "")
        yield found[1], params
        position = header.find(",", position)
        if position < 0:
            return


def _link_header(url: str, headers: Mapping[str, str]) -> str | None:
    """The first link to `next` whose context is the page itself, resolved against its URL."""
    for target, params in links(headers.get("link", "")):
        if "next" in params.get("rel", "").lower().split() and "anchor" not in params:
            try:
                return urldefrag(urljoin(url, target.strip())).url
            except ValueError:
                raise UnsafePath("the next page's address is not a URL") from None
    return None


_STYLES: Final[Mapping[PaginationStyle, Callable[[str, Mapping[str, str]], str | None]]] = {
    "link_header": _link_header,
}
