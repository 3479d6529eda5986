"""Pages of lists (AIP-158): bounded sizes, and tokens that only fit the query they came from."""

import base64
import hashlib
import json
from typing import Any

from services.chassis.errors import invalid

DEFAULT_SIZE = 50
LARGEST_SIZE = 500
_MARK = 8


def page_size(asked: int) -> int:
    """The size to use for the size asked: 50 for 0, 500 at most; InvalidArgument below 0."""
    if asked < 0:
        raise invalid("page_size", "must not be negative")
    return min(asked or DEFAULT_SIZE, LARGEST_SIZE)


def next_token(after: str, *query: Any) -> str:
    """A token for the page after the key `after` of this very query."""
    body = after.encode()
    return base64.urlsafe_b64encode(_mark(body, query) + body).decode().rstrip("=")


def after_of(token: str, *query: Any) -> str:
    """The key a page begins after; empty for the first. InvalidArgument for a foreign token."""
    if not token:
        return ""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        mark, body = raw[:_MARK], raw[_MARK:]
        if mark == _mark(body, query):
            return body.decode()
    except ValueError:
        pass
    raise invalid("page_token", "does not belong to this query; start from the first page")


def _mark(body: bytes, query: tuple[Any, ...]) -> bytes:
    words = json.dumps([*query], default=str, sort_keys=True).encode()
    return hashlib.sha256(words + b"\0" + body).digest()[:_MARK]
