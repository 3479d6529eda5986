"""The commands `events list|show|trace|publish|test`; those that go on are `event_streams`."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Value
from rich.console import Group, RenderableType
from rich.table import Table
from tenon.executor.v1 import event_service_pb2 as pb2
from tenon.executor.v1 import event_service_pb2_grpc

from config import event_streams
from config.asking import PAGE, add_command, add_group, in_tenant
from config.cli import Subparsers, UsageError, limit, open_service
from config.look import CALL_S, add_executor_option, shown
from config.render import printable
from config.tables import facts, new_table, when
from services.chassis.ids import format_name, format_tenant

Stub = event_service_pb2_grpc.EventServiceStub
LARGEST_PAYLOAD: Final = 2**20
"""Bytes; the executor says the same."""


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    doing = add_group(subparsers, "events", "what came in, and what became of it")
    listing = in_tenant(add_command(doing, "list", events, "a tenant's events, the newest first"))
    listing.add_argument("--type", default="", help="only of this type, such as invoice.paid")
    listing.add_argument("--limit", type=limit, default=20, help="at most (%(default)s)")
    showing = in_tenant(add_command(doing, "show", show, "one of them as it came"))
    tracing = in_tenant(
        add_command(doing, "trace", trace, "what became of it, and why nothing did")
    )
    for command in (showing, tracing):
        command.add_argument("event", metavar="EVENT", help="its id, or `last`")
    publishing = in_tenant(add_command(doing, "publish", publish, "tell that something happened"))
    publishing.add_argument("type", metavar="TYPE", help="such as invoice.paid")
    what = publishing.add_mutually_exclusive_group()
    what.add_argument("--payload", default="null", metavar="JSON", help="what happened")
    words = "the same from a file; `-` is standard input"
    what.add_argument("--payload-file", type=Path, metavar="FILE", help=words)
    words = "by which the same event is known again; without it none is"
    publishing.add_argument("--key", default="", help=words)
    words = "deliver a test to an outbound endpoint; `tenon deliveries follow` shows how it goes"
    testing = in_tenant(add_command(doing, "test", test, words))
    testing.add_argument("endpoint", metavar="ENDPOINT", help="its name")
    for command in (listing, showing, tracing, publishing, testing):
        add_executor_option(command)
    event_streams.register(doing)


def events(args: argparse.Namespace) -> int:
    """Show a page of events."""
    request = pb2.ListEventsRequest(
        parent=format_tenant(args.tenant), page_size=min(args.limit, PAGE), type=args.type
    )
    with _events_of(args) as stub:
        return shown(args, stub.ListEvents(request, timeout=CALL_S).events, _events_table)


def show(args: argparse.Namespace) -> int:
    """Show one with what it says."""
    with _events_of(args) as stub:
        request = pb2.GetEventRequest(name=_name(args, stub))
        return shown(args, [stub.GetEvent(request, timeout=CALL_S)], _event_facts)


def trace(args: argparse.Namespace) -> int:
    """Show what each subscription says to one, and what was begun."""
    with _events_of(args) as stub:
        request = pb2.TraceEventRequest(name=_name(args, stub))
        return shown(args, [stub.TraceEvent(request, timeout=CALL_S)], _trace_tables)


def publish(args: argparse.Namespace) -> int:
    """Publish one, and say its id."""
    event = pb2.NewEvent(type=args.type, payload=_payload(args), key=args.key)
    request = pb2.PublishEventsRequest(parent=format_tenant(args.tenant), events=[event])
    with _events_of(args) as stub:
        return _told(args, stub.PublishEvents(request, timeout=CALL_S), "names")


def test(args: argparse.Namespace) -> int:
    """Send an endpoint a test, and say the delivery's id."""
    name = format_name(args.tenant, "webhookEndpoints", args.endpoint)
    with _events_of(args) as stub:
        request = pb2.SendTestEventRequest(endpoint=name)
        return _told(args, stub.SendTestEvent(request, timeout=CALL_S), "delivery")


def _told(
    args: argparse.Namespace,
    answer: pb2.PublishEventsResponse | pb2.SendTestEventResponse,
    field: str,
) -> int:
    """Say the id of what was begun, for a pipe or for the next command."""
    if args.output == "json":
        return shown(args, [answer], lambda _: Table())
    told = getattr(answer, field)
    for name in [told] if isinstance(told, str) else told:
        sys.stdout.write(f"{printable(name.rpartition('/')[2])}\n")
    return 0


@contextmanager
def _events_of(args: argparse.Namespace) -> Iterator[Stub]:
    with open_service(args, args.executor) as channel:
        yield Stub(channel)


def _name(args: argparse.Namespace, stub: Stub) -> str:
    """The name of the event that a command is about."""
    place = format_tenant(args.tenant)
    if args.event != "last":
        return f"{place}/events/{args.event.rpartition('/')[2]}"
    request = pb2.ListEventsRequest(parent=place, page_size=1)
    for found in stub.ListEvents(request, timeout=CALL_S).events:
        return found.name
    raise UsageError("there is no event yet")


def _payload(args: argparse.Namespace) -> Value:
    try:
        return ParseDict(json.loads(_text(args)), Value())
    except (ValueError, OverflowError, ParseError, RecursionError):
        raise UsageError("the payload must be JSON, of numbers that fit a double") from None


def _text(args: argparse.Namespace) -> bytes:
    if args.payload_file is None:
        return bytes(args.payload.encode())
    try:
        if str(args.payload_file) == "-":
            read = sys.stdin.buffer.read(LARGEST_PAYLOAD + 1)
        else:
            with args.payload_file.open("rb") as file:
                read = file.read(LARGEST_PAYLOAD + 1)
    except OSError as error:
        raise UsageError(f"{args.payload_file}: {error.strerror}") from None
    if len(read) > LARGEST_PAYLOAD:
        raise UsageError(f"the payload must have at most {LARGEST_PAYLOAD} bytes")
    return bytes(read)


def _events_table(found: Iterable[pb2.Event]) -> Table:
    table = new_table("event", "type", "came by", "at", "key")
    for one in found:
        table.add_row(
            one.name.rpartition("/")[2],
            printable(one.type),
            one.endpoint_uid or "published",
            when(one, "receive_time"),
            printable(one.key),
        )
    return table


def _event_facts(found: Iterable[pb2.Event]) -> Table:
    (one,) = found
    return facts(
        {
            "event": one.name,
            "type": one.type,
            "came by": one.endpoint_uid or "published",
            "at": when(one, "receive_time"),
            "key": one.key,
            **{name: one.headers[name] for name in sorted(one.headers)},
            "says": one.body.decode(errors="replace") or "nothing that may be shown" * one.redacted,
        }
    )


def _trace_tables(found: Iterable[pb2.TraceEventResponse]) -> RenderableType:
    (one,) = found
    table = new_table("subscription", "takes it", "why")
    for each in one.subscriptions:
        why = each.reason.lower().replace("_", " ")
        said = f"{why}: {each.message}" if each.message else why
        table.add_row(each.subscription, "yes" if each.takes else "no", printable(said))
    begun = {
        "deliveries": one.deliveries,
        "executions": one.executions,
        "syncs": one.sync_runs,
    }
    rows = {
        "event": one.event.name,
        "type": one.event.type,
        "at": when(one.event, "receive_time"),
        **{
            what: ", ".join(name.rpartition("/")[2] for name in names) or "none"
            for what, names in begun.items()
        },
    }
    return Group(facts(rows), "", table)
