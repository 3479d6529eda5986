"""What an execution belongs to on its caller's side: names and short texts, shown as they are."""

import re
from collections.abc import Mapping
from typing import Final

from services.chassis.errors import invalid

MOST: Final = 8
LONGEST: Final = 200
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


def check(links: Mapping[str, str]) -> None:
    """Raise InvalidArgument for links that are too many, or not of the form they have."""
    if len(links) > MOST:
        raise invalid("links", f"are at most {MOST}")
    if not all(map(_NAME.fullmatch, links)):
        words = "lower-case letters, digits and _, beginning with a letter, 63 at most"
        raise invalid("links", f"have names of {words}")
    if not all(0 < len(text) <= LONGEST and text.isprintable() for text in links.values()):
        raise invalid("links", f"have texts of 1 to {LONGEST} printable characters")
