"""What people read: tables, and how times, stretches of time and what is wanted read in them."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType
from rich.table import Table

from config.render import message_json, printable


def display(what: RenderableType) -> None:
    """Say something on standard output; whatever others wrote in it stands there as it is."""
    Console(markup=False, emoji=False).print(what)


def new_table(*columns: str) -> Table:
    """An empty one; long words go on in the next line."""
    table = Table(box=None, title_justify="left", caption_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def facts(rows: Mapping[str, str]) -> Table:
    """What is known of one thing, a line each; what is empty is left out."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, printable(value))
    return table


def at(stamp: Timestamp) -> str:
    """A time in UTC, to the minute."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M")


def when(one: Message, field: str) -> str:
    """The time in a field, or nothing where it is absent."""
    return at(getattr(one, field)) if one.HasField(field) else ""


def lasting(period: Duration) -> str:
    """A stretch of time, such as `30 days`."""
    return str(period.ToTimedelta()).removesuffix(", 0:00:00")


def wanted(spec: Message, *apart: str) -> dict[str, str]:
    """What is wanted of a thing, field by field; fields that are told `apart` are left out."""
    fields = message_json(spec).items()
    return {name.replace("_", " "): _words(value) for name, value in fields if name not in apart}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)
