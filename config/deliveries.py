"""The commands `deliveries list|show|retry|recover|follow|endpoints|reset`."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from tenon.executor.v1 import delivery_service_pb2 as pb2
from tenon.executor.v1 import delivery_service_pb2_grpc
from tenon.executor.v1.lane_service_pb2 import Lane

from config.asking import PAGE, add_command, add_group, in_tenant, pages, since
from config.cli import Subparsers, UsageError, limit, open_service
from config.endpoint_tables import endpoints_table
from config.look import CALL_S, add_executor_option, shown
from config.render import printable
from config.tables import facts, new_table, when
from services.chassis.ids import format_name, format_tenant

Stub = delivery_service_pb2_grpc.DeliveryServiceStub
Delivery = pb2.Delivery

STATES: Final = ("queued", "sending", "success", "failed", "retrying", "dead")
POLL_S: Final = 0.5


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    doing = add_group(subparsers, "deliveries", "events on their way to outbound endpoints")
    words = "a tenant's deliveries, the newest first"
    listing = in_tenant(add_command(doing, "list", deliveries, words))
    listing.add_argument("--endpoint", default="", help="only to the endpoint of this name")
    listing.add_argument("--state", choices=STATES, default="", help="only in this state")
    listing.add_argument("--limit", type=limit, default=20, help="at most (%(default)s)")
    for name, run, words in (
        ("show", show, "one of them with each try"),
        ("retry", retry, "deliver again what has ended"),
        ("follow", follow, "see one change to its end; exits 1 where it was not taken"),
    ):
        command = in_tenant(add_command(doing, name, run, words))
        command.add_argument("delivery", metavar="DELIVERY", help="its id, or `last`")
        add_executor_option(command)
    words = "deliver again all that an endpoint has not taken: what is dead or failed"
    recovering = in_tenant(add_command(doing, "recover", recover, words))
    recovering.add_argument("endpoint", metavar="ENDPOINT", help="its name")
    words = "what was made from this day or time on (UTC), or in this stretch of time, such as 12h"
    recovering.add_argument("--since", type=since, required=True, help=words)
    words = "outbound endpoints: how each stands, and how the last day went"
    standing = in_tenant(add_command(doing, "endpoints", endpoints, words))
    words = "close an endpoint's breaker: what waits is tried now"
    resetting = in_tenant(add_command(doing, "reset", reset, words))
    resetting.add_argument("endpoint", metavar="ENDPOINT", help="its name")
    for command in (listing, recovering, standing, resetting):
        add_executor_option(command)


def deliveries(args: argparse.Namespace) -> int:
    """Show a page of deliveries."""
    request = pb2.ListDeliveriesRequest(
        parent=format_tenant(args.tenant),
        page_size=min(args.limit, PAGE),
        endpoint=args.endpoint,
        state=Delivery.State.Value(f"STATE_{args.state.upper() or 'UNSPECIFIED'}"),
    )
    with _deliveries_of(args) as stub:
        found = stub.ListDeliveries(request, timeout=CALL_S).deliveries
        return shown(args, found, _deliveries_table)


def show(args: argparse.Namespace) -> int:
    """Show one with each try."""
    with _deliveries_of(args) as stub:
        return shown(args, [_got(stub, _name(args, stub))], _delivery_tables)


def retry(args: argparse.Namespace) -> int:
    """Deliver one again."""
    with _deliveries_of(args) as stub:
        request = pb2.RetryDeliveryRequest(name=_name(args, stub))
        return shown(args, [stub.RetryDelivery(request, timeout=CALL_S)], _deliveries_table)


def follow(args: argparse.Namespace) -> int:
    """Show one once it has ended; for people, a line for each change until then."""
    with _deliveries_of(args) as stub:
        name, said = _name(args, stub), ""
        while True:
            found = _got(stub, name)
            if args.output != "json" and _standing(found) != said:
                said = _standing(found)
                sys.stdout.write(f"{said}\n")
                sys.stdout.flush()
            if found.HasField("end_time"):
                break
            time.sleep(POLL_S)
    shown(args, [found], _delivery_tables)
    return int(found.state != Delivery.STATE_SUCCESS)


def recover(args: argparse.Namespace) -> int:
    """Deliver again what an endpoint has missed, call by call, and say how far that is."""
    request = pb2.RecoverEndpointRequest(
        endpoint=format_name(args.tenant, "webhookEndpoints", args.endpoint)
    )
    request.since.FromDatetime(args.since)
    count = 0
    with _deliveries_of(args) as stub:
        while True:
            answer = stub.RecoverEndpoint(request, timeout=CALL_S)
            count += answer.count
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                break
            sys.stderr.write(f"{count} are on their way again, and there are more\n")
            sys.stderr.flush()
    whole = pb2.RecoverEndpointResponse(count=count)
    return shown(args, [whole], lambda _: f"{count} deliveries are on their way again")


def endpoints(args: argparse.Namespace) -> int:
    """Show how every outbound endpoint stands, by name."""
    request = pb2.ListEndpointStatesRequest(parent=format_tenant(args.tenant), page_size=PAGE)
    with _deliveries_of(args) as stub:
        found = pages(stub.ListEndpointStates, request, "endpoint_states")
        return shown(args, sorted(found, key=attrgetter("name")), endpoints_table)


def reset(args: argparse.Namespace) -> int:
    """Close an endpoint's breaker."""
    name = format_name(args.tenant, "webhookEndpoints", args.endpoint)
    with _deliveries_of(args) as stub:
        lane = stub.ResetCircuit(pb2.ResetCircuitRequest(endpoint=name), timeout=CALL_S)
        return shown(args, [lane], lambda _: _closed(args.endpoint, lane))


def _closed(endpoint: str, lane: Lane) -> str:
    """That the breaker is closed, and what else holds the deliveries."""
    held = "".join(f"\n{each.code}: {each.message}" for each in lane.reasons)
    return f"the breaker of {endpoint} is closed{held}"


@contextmanager
def _deliveries_of(args: argparse.Namespace) -> Iterator[Stub]:
    with open_service(args, args.executor) as channel:
        yield Stub(channel)


def _got(stub: Stub, name: str) -> Delivery:
    return stub.GetDelivery(pb2.GetDeliveryRequest(name=name), timeout=CALL_S)


def _name(args: argparse.Namespace, stub: Stub) -> str:
    """The name of the delivery that a command is about."""
    place = format_tenant(args.tenant)
    if args.delivery != "last":
        return f"{place}/deliveries/{args.delivery.rpartition('/')[2]}"
    request = pb2.ListDeliveriesRequest(parent=place, page_size=1)
    for found in stub.ListDeliveries(request, timeout=CALL_S).deliveries:
        return found.name
    raise UsageError("there is no delivery yet")


def _deliveries_table(found: Iterable[Delivery]) -> Table:
    table = new_table("delivery", "event", "endpoint", "state", "tries", "answer", "made", "why")
    for one in found:
        table.add_row(
            one.name.rpartition("/")[2],
            printable(one.event_type),
            one.endpoint,
            _state(one),
            str(one.attempts),
            str(one.response_status or ""),
            when(one, "create_time"),
            printable(one.failure_reason),
        )
    return table


def _delivery_tables(found: Iterable[Delivery]) -> RenderableType:
    (one,) = found
    about = facts(
        {
            "delivery": one.name,
            "event": f"{one.event_type}, {one.event}",
            "endpoint": one.endpoint,
            "subscription": one.subscription or "none: a test",
            "state": _standing(one),
            "made": when(one, "create_time"),
            "ended": when(one, "end_time"),
            "sha256": one.payload_hash.hex(),
        }
    )
    table = new_table("try", "at", "took", "answer", "why", "said")
    for each in one.tries:
        table.add_row(
            str(each.number),
            each.start_time.ToDatetime().strftime("%m-%d %H:%M:%S"),
            f"{each.duration.ToMilliseconds()} ms",
            str(each.response_status or ""),
            printable(each.failure_reason),
            printable(each.response_head),
        )
    return Group(about, "", table) if one.tries else about


def _standing(one: Delivery) -> str:
    """How a delivery stands, in a line."""
    tries = f", {one.attempts} tries" if one.attempts > 1 else ""
    return f"{_state(one)}{tries}" + (
        f", {printable(one.failure_reason)}"
        if one.failure_reason and one.state != Delivery.STATE_SUCCESS
        else ""
    )


def _state(one: Delivery) -> str:
    return Delivery.State.Name(one.state).removeprefix("STATE_").lower()
