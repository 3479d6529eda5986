"""The commands `sync trigger|runs|show|cancel|streams|reset|records`."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import RenderableType
from rich.table import Table
from tenon.executor.v1 import sync_service_pb2 as pb2
from tenon.executor.v1 import sync_service_pb2_grpc

from config.asking import PAGE, add_command, add_group, in_tenant, pages
from config.cli import Subparsers, UsageError, limit, open_service
from config.look import CALL_S, add_executor_option, shown
from config.render import printable
from config.tables import facts, new_table, when
from services.chassis.ids import format_name, format_tenant
from services.chassis.strict_json import whole

Stub = sync_service_pb2_grpc.SyncServiceStub
SyncRun = pb2.SyncRun

STATES: Final = ("queued", "running", "retrying", "success", "failed", "cancelled")
POLL_S: Final = 0.5
STREAM: Final = "its integration and its name, such as github/issues"


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    doing = add_group(subparsers, "sync", "streams of providers, their transfers and records")
    words = "transfer a stream: what has changed since the last time"
    triggering = in_tenant(add_command(doing, "trigger", trigger, words))
    triggering.add_argument("--full", action="store_true", help="all of it, and find what is gone")
    words = "see it to its end; exits 1 where that is a bad one"
    triggering.add_argument("--wait", action="store_true", help=words)
    listing = in_tenant(add_command(doing, "runs", runs, "transfers, the newest first"))
    listing.add_argument("--stream", default="", help=f"only of this one: {STREAM}")
    listing.add_argument("--state", choices=STATES, default="", help="only in this state")
    listing.add_argument("--limit", type=limit, default=20, help="at most (%(default)s)")
    showing = in_tenant(add_command(doing, "show", show, "one of them"))
    cancelling = in_tenant(add_command(doing, "cancel", cancel, "end one before its time"))
    for command in (showing, cancelling):
        command.add_argument("run_id", metavar="RUN", help="its id, or `last`")
    streaming = in_tenant(add_command(doing, "streams", streams, "streams, and how each stands"))
    words = "forget how far a stream has come: its next transfer brings all"
    resetting = in_tenant(add_command(doing, "reset", reset, words))
    reading = in_tenant(add_command(doing, "records", records, "what a stream has here, by key"))
    reading.add_argument("--deleted", action="store_true", help="also what is gone there")
    reading.add_argument("--limit", type=limit, default=20, help="at most (%(default)s)")
    reading.add_argument("--all", action="store_true", help="all of them, however many there are")
    for command in (triggering, resetting, reading):
        command.add_argument("stream", metavar="STREAM", help=STREAM)
    for command in (triggering, listing, showing, cancelling, streaming, resetting, reading):
        add_executor_option(command)


def trigger(args: argparse.Namespace) -> int:
    """Begin a transfer, and see it to its end where asked."""
    request = pb2.TriggerSyncRequest(
        stream=_stream(args, args.stream), full=args.full, request_id=str(uuid4())
    )
    with _syncs_of(args) as stub:
        found = stub.TriggerSync(request, timeout=CALL_S)
        if args.wait:
            found = _followed(args, stub, found)
        shown(args, [found], _run_facts)
    return int(found.state == SyncRun.STATE_FAILED)


def runs(args: argparse.Namespace) -> int:
    """Show a page of transfers."""
    request = pb2.ListSyncRunsRequest(
        parent=format_tenant(args.tenant),
        page_size=min(args.limit, PAGE),
        stream=_stream(args, args.stream) if args.stream else "",
        state=SyncRun.State.Value(f"STATE_{args.state.upper() or 'UNSPECIFIED'}"),
    )
    with _syncs_of(args) as stub:
        return shown(args, stub.ListSyncRuns(request, timeout=CALL_S).sync_runs, _runs_table)


def show(args: argparse.Namespace) -> int:
    """Show one."""
    with _syncs_of(args) as stub:
        request = pb2.GetSyncRunRequest(name=_name(args, stub))
        return shown(args, [stub.GetSyncRun(request, timeout=CALL_S)], _run_facts)


def cancel(args: argparse.Namespace) -> int:
    """End one before its time."""
    with _syncs_of(args) as stub:
        request = pb2.CancelSyncRunRequest(name=_name(args, stub))
        return shown(args, [stub.CancelSyncRun(request, timeout=CALL_S)], _run_facts)


def streams(args: argparse.Namespace) -> int:
    """Show a tenant's streams."""
    request = pb2.ListStreamsRequest(parent=format_tenant(args.tenant))
    with _syncs_of(args) as stub:
        return shown(args, stub.ListStreams(request, timeout=CALL_S).streams, _streams_table)


def reset(args: argparse.Namespace) -> int:
    """Have a stream begin anew."""
    request = pb2.ResetStreamRequest(stream=_stream(args, args.stream))
    with _syncs_of(args) as stub:
        return shown(args, [stub.ResetStream(request, timeout=CALL_S)], _streams_table)


def records(args: argparse.Namespace) -> int:
    """Show records of a stream."""
    request = pb2.ListRecordsRequest(
        stream=_stream(args, args.stream),
        page_size=PAGE if args.all else args.limit,
        show_deleted=args.deleted,
    )
    found: Sequence[Message]
    with _syncs_of(args) as stub:
        if args.all:
            found = pages(stub.ListRecords, request, "records")
        else:
            found = list(stub.ListRecords(request, timeout=CALL_S).records)
    if args.output != "json":
        return shown(args, found, _records_table)
    sys.stdout.write(json.dumps([_as_json(one) for one in found], indent=2) + "\n")
    return 0


@contextmanager
def _syncs_of(args: argparse.Namespace) -> Iterator[Stub]:
    with open_service(args, args.executor) as channel:
        yield Stub(channel)


def _followed(args: argparse.Namespace, stub: Stub, found: SyncRun) -> SyncRun:
    """A transfer once it has ended; for people, a line for each change until then."""
    said = ""
    while not found.HasField("end_time"):
        if args.output != "json" and _standing(found) != said:
            said = _standing(found)
            sys.stderr.write(f"{said}\n")
            sys.stderr.flush()
        time.sleep(POLL_S)
        found = stub.GetSyncRun(pb2.GetSyncRunRequest(name=found.name), timeout=CALL_S)
    return found


def _standing(one: SyncRun) -> str:
    said = f"{_state(one)}: {one.seen} records on {one.pages} pages"
    return f"{said}, {printable(one.failure_message)}" if one.failure_message else said


def _stream(args: argparse.Namespace, text: str) -> str:
    integration, _, name = text.partition("/")
    if not name:
        raise UsageError(f"a stream is said by {STREAM}")
    return f"{format_name(args.tenant, 'integrations', integration)}/streams/{name}"


def _name(args: argparse.Namespace, stub: Stub) -> str:
    """The name of the transfer that a command is about."""
    place = format_tenant(args.tenant)
    if args.run_id != "last":
        return f"{place}/syncRuns/{args.run_id.rpartition('/')[2]}"
    request = pb2.ListSyncRunsRequest(parent=place, page_size=1)
    for found in stub.ListSyncRuns(request, timeout=CALL_S).sync_runs:
        return str(found.name)
    raise UsageError("there is no transfer yet")


def _runs_table(found: Iterable[SyncRun]) -> Table:
    table = new_table("transfer", "stream", "state", "begun by", "at", "seen", "new", "why not")
    for one in found:
        table.add_row(
            one.name.rpartition("/")[2],
            _short(one.stream),
            _state(one),
            one.trigger,
            when(one, "create_time"),
            str(one.seen),
            str(one.created),
            printable(one.failure_reason),
        )
    return table


def _run_facts(found: Iterable[SyncRun]) -> RenderableType:
    (one,) = found
    counts = {name: str(getattr(one, name)) for name in ("pages", "seen", "created", "updated")}
    failure = f"{one.failure_reason}: {one.failure_message}" if one.failure_reason else ""
    return facts(
        {
            "transfer": one.name,
            "stream": _short(one.stream),
            "state": _state(one),
            "of": "all of it" if one.full else "what has changed",
            "begun by": one.event or one.trigger,
            **counts,
            "deleted": str(one.deleted),
            "failure": failure,
            "covered by": one.covered_by,
            "wanted at": when(one, "create_time"),
            "ended at": when(one, "end_time"),
        }
    )


def _streams_table(found: Iterable[pb2.Stream]) -> Table:
    table = new_table("stream", "active", "up to", "last good", "last bad", "why", "bad ones since")
    for one in found:
        table.add_row(
            _short(one.name),
            "yes" if one.is_active else "no",
            printable(one.cursor),
            when(one, "last_success_time"),
            when(one, "last_failure_time"),
            printable(one.last_failure_reason),
            str(one.failures or ""),
        )
    return table


def _as_json(one: Message) -> dict[str, Any]:
    """A record whose data is JSON in JSON, not bytes in a text."""
    said = whole(MessageToDict(one, preserving_proto_field_name=True))
    data = getattr(one, "data", b"")
    return {**said, "data": json.loads(data)} if data else said


def _records_table(found: Iterable[pb2.Record]) -> Table:
    table = new_table("key", "version", "changed at", "what it is")
    for one in found:
        said = one.data.decode(errors="replace") or "gone"
        table.add_row(
            printable(one.key), str(one.version), when(one, "change_time"), printable(said)
        )
    return table


def _state(one: SyncRun) -> str:
    return SyncRun.State.Name(one.state).removeprefix("STATE_").lower()


def _short(stream: str) -> str:
    """`integration/stream` of a stream's name."""
    parts = stream.split("/")
    return printable(f"{parts[3]}/{parts[5]}") if len(parts) == 6 else printable(stream)
