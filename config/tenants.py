"""The commands on tenants: list them, see how one stands, delete one and follow it to its end."""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Final
from uuid import uuid4

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from tenon.registry.v1 import tenant_service_pb2 as pb2
from tenon.registry.v1 import tenant_service_pb2_grpc

from config.cli import Subparsers, UsageError, add_registry_options, open_service
from config.look import CALL_S, guarded, shown
from config.render import printable
from config.tables import facts
from services.chassis.errors import NotFound
from services.chassis.status import from_rpc_error

GLANCE_S: Final = 0.5
PATIENCE_S: Final = 300.0

Stub = tenant_service_pb2_grpc.TenantServiceStub


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    words = "list tenants, see how one stands, or delete one for good"
    group = subparsers.add_parser("tenants", help=words, description=words)
    doing = group.add_subparsers(metavar="WHAT", required=True)
    for name, run, said in (
        ("list", tenants, "the tenants you may read, by slug"),
        ("show", show, "one tenant; of one that is deleted, what is left"),
        ("delete", delete, "delete a tenant with everything it has; it cannot be undone"),
    ):
        command = doing.add_parser(name, help=said, description=said)
        command.add_argument("--output", choices=("table", "json"), default="table")
        add_registry_options(command)
        command.set_defaults(run=guarded(run))
        if run is not tenants:
            command.add_argument("tenant", metavar="TENANT", help="its slug")
        if run is delete:
            force = "also while it is enabled: what it does now is cut off"
            command.add_argument("--force", action="store_true", help=force)
            command.add_argument("--yes", action="store_true", help="do not ask")
            command.add_argument("--no-wait", action="store_true", help="do not follow it")


def tenants(args: argparse.Namespace) -> int:
    """Show every tenant the caller may read."""
    with open_service(args, args.registry) as channel:
        stub, found, request = Stub(channel), list[pb2.Tenant](), pb2.ListTenantsRequest()
        while True:
            page = stub.ListTenants(request, timeout=CALL_S)
            found += page.tenants
            request.page_token = page.next_page_token
            if not request.page_token:
                return shown(args, found, _tenants_table)


def show(args: argparse.Namespace) -> int:
    """Show one tenant, or the tombstone of one that is gone."""
    with open_service(args, args.registry) as channel:
        stub = Stub(channel)
        try:
            found = _tenant(stub, args.tenant)
        except grpc.RpcError as error:
            if not isinstance(from_rpc_error(error), NotFound):
                raise
            return shown(args, [_tombstone(stub, args.tenant)], _tombstone_table)
        return shown(args, [found], _tenant_table)


def delete(args: argparse.Namespace) -> int:
    """Delete a tenant, and follow it until nothing but the proof is left."""
    with open_service(args, args.registry) as channel:
        stub = Stub(channel)
        found = _tenant(stub, args.tenant)
        if not args.yes:
            _ask(args.tenant)
        request = pb2.DeleteTenantRequest(
            name=found.name, force=args.force, etag=found.etag, request_id=str(uuid4())
        )
        going = stub.DeleteTenant(request, timeout=CALL_S)
        if args.no_wait:
            return shown(args, [going], _tenant_table)
        return shown(args, [_followed(stub, args)], _tombstone_table)


def _ask(slug: str) -> None:
    """Let the slug be typed. Raises UsageError where it is another, or nobody is there."""
    sys.stderr.write(
        f"This deletes tenants/{slug} with its connectors, credentials, events and executions.\n"
        f"It cannot be undone. Type {slug} to go on: "
    )
    sys.stderr.flush()
    if sys.stdin.readline().strip() != slug:
        raise UsageError("that is not its slug; nothing was deleted")


def _followed(stub: Stub, args: argparse.Namespace) -> pb2.Tombstone:
    """The tombstone once the tenant is purged; for people, a line for each stage until then."""
    deadline, said = time.monotonic() + PATIENCE_S, ""
    while True:
        stone = _tombstone(stub, args.tenant)
        stage = _stage(stone)
        if stage != said and args.output != "json":
            sys.stderr.write(f"{stage}\n")
        said = stage
        if stone.HasField("purge_time"):
            return stone
        if time.monotonic() > deadline:
            raise UsageError(
                f"it is still on its way: {stage}; `tenon tenants show {args.tenant}` tells more"
            )
        time.sleep(GLANCE_S)


def _stage(stone: pb2.Tombstone) -> str:
    if stone.HasField("purge_time"):
        return "purged"
    if stone.HasField("report_time"):
        return "the executor has nothing of it any more; the registry deletes the rest"
    return "draining: what runs may end, then the executor deletes what it has of it"


def _tenant(stub: Stub, slug: str) -> pb2.Tenant:
    return stub.GetTenant(pb2.GetTenantRequest(name=f"tenants/{slug}"), timeout=CALL_S)


def _tombstone(stub: Stub, slug: str) -> pb2.Tombstone:
    return stub.GetTombstone(pb2.GetTombstoneRequest(name=f"tombstones/{slug}"), timeout=CALL_S)


def _tenants_table(found: Iterable[pb2.Tenant]) -> Table:
    table = _table("tenant", "name", "state", "revision", "projected", "made")
    for one in found:
        table.add_row(
            one.name.partition("/")[2],
            printable(one.display_name),
            _state(one),
            str(one.revision),
            str(one.projected_revision),
            _at(one.create_time),
        )
    return table


def _tenant_table(found: Iterable[pb2.Tenant]) -> Table:
    (one,) = found
    caps = one.limits.max_running_per_provider
    rows = {
        "tenant": one.name.partition("/")[2],
        "name": one.display_name,
        "id": one.uid,
        "state": _state(one),
        "revision": f"{one.revision}, the executor works by {one.projected_revision}",
        "weight": str(one.limits.weight),
        "runs at once": _or_any(one.limits.max_running),
        "of a provider": ", ".join(f"{name} {most}" for name, most in sorted(caps.items())),
        "work an hour": _or_any(one.limits.work_per_hour),
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(one.labels.items())),
        "made": _at(one.create_time),
    }
    return facts(rows | (_gone(one.deletion) if one.HasField("deletion") else {}))


def _tombstone_table(found: Iterable[pb2.Tombstone]) -> Table:
    (one,) = found
    return facts({"tenant": one.name.partition("/")[2], "id": one.tenant_uid, **_gone(one)})


def _gone(stone: pb2.Tombstone) -> dict[str, str]:
    return {
        "deleted by": stone.actor,
        "because": stone.reason,
        "forced": "yes" if stone.forced else "no",
        "since": _at(stone.create_time),
        "stage": _stage(stone),
        "rows in the executor": _rows(stone.executor_rows),
        "rows in the registry": _rows(stone.registry_rows),
        "purged": _at(stone.purge_time) if stone.HasField("purge_time") else "",
    }


def _rows(counts: Mapping[str, int]) -> str:
    told = ", ".join(f"{table} {count}" for table, count in sorted(counts.items()))
    return f"{sum(counts.values())} ({told})" if told else ""


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _state(one: pb2.Tenant) -> str:
    return pb2.Tenant.State.Name(one.state).partition("_")[2].lower()


def _or_any(limit: int) -> str:
    return str(limit) if limit else "any number"


def _at(stamp: Timestamp) -> str:
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
