"""What stands where in a JSON body."""

from typing import Annotated, Any, Final

from pydantic import StringConstraints

WHOLE: Final = "."

BodyPath = Annotated[
    str, StringConstraints(max_length=200, pattern=r"^(\.|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)$")
]
"""Names of fields, from the outside in, joined by dots; a single dot is the whole body."""


def at(body: object, path: str) -> Any:
    """What a body has at a path; None where it has nothing there."""
    found: Any = body
    for step in () if path == WHOLE else path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found
