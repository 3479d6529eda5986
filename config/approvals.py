"""The commands `revisions`, `approve` and `reject`: changes that wait for people."""

import argparse
import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from tenon.registry.v1 import config_service_pb2 as pb2
from tenon.registry.v1 import config_service_pb2_grpc as pb2_grpc

from config.cli import Subparsers, UsageError, add_registry_options, limit, open_service
from config.look import CALL_S, guarded, shown
from config.render import approvals, message_json, plan_json, printable, show_plan
from config.tables import display

PENDING: Final = "pendingRevisions"
APPLIED: Final = "revisions"
LARGEST_PAGE: Final = 500

Pending = pb2.PendingRevision


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    words = "a tenant's changes: applied, and waiting for approval"
    revisions = subparsers.add_parser("revisions", help=words, description=words)
    what = revisions.add_subparsers(required=True, metavar="WHAT")
    listing = _command(what, "list", list_revisions, "what waits, and what was applied")
    listing.add_argument("tenant", metavar="TENANT", help="its slug")
    only = "only what waits, or once waited, for approval"
    listing.add_argument("--pending", action="store_true", help=only)
    listing.add_argument("--limit", type=limit, default=20, help="at most of each (%(default)s)")
    _named(_command(what, "show", show_revision, "one of them; one that waits with its plan"))
    for name, run, words in (
        ("approve", approve, "approve a change of somebody else's that waits"),
        ("reject", reject, "end a change that waits; it and its secrets are gone"),
    ):
        command = _named(_command(subparsers, name, run, words))
        command.add_argument(
            "--note", default="", required=run is reject, help="kept in the audit log"
        )


def list_revisions(args: argparse.Namespace) -> int:
    """Show what waits, then what was applied."""
    with open_service(args, args.registry) as channel:
        stub, parent = pb2_grpc.ConfigServiceStub(channel), f"tenants/{args.tenant}"
        asked = pb2.ListPendingRevisionsRequest(parent=parent, page_size=args.limit)
        if not args.pending:
            asked.state = Pending.STATE_PENDING
        waiting = stub.ListPendingRevisions(asked, timeout=CALL_S).pending_revisions
        applied: Iterable[pb2.Revision] = ()
        if not args.pending:
            request = pb2.ListRevisionsRequest(parent=parent, page_size=args.limit)
            applied = stub.ListRevisions(request, timeout=CALL_S).revisions
    return shown(args, [*waiting, *applied], _revisions_table)


def show_revision(args: argparse.Namespace) -> int:
    """Show one revision: a pending one with its plan and approvals, an applied one in a line."""
    with open_service(args, args.registry) as channel:
        stub = pb2_grpc.ConfigServiceStub(channel)
        if _collection(args.name) == APPLIED:
            return shown(args, [_applied(stub, args.name)], _revisions_table)
        request = pb2.GetPendingRevisionRequest(name=args.name)
        return _shown(args, stub.GetPendingRevision(request, timeout=CALL_S))


def approve(args: argparse.Namespace) -> int:
    """Approve, and say what came of it."""
    request = pb2.ApproveRevisionRequest(
        name=args.name, note=args.note, request_id=str(uuid.uuid4())
    )
    with open_service(args, args.registry) as channel:
        answer = pb2_grpc.ConfigServiceStub(channel).ApproveRevision(request, timeout=CALL_S)
    return _told(args, answer)


def reject(args: argparse.Namespace) -> int:
    """Reject, and say so."""
    request = pb2.RejectRevisionRequest(
        name=args.name, note=args.note, request_id=str(uuid.uuid4())
    )
    with open_service(args, args.registry) as channel:
        answer = pb2_grpc.ConfigServiceStub(channel).RejectRevision(request, timeout=CALL_S)
    return _told(args, answer)


def _command(
    subparsers: "Subparsers[argparse.ArgumentParser]", name: str, run: Any, words: str
) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=words, description=words)
    command.add_argument("--output", choices=("table", "json"), default="table")
    add_registry_options(command)
    command.set_defaults(run=guarded(run))
    return command


def _named(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("name", metavar="NAME", help="as `tenon revisions list` has it")
    return command


def _collection(name: str) -> str:
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] not in {PENDING, APPLIED}:
        raise UsageError(f"NAME must be tenants/TENANT/{PENDING}/ID or tenants/TENANT/{APPLIED}/N")
    return parts[2]


def _applied(stub: pb2_grpc.ConfigServiceStub, name: str) -> pb2.Revision:
    request = pb2.ListRevisionsRequest(parent="/".join(name.split("/")[:2]), page_size=LARGEST_PAGE)
    while True:
        page = stub.ListRevisions(request, timeout=CALL_S)
        for one in page.revisions:
            if one.name == name:
                return one
        if not page.next_page_token:
            raise UsageError(f"there is no {name}")
        request.page_token = page.next_page_token


def _shown(args: argparse.Namespace, one: Pending) -> int:
    if args.output == "json":
        return _say_json(one)
    if one.state == Pending.STATE_PENDING:
        show_plan(Console(), one.plan)
    else:
        sys.stdout.writelines(f"{printable(line)}\n" for line in _outline(one.plan))
    display(_pending_table(one))
    return 0


def _say_json(one: Pending) -> int:
    document = message_json(one) | {"plan": plan_json(one.plan)}
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0


def _outline(plan: pb2.Plan) -> Iterator[str]:
    """What a revision was about that has ended: its values are gone."""
    for change in plan.changes:
        action = pb2.Change.Action.Name(change.action).removeprefix("ACTION_").lower()
        paths = ", ".join(field.path for field in change.fields)
        yield f"{action} {change.kind} {change.name}: {paths}"


def _told(args: argparse.Namespace, one: Pending) -> int:
    if args.output == "json":
        return _say_json(one)
    has, needs = len(one.approvals), one.approvals_needed
    sentences = {
        Pending.STATE_APPLIED: f"approved and applied: revision {one.revision}",
        Pending.STATE_REJECTED: "rejected",
        Pending.STATE_PENDING: f"approved; it has {approvals(has)} and needs {needs}",
    }
    sys.stdout.write(f"{printable(one.name)}: {sentences.get(one.state, _state(one))}\n")
    return 0


def _revisions_table(found: Iterable[Pending | pb2.Revision]) -> Table:
    table = _table("revision", "state", "by", "source", "when", "approvals", "until")
    for one in found:
        if isinstance(one, pb2.Revision):
            who = (printable(one.principal), printable(one.source))
            table.add_row(printable(one.name), "applied", *who, _at(one.create_time), "", "")
        else:
            table.add_row(*_pending_row(one))
    return table


def _pending_row(one: Pending) -> tuple[str, ...]:
    waits = one.state == Pending.STATE_PENDING
    return (
        printable(one.name),
        _state(one),
        printable(one.author),
        printable(one.source),
        _at(one.create_time),
        f"{len(one.approvals)} of {one.approvals_needed}",
        _at(one.expire_time) if waits else "",
    )


def _pending_table(one: Pending) -> Table:
    """One pending revision with those who approved it."""
    table = _table("approved by", "when", "note")
    needs = approvals(one.approvals_needed)
    table.title = printable(f"{one.name}: {_state(one)}, by {one.author} as {one.source}")
    table.caption = printable(f"needs {needs} (policy {', '.join(one.policies)})")
    if one.note:
        table.caption = printable(f"{one.ended_by}: {one.note}")
    for each in one.approvals:
        table.add_row(printable(each.principal), _at(each.create_time), printable(each.note))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, title_justify="left", caption_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in {"when", "until"})
    return table


def _state(one: Pending) -> str:
    return Pending.State.Name(one.state).removeprefix("STATE_").lower()


def _at(stamp: Timestamp) -> str:
    return stamp.ToDatetime().strftime("%m-%d %H:%M:%S")
