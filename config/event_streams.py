"""The commands `events subscribe|replay`."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.progress import Progress
from tenon.executor.v1 import event_service_pb2 as pb2
from tenon.executor.v1 import event_service_pb2_grpc

from config.asking import add_command, in_tenant, since
from config.cli import Subparsers, UsageError, open_service
from config.look import CALL_S, add_executor_option, shown
from config.render import printable
from services.chassis import strict_json
from services.chassis.ids import format_tenant
from services.chassis.status import from_rpc_error

Stub = event_service_pb2_grpc.EventServiceStub

LONGEST_REPLAY_S: Final = 120.0
"""Of one call; there may be many."""
AGAIN_S: Final = 1.0
TRIES: Final = 5
"""Streams in a row that may fail before one gives up; the channel tries each again."""
ACKNOWLEDGE_S: Final = 1.0
SHOWN: Final = 200
"""Characters of a payload in a line for people."""


def register(doing: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to the others about events."""
    words = "tell events as they come in, a line each, until it is stopped"
    subscribing = in_tenant(add_command(doing, "subscribe", subscribe, words))
    subscribing.add_argument("--group", default="", help="as a member of this group")
    words = "acknowledge for the group what has been told"
    subscribing.add_argument("--ack", action="store_true", help=words)
    words = "oldest, newest (as of now), or a position; a group that is there goes on where it is"
    subscribing.add_argument("--from", default="newest", dest="start", help=words)
    subscribing.add_argument("--limit", type=int, default=0, help="stop after so many")
    words = "route events again by the subscriptions of today, the oldest first"
    replaying = in_tenant(add_command(doing, "replay", replay, words))
    words = "what came in from this day or time on (UTC), or in this stretch of time, such as 12h"
    replaying.add_argument("--since", type=since, required=True, help=words)
    replaying.add_argument("--until", type=since, help="and before then; up to now")
    words = "only what came by this inbound endpoint"
    replaying.add_argument("--endpoint", default="", help=words)
    replaying.add_argument("--subscription", default="", help="only by this subscription")
    words = "begin nothing: say what would be"
    replaying.add_argument("--dry-run", action="store_true", help=words)
    words = "go on with the replay of this id"
    replaying.add_argument("--request-id", type=UUID, help=words)
    for command in (subscribing, replaying):
        words = "only of this type, such as invoice.paid or invoice.*; may be said again"
        command.add_argument("--type", action="append", default=[], dest="types", help=words)
        words = "only where this CEL expression over `event` is true"
        command.add_argument("--filter", default="", help=words)
        add_executor_option(command)


def subscribe(args: argparse.Namespace) -> int:
    """Tell events until stopped; one that was told is acknowledged within a second or so."""
    if args.ack and not args.group:
        raise UsageError("--ack is for a group (--group)")
    told = 0
    with open_service(args, args.executor) as channel:
        stub = Stub(channel)
        done = _Acknowledging(stub, args) if args.ack else None
        try:
            for each in _following(stub, _wish(args)):
                if each.HasField("event"):
                    told += 1
                    sys.stdout.write(_line(args, each))
                    sys.stdout.flush()
                if done is not None:
                    done.note(each)
                if told == args.limit > 0:
                    break
        except KeyboardInterrupt:
            pass
        finally:
            if done is not None:
                done.tell()
    return 0


def replay(args: argparse.Namespace) -> int:
    """Replay call by call, with a bar for people, and say what was begun."""
    request = pb2.ReplayEventsRequest(
        parent=format_tenant(args.tenant),
        request_id=str(args.request_id or uuid4()),
        types=args.types,
        endpoint=args.endpoint,
        filter=args.filter,
        subscription=args.subscription,
        validate_only=args.dry_run,
    )
    request.since.FromDatetime(args.since)
    if args.until:
        request.until.FromDatetime(args.until)
    span = ((args.until or datetime.now(UTC)) - args.since).total_seconds()
    with open_service(args, args.executor) as channel, _bar(args) as bar:
        task = bar.add_task("replaying", total=max(span, 0.0))
        try:
            for answer in _replayed(Stub(channel), request):
                reached = answer.reach_time.ToDatetime(UTC) - args.since
                bar.update(task, completed=reached.total_seconds())
        except grpc.RpcError:
            if not args.dry_run:
                sys.stderr.write(f"tenon: go on with it by {_again(request)}\n")
            raise
    return shown(args, [answer], lambda _: _begun(answer, dry=args.dry_run))


class _Acknowledging:
    """Acknowledges what has been told, not each by itself."""

    def __init__(self, stub: Stub, args: argparse.Namespace) -> None:
        self._stub = stub
        self._request = pb2.AcknowledgeEventsRequest(
            parent=format_tenant(args.tenant), group=args.group
        )
        self._told_at = time.monotonic()

    def note(self, told: pb2.SubscribeEventsResponse) -> None:
        """All up to here is done with."""
        self._request.position = told.position
        if time.monotonic() - self._told_at >= ACKNOWLEDGE_S or not told.HasField("event"):
            self.tell()

    def tell(self) -> None:
        """Acknowledge what is done with by now."""
        if self._request.position:
            try:
                self._stub.AcknowledgeEvents(self._request, timeout=CALL_S)
            except grpc.RpcError as error:
                # Somebody moved the group: what was told before that is told anew, and counts then.
                if from_rpc_error(error).code != "GROUP_WAS_RESET":
                    raise
        self._request.position, self._told_at = "", time.monotonic()


def _wish(args: argparse.Namespace) -> pb2.SubscribeEventsRequest:
    request = pb2.SubscribeEventsRequest(
        parent=format_tenant(args.tenant), group=args.group, types=args.types, filter=args.filter
    )
    starts = pb2.SubscribeEventsRequest.Start
    word = f"START_{args.start.upper()}"
    if word in starts.keys():  # noqa: SIM118 - an enum of the contract is no dict
        request.start = starts.Value(word)
    else:
        request.position = args.start
    return request


def _following(
    stub: Stub, request: pb2.SubscribeEventsRequest
) -> Iterator[pb2.SubscribeEventsResponse]:
    """What is told, over as many streams as it takes: a server that drains ends them."""
    silent = 0
    while True:
        try:
            for each in stub.SubscribeEvents(request):
                request.position, silent = each.position, 0
                yield each
        except grpc.RpcError as error:
            silent += 1
            if error.code() is not grpc.StatusCode.UNAVAILABLE or silent >= TRIES:
                raise
        time.sleep(AGAIN_S)


def _line(args: argparse.Namespace, told: pb2.SubscribeEventsResponse) -> str:
    event = told.event
    uid = event.name.rpartition("/")[2]
    if args.output != "json":
        said = "does not open any more" if told.unreadable else event.body.decode(errors="replace")
        at = event.receive_time.ToDatetime().strftime("%m-%d %H:%M:%S")
        return f"{at} {printable(event.type)} {uid} {printable(said)[:SHOWN]}\n"
    words: dict[str, Any] = MessageToDict(event, preserving_proto_field_name=True)
    words |= {"id": uid, "position": told.position, "unreadable": told.unreadable}
    try:
        words["payload"] = strict_json.parse(event.body)
        words.pop("body", None)
    except ValueError:
        pass  # What is no JSON stays base64.
    return json.dumps(words, ensure_ascii=False, separators=(",", ":")) + "\n"


def _replayed(stub: Stub, request: pb2.ReplayEventsRequest) -> Iterator[pb2.ReplayEventsResponse]:
    """Each call's answer, up to the end."""
    while True:
        answer = stub.ReplayEvents(request, timeout=LONGEST_REPLAY_S)
        yield answer
        request.page_token = answer.next_page_token
        if not answer.next_page_token:
            return


def _again(request: pb2.ReplayEventsRequest) -> str:
    """The options that a replay is gone on with; a stretch of time would be another one."""
    until = f" --until {request.until.ToJsonString()}" if request.HasField("until") else ""
    return f"--since {request.since.ToJsonString()}{until} --request-id {request.request_id}"


def _begun(answer: pb2.ReplayEventsResponse, *, dry: bool) -> str:
    would = "would be" if dry else "are"
    lost = f"; {answer.unreadable} do not open any more" if answer.unreadable else ""
    return (
        f"{answer.events} events {would} routed again: {answer.deliveries} deliveries, "
        f"{answer.executions} executions, {answer.sync_runs} syncs{lost}"
    )


def _bar(args: argparse.Namespace) -> Progress:
    console = Console(stderr=True)
    quiet = args.output == "json" or not console.is_terminal
    return Progress(console=console, disable=quiet, transient=True)
