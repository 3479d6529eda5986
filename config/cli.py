"""The commands `validate`, `plan` and `apply`. Each returns its exit code; see `reconcile.Exit`."""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from rich.console import Console
from rich.progress import track

from config.client import RegistryClient
from config.loader import read_regular, shown
from config.problems import Mark, Problem, problem
from config.reading import read
from config.reconcile import Exit, Outcome, Plan, Reconciler, worst
from config.render import as_json, printable, show_plan, show_problems, show_revision
from config.resolve import Batch, resolve_secrets
from services.chassis.channel import ClearChannelError, open_sync_channel
from services.chassis.secret import Secret

__all__ = [
    "Subparsers",
    "UsageError",
    "add_registry_options",
    "apply",
    "open_service",
    "plan",
    "printable",
    "register",
    "validate",
]

REGISTRY: Final = "127.0.0.1:50051"
KEY_FILE: Final = ".tenon/owner.key"
LARGEST_FILE: Final = 64 * 2**10
"""Bytes of a key or CA file."""

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - there is no public name


MOST_SHOWN: Final = 500
"""Of a list, by one command."""


class UsageError(Exception):
    """What stops a command before it calls anybody; a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command speaks: results to `out`, problems to `err`, or all as JSON at the end."""

    out: Console
    err: Console
    as_json: bool

    def show_plan(self, plan: Plan) -> None:
        """At once, for people only."""
        if not self.as_json:
            show_plan(self.out, plan)

    def finish(self, outcomes: Sequence[Outcome], problems: Sequence[Problem], code: Exit) -> int:
        """All that is left to say; returns the exit code."""
        if self.as_json:
            print(as_json(outcomes, problems, code))
        else:
            show_problems(self.err, problems)
        return int(code)


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser; the chosen one is `args.run`, from arguments to exit code."""
    for name, run, words in (
        ("validate", validate, "check YAML files without asking the registry"),
        ("plan", plan, "show what an apply would change; exits 2 when it would change anything"),
        ("apply", apply, "make the registry's wanted state that of the files"),
    ):
        command = subparsers.add_parser(name, help=words, description=words)
        command.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file or folder")
        command.add_argument("--output", choices=("table", "json"), default="table")
        command.set_defaults(run=run)
        if run is not validate:
            add_registry_options(command)
            command.add_argument("--source", default="cli", help="who owns what is set (cli)")
            command.add_argument("--commit", default="", help="kept in the audit log")
        if run is apply:
            until = "return only when the executor works by the new revision"
            command.add_argument("--wait", action="store_true", help=until)


def add_registry_options(command: argparse.ArgumentParser) -> None:
    """The options that `open_service` reads, and where the registry is."""
    registry = os.environ.get("TENON_REGISTRY", REGISTRY)
    key_file = os.environ.get("TENON_KEY_FILE", KEY_FILE)
    command.add_argument(
        "--registry", default=registry, help="host:port, or TENON_REGISTRY (%(default)s)"
    )
    command.add_argument(
        "--key-file", default=key_file, type=Path, help="or TENON_KEY_FILE (%(default)s)"
    )
    command.add_argument("--ca-file", type=Path, help="whom to trust for TLS (PEM)")
    command.add_argument(
        "--reason",
        default=os.environ.get("TENON_REASON", ""),
        help="why you do it, kept in the audit log; or TENON_REASON",
    )


def validate(args: argparse.Namespace) -> int:
    """Read and check files; asks nobody and reads no secrets."""
    output = _output(args)
    reading = read(args.paths)
    code = Exit.OK if reading.is_good else Exit.ERROR
    if reading.is_good and not output.as_json:
        tenants = {each.tenant for each in reading.documents}
        counts = f"documents: {len(reading.documents)}, tenants: {len(tenants)}"
        output.out.print(f"{counts}, no errors", highlight=False)
    return output.finish((), reading.problems, code)


def plan(args: argparse.Namespace) -> int:
    """Show the difference for every tenant in the files."""
    output = _output(args)

    def work(reconciler: Reconciler, batch: Batch) -> Outcome:
        outcome = reconciler.plan(batch)
        if outcome.plan is not None:
            output.show_plan(outcome.plan)
        return outcome

    return _each_tenant(args, output, work)


def apply(args: argparse.Namespace) -> int:
    """Show and make the difference for every tenant in the files, each all or nothing."""
    output = _output(args)

    def work(reconciler: Reconciler, batch: Batch) -> Outcome:
        outcome = reconciler.apply(batch, output.show_plan, wait=args.wait)
        if not output.as_json:
            show_revision(output.out, outcome)
        return outcome

    return _each_tenant(args, output, work)


def _output(args: argparse.Namespace) -> Output:
    return Output(Console(), Console(stderr=True), args.output == "json")


def _each_tenant(
    args: argparse.Namespace, output: Output, work: Callable[[Reconciler, Batch], Outcome]
) -> int:
    """Do `work` for every tenant; a fault in the files stops all, a fault of one tenant only it."""
    reading = read(args.paths)
    batches, faults = resolve_secrets(reading.documents) if reading.is_good else ([], [])
    if faults or not reading.is_good:
        return output.finish((), sorted((*reading.problems, *faults)), Exit.ERROR)
    if not output.as_json:
        show_problems(output.err, reading.problems)
    try:
        with open_service(args, args.registry) as channel:
            client = RegistryClient(channel)
            reconciler = Reconciler(client, args.registry, args.source, args.commit)
            outcomes = [
                _told(output, work(reconciler, batch)) for batch in _progress(output, batches)
            ]
    except UsageError as error:
        return output.finish((), [problem(Mark("tenon"), str(error))], Exit.ERROR)
    told = reading.problems if output.as_json else ()
    return output.finish(outcomes, told, worst(each.exit for each in outcomes))


def _told(output: Output, outcome: Outcome) -> Outcome:
    if not output.as_json:
        show_problems(output.err, outcome.problems)
    return outcome


def _progress(output: Output, batches: Sequence[Batch]) -> Iterable[Batch]:
    quiet = len(batches) == 1 or not output.err.is_terminal
    return track(batches, "tenants", console=output.err, transient=True, disable=quiet)


@contextmanager
def open_service(args: argparse.Namespace, address: str) -> Iterator[grpc.Channel]:
    """A channel to one of our services with the key and CA of the options; raises UsageError."""
    key = _key(args.key_file)
    if args.ca_file is not None:
        _regular(args.ca_file, "the CA file")
    try:
        channel = open_sync_channel(address, key=key, ca_file=args.ca_file, reason=args.reason)
    except ClearChannelError as error:
        raise UsageError(f"{error} (--ca-file)") from None
    with channel:
        yield channel


def _key(path: Path) -> Secret:
    key = _regular(path, "the key (`make up` writes one; --key-file or TENON_KEY_FILE says where)")
    text = key.strip()
    if not text or not text.isascii() or len(text.split()) != 1:
        raise UsageError(f"{shown(path)}: not a key: one line of printable ASCII is expected")
    return Secret(text)


def _regular(path: Path, what: str) -> bytes:
    data, fault = read_regular(path, LARGEST_FILE, "64 KiB")
    if fault:
        raise UsageError(f"{shown(path)}: {what}: {fault}")
    return data


def limit(text: str) -> int:
    """How many of a list are shown."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MOST_SHOWN):
        raise argparse.ArgumentTypeError(f"must be 1 to {MOST_SHOWN}")
    return int(text)
