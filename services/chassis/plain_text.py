"""Control characters: they forge lines, and a database keeps no NUL."""

import re
from typing import Final

CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def spaced(text: str) -> str:
    """The text with a space for every control character, and none at its ends."""
    return CONTROL.sub(" ", text).strip()
