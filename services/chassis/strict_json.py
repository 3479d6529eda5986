"""JSON as RFC 8259 has it, from bytes somebody else wrote, and its numbers as RFC 8785 has them."""

import json
from typing import Any, Final, NoReturn

_LARGEST_EXACT: Final = 2**53


def parse(body: bytes) -> object:
    """What the bytes say. Raises ValueError, which says nothing of them, for what is not JSON."""
    try:
        # As `loads` does, which makes a decoder at each call that does not take its defaults.
        return _READER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


def whole(value: Any) -> Any:
    """The same value with 3 for 3.0, at every depth: protobuf's Struct has no integers."""
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [whole(each) for each in value]
    return whole_number(value) if isinstance(value, float) else value


def whole_number(value: float) -> int | float:
    """A double that holds an integer exactly, as that integer."""
    return int(value) if value.is_integer() and abs(value) < _LARGEST_EXACT else value


def _refuse(name: str) -> NoReturn:
    """Python would read NaN and Infinity."""
    raise ValueError(f"{name} is not JSON")


_READER: Final = json.JSONDecoder(parse_constant=_refuse)
