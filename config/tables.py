"""Tables for people, and how a time reads in them."""

from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table


def new_table(*columns: str) -> Table:
    """An empty one; long words go on in the next line."""
    table = Table(box=None, title_justify="left", caption_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def at(stamp: Timestamp) -> str:
    """A time in UTC, to the minute."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M")
