"""Reads single values; what is wrong goes into the report and never repeats the value."""

import re
from decimal import Decimal
from typing import Final

from config.nodes import Entry, Scalar, ScalarKind, word_for
from config.problems import Report

DURATION: Final = "a duration such as 30s, 0.5s, 5m or 1h"
LONGEST_S: Final = 315_576_000_000
"""Seconds. Source: google/protobuf/duration.proto."""

LARGEST_NUMBER: Final = 2**31 - 1
_MOST_DIGITS: Final = 11

_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([smh])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}

_HINTS: Final = {"text": ": put it in quotes", "true or false": ": write true or false"}


def wrong_type(entry: Entry, wanted: str, report: Report) -> None:
    """Note that `entry` holds something else than what is wanted."""
    node = entry.node
    if not isinstance(node, Scalar):
        report.add(entry.place, f"must be {wanted}, not {word_for(node)}")
    elif node.kind == "null":
        report.add(entry.place, "is empty or null: leave it out, or say what is wanted")
    elif node.kind != "refused":
        hint = _HINTS.get(wanted, "")
        report.add(entry.place, f"must be {wanted}, not {word_for(node)}{hint}")


def read_text(entry: Entry, report: Report) -> str | None:
    """A text; numbers, dates and yes or no must stand in quotes."""
    text = _scalar(entry, "text", "text", report)
    if text is not None and (fault := text_fault(text)):
        report.add(entry.place, fault)
        return None
    return text


def read_flag(entry: Entry, report: Report) -> bool | None:
    """`true` or `false`; nothing else means either."""
    text = _scalar(entry, "bool", "true or false", report)
    return None if text is None else text == "true"


def read_number(entry: Entry, report: Report) -> int | None:
    """A whole number of 32 bits with its sign."""
    text = _scalar(entry, "int", "a whole number", report)
    if text is None:
        return None
    # int() takes long over thousands of digits.
    number = int(text) if len(text) <= _MOST_DIGITS else LARGEST_NUMBER + 1
    if -LARGEST_NUMBER <= number <= LARGEST_NUMBER:
        return number
    report.add(entry.place, f"must be a whole number of at most {LARGEST_NUMBER}")
    return None


def read_duration(entry: Entry, report: Report) -> str | None:
    """A duration with its unit (s, m or h), as the JSON of protobuf has it: in seconds."""
    text = _scalar(entry, "text", DURATION, report)
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    seconds = Decimal(found[1]) * _SECONDS[found[2]] if found else None
    if seconds is None or seconds > LONGEST_S:
        report.add(entry.place, f"must be {DURATION}")
        return None
    return f"{seconds:f}s"


def text_fault(text: str) -> str:
    """What keeps a text from being stored, or nothing."""
    if "\0" in text:
        return "a text cannot hold the character NUL"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "a text cannot hold half of a surrogate pair"
    return ""


def _scalar(entry: Entry, kind: ScalarKind, wanted: str, report: Report) -> str | None:
    node = entry.node
    if isinstance(node, Scalar) and node.kind == kind:
        return node.text
    wrong_type(entry, wanted, report)
    return None
