"""The command `run`: starts a connector, and waits for its end or follows it where asked."""

import argparse
import json
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct
from tenon.executor.v1 import execution_service_pb2, execution_service_pb2_grpc

from config.cli import Subparsers, UsageError, add_registry_options, open_service
from config.look import CALL_S, add_executor_option, follow, guarded, shown, steps_table

LONGEST_WAIT_S: Final = 60
Execution = execution_service_pb2.Execution


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command to a parser."""
    words = "run a connector; exits 1 where it is seen to end otherwise than well"
    command = subparsers.add_parser("run", help=words, description=words)
    command.add_argument("tenant", metavar="TENANT", help="its slug")
    command.add_argument("connector", metavar="CONNECTOR", help="its name")
    command.add_argument("--input", default="{}", help="a JSON object, seen as `input`")
    belongs = "what the run belongs to, such as contact_id=42; may be repeated"
    command.add_argument("--link", action="append", default=[], metavar="NAME=VALUE", help=belongs)
    ending = command.add_mutually_exclusive_group()
    until = f"answer when it has ended, or after {LONGEST_WAIT_S} s"
    ending.add_argument("--wait", action="store_true", help=until)
    ending.add_argument("--follow", action="store_true", help="see it change to its end")
    command.add_argument("--output", choices=("table", "json"), default="table")
    add_registry_options(command)
    add_executor_option(command)
    command.set_defaults(run=guarded(run))


def run(args: argparse.Namespace) -> int:
    """Start a connector and show the run."""
    request = execution_service_pb2.RunConnectorRequest(
        name=f"tenants/{args.tenant}/connectors/{args.connector}",
        input=_input(args.input),
        wait=Duration(seconds=LONGEST_WAIT_S) if args.wait else None,
        links=_links(args.link),
    )
    with open_service(args, args.executor) as channel:
        stub = execution_service_pb2_grpc.ExecutionServiceStub(channel)
        found = stub.RunConnector(request, timeout=CALL_S + LONGEST_WAIT_S)
        if args.follow:
            found = follow(args, stub, found.name)
    shown(args, [found], steps_table)
    return int(found.HasField("end_time") and found.state != Execution.STATE_SUCCESS)


def _input(text: str) -> Struct:
    try:
        given: Any = json.loads(text)
        return ParseDict(given, Struct())
    except (ValueError, ParseError, AttributeError):
        raise UsageError("--input must be a JSON object") from None


def _links(given: Sequence[str]) -> dict[str, str]:
    links = dict(each.partition("=")[::2] for each in given)
    if len(links) < len(given) or not all("=" in each for each in given):
        raise UsageError("--link must be NAME=VALUE, each name once")
    return links
