"""JSONPath (RFC 9535) to take values out of an answer, kept to what ends soon.

Without the functions match and search, whose patterns nothing bounds, and with no more `..`,
filters and lists of selectors than leave its time in proportion to the answer.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, cast

from jsonpath_rfc9535 import JSONPathEnvironment, JSONPathError, JSONPathQuery

from services.chassis.errors import InvalidArgument
from services.chassis.expressions import Json

LONGEST_TEXT: Final = 1024
"""Characters of one path."""
_QUOTED: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_CACHED: Final = 1024

MOST: Final = {"..": 1, "?": 1, "$": 1, ",": 4}
"""How often each sign may stand in a path: any two `..` or filters would multiply."""


class JsonPathError(InvalidArgument):
    """A path that cannot be read, does too much, or does not fit the answer."""

    reason = "JSON_PATH_INVALID"


@dataclass(frozen=True, slots=True)
class JsonPath:
    """One path, compiled."""

    text: str
    singular: bool
    query: JSONPathQuery = field(repr=False)

    @staticmethod
    def parse(text: str) -> "JsonPath":
        """The path in `text`. Raises JsonPathError."""
        return _parse(text)

    @staticmethod
    def of_place(text: str) -> "JsonPath":
        """The path in `text`, which names places whatever stands in them: it has no filter.

        Raises JsonPathError.
        """
        path = _parse(text)
        if "?" in _QUOTED.sub("''", text):
            raise JsonPathError("a path of places has no filter")
        return path

    def masked(self, value: Json, mask: str) -> Json:
        """`value`, which is changed, with `mask` for all that the path points at.

        Raises JsonPathError where the path does not fit it.
        """
        try:
            found = [node.location for node in self.query.finditer(value)]
        except (JSONPathError, RecursionError):
            raise JsonPathError("the path does not fit the answer") from None
        # What is inside another goes before that, since its way there ends with it.
        for location in sorted(found, key=len, reverse=True):
            if not location:
                return mask
            inner: Any = value
            for part in location[:-1]:
                inner = inner[part]
            inner[location[-1]] = mask
        return value

    def extract(self, value: Json) -> Json:
        """The one value a singular path points at, or null; a list of all for any other path."""
        try:
            found: list[Json] = [cast("Json", node.value) for node in self.query.finditer(value)]
        except (JSONPathError, RecursionError):
            raise JsonPathError("the path does not fit the answer") from None
        if self.singular:
            return found[0] if found else None
        return found


class _Environment(JSONPathEnvironment):
    def setup_function_extensions(self) -> None:
        super().setup_function_extensions()
        for name in ("match", "search"):
            del self.function_extensions[name]


_ENVIRONMENT: Final = _Environment()


@lru_cache(maxsize=_CACHED)
def _parse(text: str) -> JsonPath:
    if len(text) > LONGEST_TEXT:
        raise JsonPathError(f"a path has at most {LONGEST_TEXT} characters")
    bare = _QUOTED.sub("''", text)
    for sign, most in MOST.items():
        if bare.count(sign) > most:
            raise JsonPathError(f"a path has at most {most} of {sign}")
    try:
        query = _ENVIRONMENT.compile(text)
    except (JSONPathError, RecursionError) as error:
        what = str(error).split("\n")[0] if isinstance(error, JSONPathError) else "too deep"
        raise JsonPathError(f"the path cannot be read: {what[:200]}") from None
    return JsonPath(text, query.singular_query(), query)
