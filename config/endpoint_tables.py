"""How outbound endpoints read: a line for each, with what waits, and how the last day went."""

from collections.abc import Iterable

from rich.table import Table
from tenon.executor.v1 import delivery_service_pb2 as pb2
from tenon.executor.v1 import lane_service_pb2 as lane_pb2

from config.render import printable
from config.tables import new_table, when


def endpoints_table(found: Iterable[pb2.EndpointState]) -> Table:
    """A line for each."""
    table = new_table(
        *("endpoint", "breaker", "waits", "taken", "failed", "dead", "rate", "p50", "p95"),
        *("last taken", "last failed", "why"),
    )
    for one in found:
        table.add_row(
            one.name.rpartition("/")[2],
            _breaker(one.lane),
            str(one.queued + one.sending + one.retrying),
            str(one.success),
            str(one.failed),
            str(one.dead),
            f"{one.success_rate:.1%}" if one.HasField("success_rate") else "",
            _milliseconds(one, "duration_p50"),
            _milliseconds(one, "duration_p95"),
            when(one, "last_success_time"),
            when(one, "last_failure_time"),
            printable(_why(one)),
        )
    return table


def _breaker(lane: lane_pb2.Lane) -> str:
    word = lane_pb2.Lane.Breaker.Name(lane.breaker).removeprefix("BREAKER_").lower()
    until = lane.open_until_time.ToDatetime().strftime(" until %H:%M")
    return word.replace("_", "-") + until * lane.HasField("open_until_time")


def _why(one: pb2.EndpointState) -> str:
    """Why nothing of it goes now; else why a try last failed."""
    held = "; ".join(each.message for each in one.lane.reasons)
    return held or one.last_failure_reason


def _milliseconds(one: pb2.EndpointState, field: str) -> str:
    return f"{getattr(one, field).ToMilliseconds()} ms" if one.HasField(field) else ""  # type: ignore[arg-type]
