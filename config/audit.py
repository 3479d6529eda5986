"""The commands on the audit logs: list, show, review, count, export, and verify the chain.

Without a tenant they mean the platform's log.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tenon.options.v1 import rule_pb2
from tenon.registry.v1 import audit_service_pb2 as pb2
from tenon.registry.v1 import audit_service_pb2_grpc

from config.asking import add_command, add_group, moment, parent
from config.cli import Subparsers, UsageError, limit, open_service
from config.look import CALL_S, shown
from config.render import printable
from config.tables import at, display, new_table

RISKS: Final = ("LOW", "MEDIUM", "HIGH", "CRITICAL")
LARGEST_PAGE: Final = 500
LONGEST_WALK_S: Final = 3600.0
BROKEN: Final = 2

Stub = audit_service_pb2_grpc.AuditServiceStub


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    doing = add_group(subparsers, "audit", "who did what to what, and whether that is the truth")
    for name, run, words in (
        ("list", events, "events, the newest first"),
        ("show", show, "one event, field by field"),
        ("review", review, "sign that you have looked at a risky event"),
        ("summary", summary, "how much was done a day"),
        ("export", export, "every event as a line of JSON"),
        ("verify", verify, f"walk the chain; exits {BROKEN} when anything is wrong with it"),
    ):
        command = add_command(doing, name, run, words)
        command.add_argument(
            "tenant", nargs="?", default="", metavar="TENANT", help="its slug; or the platform's"
        )
        if run in (show, review):
            command.add_argument("event", metavar="EVENT", help="its id, the end of its name")
        if run is review:
            command.add_argument("--note", required=True, help="what you saw")
        if run is events:
            command.add_argument("--limit", type=limit, default=20, help="at most (%(default)s)")
        if run in (events, export):
            _add_filter(command)
        if run is summary:
            _add_times(command)


def _add_filter(command: argparse.ArgumentParser) -> None:
    _add_times(command)
    for name, words in (
        ("kind", "only of this kind of object"),
        ("object", "only of the object of this name"),
        ("actor", "only by this principal: its id or its name"),
        ("action", "only what was done so, such as delete"),
    ):
        command.add_argument(f"--{name}", default="", help=words)
    command.add_argument("--outcome", choices=("done", "refused", "failed"), default="")
    command.add_argument("--min-severity", choices=("info", "warning", "error"), default="")
    command.add_argument("--min-risk", choices=RISKS, type=str.upper, default=None)
    command.add_argument("--pending", action="store_true", help="only what waits for a review")


def _add_times(command: argparse.ArgumentParser) -> None:
    command.add_argument("--since", type=moment, help="from this day or time on (UTC)")
    command.add_argument("--until", type=moment, help="before this day or time (UTC)")


def events(args: argparse.Namespace) -> int:
    """Show a page of events."""
    with open_service(args, args.registry) as channel:
        request = pb2.ListAuditEventsRequest(
            parent=parent(args), page_size=min(args.limit, LARGEST_PAGE), filter=_filter(args)
        )
        found = Stub(channel).ListAuditEvents(request, timeout=CALL_S)
        return shown(args, found.audit_events, _events_table)


def show(args: argparse.Namespace) -> int:
    """Show one event."""
    with open_service(args, args.registry) as channel:
        request = pb2.GetAuditEventRequest(parent=parent(args), uid=_uid(args))
        return shown(args, [Stub(channel).GetAuditEvent(request, timeout=CALL_S)], _event_table)


def review(args: argparse.Namespace) -> int:
    """Sign one event."""
    with open_service(args, args.registry) as channel:
        request = pb2.ReviewAuditEventRequest(parent=parent(args), uid=_uid(args), note=args.note)
        return shown(args, [Stub(channel).ReviewAuditEvent(request, timeout=CALL_S)], _event_table)


def summary(args: argparse.Namespace) -> int:
    """Show the counts of days."""
    request = pb2.SummarizeAuditEventsRequest(parent=parent(args))
    _set_times(request, args)
    with open_service(args, args.registry) as channel:
        found = Stub(channel).SummarizeAuditEvents(request, timeout=CALL_S)
        return shown(args, found.counts, _counts_table)


def export(args: argparse.Namespace) -> int:
    """Write every event to standard output."""
    with open_service(args, args.registry) as channel:
        request = pb2.ExportAuditEventsRequest(parent=parent(args), filter=_filter(args))
        for part in Stub(channel).ExportAuditEvents(request, timeout=LONGEST_WALK_S):
            sys.stdout.buffer.write(part.lines)
    sys.stdout.flush()
    return 0


def verify(args: argparse.Namespace) -> int:
    """Walk the chain, with a bar for people, and name what is wrong."""
    faults: list[pb2.ChainFault] = []
    last = pb2.VerifyChainResponse()
    with open_service(args, args.registry) as channel, _bar(args) as bar:
        task = bar.add_task("verifying", total=None)
        request = pb2.VerifyChainRequest(parent=parent(args))
        for last in Stub(channel).VerifyChain(request, timeout=LONGEST_WALK_S):
            faults += last.faults
            bar.update(task, completed=last.checked, total=last.total)
    if not last.HasField("verdict"):
        raise UsageError("the registry ended the walk without a verdict")
    verdict = last.verdict
    if args.output == "json":
        answer = pb2.VerifyChainResponse(checked=last.checked, faults=faults, verdict=verdict)
        shown(args, [answer], _faults_table)
    else:
        if faults:
            display(_faults_table(faults))
        begun = f" from place {verdict.from_seq}, where older events were forgotten"
        where = f"{last.checked} events{begun if verdict.from_seq else ''}"
        found = "intact" if verdict.intact else f"{verdict.faults} faults"
        sys.stdout.write(f"{where}: {found}\n")
    return 0 if verdict.intact else BROKEN


def _bar(args: argparse.Namespace) -> Progress:
    console = Console(stderr=True)
    quiet = args.output == "json" or not console.is_terminal
    return Progress(console=console, disable=quiet, transient=True)


def _filter(args: argparse.Namespace) -> pb2.AuditFilter:
    words = {name: getattr(args, name) for name in ("kind", "object", "actor", "action", "outcome")}
    asked = pb2.AuditFilter(**words, min_severity=args.min_severity, pending=args.pending)
    if args.min_risk:
        asked.min_risk = rule_pb2.Risk.Value(f"RISK_{args.min_risk}")
    _set_times(asked, args)
    return asked


def _set_times(
    message: pb2.AuditFilter | pb2.SummarizeAuditEventsRequest, args: argparse.Namespace
) -> None:
    if args.since:
        message.from_time.FromDatetime(args.since)
    if args.until:
        message.to_time.FromDatetime(args.until)


def _uid(args: argparse.Namespace) -> str:
    return str(args.event).rpartition("/")[2]


def _events_table(found: Iterable[pb2.AuditEvent]) -> Table:
    table = new_table("when", "who", "did", "risk", "came to", "event")
    # To be copied into the next command.
    table.columns[-1].no_wrap = True
    for one in found:
        reviewed = f", reviewed by {one.review.reviewer}" if one.review.reviewer else ""
        waits = ", waits for a review" if one.review_pending else ""
        table.add_row(
            at(one.create_time),
            printable(one.actor.display_name),
            printable(f"{one.action} {one.kind} {one.object}"),
            _risk(one.risk),
            printable(f"{one.error or one.outcome}{reviewed}{waits}"),
            one.name.rpartition("/")[2],
        )
    return table


def _event_table(found: Iterable[pb2.AuditEvent]) -> Table:
    (one,) = found
    table = new_table("field", "before", "after")
    actor, origin = one.actor, one.origin
    table.title = printable(f"{one.action} {one.kind} {one.object}: {one.error or one.outcome}")
    for field in one.fields:
        table.add_row(*map(printable, (field.path, field.before, field.after)))
    facts = {
        "when": f"{at(one.create_time)}, place {one.seq} in the chain",
        "who": f"{actor.display_name} ({actor.kind}) as {actor.role} by {actor.session}",
        "from": f"{actor.address} with {actor.user_agent}, request {one.request_id}",
        "called": actor.method,
        "because": actor.reason,
        "source": f"{origin.source} {origin.commit} {origin.file}:{origin.line}",
        "risk": _risk(one.risk),
        "review": f"{one.review.reviewer}: {one.review.note}" if one.review.reviewer else "",
        "waits": "for a review" if one.review_pending else "",
        "repeats": f"{one.repeats} more before it" if one.repeats else "",
    }
    table.caption = "\n".join(printable(f"{k}: {v}") for k, v in facts.items() if v)
    return table


def _counts_table(found: Iterable[pb2.AuditCount]) -> Table:
    table = new_table("day", "kind", "did", "risk", "outcome", "count")
    for one in found:
        words = (one.day, one.kind, one.action, _risk(one.risk), one.outcome, str(one.count))
        table.add_row(*map(printable, words))
    return table


def _faults_table(found: Iterable[pb2.ChainFault]) -> Table:
    table = new_table("place", "fault", "what", "event")
    for one in found:
        place = str(one.seq) if one.last_seq == one.seq else f"{one.seq}-{one.last_seq}"
        kind = pb2.ChainFault.Kind.Name(one.kind).removeprefix("KIND_").lower()
        table.add_row(place, kind, printable(one.message), one.event.rpartition("/")[2])
    return table


def _risk(risk: rule_pb2.Risk.ValueType) -> str:
    return rule_pb2.Risk.Name(risk).removeprefix("RISK_").lower()
