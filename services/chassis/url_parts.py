"""Parts of a URL as every server may read them: hosts that are loopback, paths that climb."""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote

_NEVER: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_DECODINGS: Final = 4


def is_loopback(host: str) -> bool:
    """Whether a URL's host is a loopback address, or the name for one."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def path_problem(path: str) -> str | None:
    """What keeps a text from being an encoded path that no server reads as another one, or None."""
    if not path.startswith("/"):
        return "must begin with /"
    if any(mark in path for mark in "?#{}"):
        return "must not have ?, #, { or }"
    if _BAD_PERCENT.search(path):
        return "has a % that encodes nothing"
    return decoded_problem(path)


def decoded_problem(path: str, decode: Callable[[str], str] = unquote) -> str | None:
    """What any server could see in `path` however often it decodes it by `decode`."""
    for _ in range(_MAX_DECODINGS):
        if problem := _segments_problem(path):
            return problem
        decoded = decode(path)
        if decoded == path:
            return None
        path = decoded
    return "is percent-encoded too many times"


def _segments_problem(path: str) -> str | None:
    if _NEVER.search(path):
        return "has a control character or a backslash"
    # Some servers end a segment at a semicolon, others begin the next one there.
    segments = [segment.split(";") for segment in path.split("/")[1:]]
    if any(part in (".", "..") for segment in segments for part in segment):
        return "has a . or .. segment"
    if any(segment[0] == "" for segment in segments[:-1]):
        return "has an empty segment"
    return None
