"""The commands that look at what happened: executions with their steps, lanes."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import RenderableType
from rich.table import Table
from tenon.executor.v1 import (
    execution_service_pb2,
    execution_service_pb2_grpc,
    lane_service_pb2,
    lane_service_pb2_grpc,
)

from config.cli import Subparsers, UsageError, add_registry_options, limit, open_service
from config.render import printable
from config.tables import display
from services.chassis.redaction import redact
from services.chassis.status import from_rpc_error
from services.chassis.strict_json import whole

EXECUTOR: Final = "127.0.0.1:50052"
CALL_S: Final = 20.0

Execution = execution_service_pb2.Execution
Lane = lane_service_pb2.Lane


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    for name, run, words in (
        ("executions", executions, "a tenant's executions, or one with its steps"),
        ("lanes", lanes, "a tenant's lanes, and why one does not move"),
    ):
        command = subparsers.add_parser(name, help=words, description=words)
        command.add_argument("tenant", metavar="TENANT", help="its slug")
        command.add_argument("--output", choices=("table", "json"), default="table")
        command.add_argument("--limit", type=limit, default=20, help="at most (%(default)s)")
        add_registry_options(command)
        command.set_defaults(run=guarded(run))
        add_executor_option(command)
        if run is executions:
            command.add_argument("execution", nargs="?", help="its id, or `last`")
            doing = command.add_mutually_exclusive_group()
            doing.add_argument("--follow", action="store_true", help="see it change to its end")
            doing.add_argument("--cancel", action="store_true", help="end it before its time")
        if run is lanes:
            stuck = "only those that have work and may begin none of it now"
            command.add_argument("--not-moving", action="store_true", help=stuck)
            command.add_argument("--kind", default="", help="only of this kind of work")


def add_executor_option(command: argparse.ArgumentParser) -> None:
    """Where the executor is."""
    executor = os.environ.get("TENON_EXECUTOR", EXECUTOR)
    command.add_argument(
        "--executor", default=executor, help="host:port, or TENON_EXECUTOR (%(default)s)"
    )


def executions(args: argparse.Namespace) -> int:
    """Show a page of executions, or one with its steps; follow that, or cancel it."""
    with open_service(args, args.executor) as channel:
        stub = execution_service_pb2_grpc.ExecutionServiceStub(channel)
        parent = f"tenants/{args.tenant}"
        asked = execution_service_pb2.ListExecutionsRequest(parent=parent, page_size=args.limit)
        if args.execution not in (None, "last"):
            name = f"{parent}/executions/{args.execution}"
        else:
            if args.execution is None and (args.follow or args.cancel):
                raise UsageError("say which execution: its id, or `last`")
            found = stub.ListExecutions(asked, timeout=CALL_S).executions
            if args.execution is None or not found:
                return shown(args, found, _executions_table)
            name = found[0].name
        return shown(args, [_looked_at(args, stub, name)], steps_table)


def _looked_at(
    args: argparse.Namespace, stub: execution_service_pb2_grpc.ExecutionServiceStub, name: str
) -> Execution:
    if args.follow:
        return follow(args, stub, name)
    if args.cancel:
        cancel = execution_service_pb2.CancelExecutionRequest(name=name)
        return stub.CancelExecution(cancel, timeout=CALL_S)
    return stub.GetExecution(execution_service_pb2.GetExecutionRequest(name=name), timeout=CALL_S)


def follow(
    args: argparse.Namespace, stub: execution_service_pb2_grpc.ExecutionServiceStub, name: str
) -> Execution:
    """An execution once it has ended; for people, a line for each change until then."""
    said: set[str] = set()
    while True:
        found = Execution()
        request = execution_service_pb2.WatchExecutionRequest(name=name)
        for found in stub.WatchExecution(request):
            lines = [line for line in _standing(found) if line not in said]
            said.update(lines)
            if args.output != "json":
                sys.stdout.writelines(f"{line}\n" for line in lines)
                sys.stdout.flush()
        if found.HasField("end_time"):
            return found


def _standing(one: Execution) -> list[str]:
    """How the run and each of its steps stand, a line each."""
    states = execution_service_pb2.StepResult.State
    steps = [
        f"{printable(step.step)}: {_word(states.Name(step.state))}"
        + (f", try {step.attempts}" if step.attempts > 1 else "")
        + (f", {printable(step.failure.reason)}" if step.failure.reason else "")
        for step in one.steps
    ]
    return [f"{printable(one.connector)}: {_state(one)}", *steps]


def lanes(args: argparse.Namespace) -> int:
    """Show a page of lanes."""
    with open_service(args, args.executor) as channel:
        stub = lane_service_pb2_grpc.LaneServiceStub(channel)
        asked = lane_service_pb2.ListLanesRequest(
            parent=f"tenants/{args.tenant}",
            page_size=args.limit,
            kind=args.kind,
            not_moving=args.not_moving,
        )
        return shown(args, stub.ListLanes(asked, timeout=CALL_S).lanes, _lanes_table)


def guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command with every fault as one line of words, without the secrets that were sent."""

    def told(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except UsageError as error:
            words = str(error)
        except grpc.RpcError as error:
            words = redact(from_rpc_error(error).message)
        sys.stderr.write(f"tenon: {printable(words)}\n")
        return 1

    return told


def shown(
    args: argparse.Namespace, found: Iterable[Message], table: Callable[[Any], RenderableType]
) -> int:
    """Show messages as a table, or as JSON."""
    if args.output == "json":
        read = [whole(MessageToDict(one, preserving_proto_field_name=True)) for one in found]
        sys.stdout.write(json.dumps(read, indent=2) + "\n")
    else:
        display(table(found))
    return 0


def _executions_table(found: Iterable[Execution]) -> Table:
    table = _table("execution", "connector", "state", "started by", "accepted", "took", "failure")
    for one in found:
        uid = one.name.rpartition("/")[2]
        table.add_row(
            uid,
            one.connector,
            _state(one),
            _trigger(one),
            _at(one.create_time),
            _took(one.create_time, one.end_time),
            printable(one.failure.reason),
        )
    return table


def steps_table(found: Iterable[Execution]) -> Table:
    """One execution with its steps, and what it came to."""
    (one,) = found
    table = _table("step", "state", "tries", "answer", "took", "kept")
    table.title = f"{one.connector}: {_state(one)}, started by {_trigger(one)}"
    if one.failure.reason:
        table.caption = printable(f"{one.failure.reason}: {one.failure.message}")
    elif one.output.fields:
        table.caption = printable(f"output: {json.dumps(whole(MessageToDict(one.output)))}")
    for step in one.steps:
        state = execution_service_pb2.StepResult.State.Name(step.state)
        kept = json.dumps(whole(MessageToDict(step.output))) if step.output.fields else ""
        table.add_row(
            step.step,
            _word(state),
            str(step.attempts),
            str(step.response_status or ""),
            _took(step.start_time, step.end_time),
            printable(step.failure.reason or kept),
        )
    return table


def _lanes_table(found: Iterable[Lane]) -> Table:
    table = _table("lane", "kind", "waiting", "oldest", "running", "looks", "breaker", "why not")
    for one in found:
        breaker = Lane.Breaker.Name(one.breaker)
        table.add_row(
            printable(one.owner) or one.name.rpartition("/")[2],
            printable(one.kind),
            str(one.waiting),
            f"{one.oldest_age.ToSeconds()} s" if one.HasField("oldest_age") else "",
            f"{one.running}/{one.concurrency}",
            _at(one.next_look_time) if one.HasField("next_look_time") else "when told",
            _word(breaker),
            printable("; ".join(reason.message for reason in one.reasons)),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, title_justify="left", caption_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "when")
    return table


def _state(one: Execution) -> str:
    return _word(Execution.State.Name(one.state))


def _word(name: str) -> str:
    return name.partition("_")[2].lower()


def _trigger(one: Execution) -> str:
    return one.trigger.event_type or one.trigger.kind


def _at(stamp: Timestamp) -> str:
    return stamp.ToDatetime().strftime("%m-%d %H:%M:%S")


def _took(begin: Timestamp, end: Timestamp) -> str:
    if not end.seconds:
        return ""
    return f"{end.ToMilliseconds() - begin.ToMilliseconds()} ms"
