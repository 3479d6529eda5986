"""The commands `whoami`, `principals` and `staff`."""

import argparse
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.table import Table
from tenon.registry.v1 import (
    access_service_pb2,
    access_service_pb2_grpc,
    principal_service_pb2,
    principal_service_pb2_grpc,
    staff_service_pb2,
    staff_service_pb2_grpc,
)

from config.asking import PAGE, add_command, add_group, at_place, named, pages, parent
from config.cli import Subparsers, open_service
from config.keys import register as register_keys
from config.look import CALL_S, shown
from config.render import printable
from config.tables import at, new_table
from config.vault_keys import register as register_vault_keys

Principal = access_service_pb2.Principal


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    add_command(subparsers, "whoami", whoami, "who calls, and what they may do where")
    keys = add_group(subparsers, "keys", "API keys, and the key-encryption key and its versions")
    register_keys(keys)
    register_vault_keys(keys)
    _principals(add_group(subparsers, "principals", "services, sources and users"))
    _staff(add_group(subparsers, "staff", "who runs the platform"))


def _staff(staff: "Subparsers[argparse.ArgumentParser]") -> None:
    add_command(staff, "list", staff_list, "everybody of the staff")
    setting = add_command(
        staff, "set", staff_set, "make a user one of them, or change what they may"
    )
    setting.add_argument("principal", metavar="PRINCIPAL", help="its uid")
    setting.add_argument("role", choices=("developer", "admin", "owner"))
    more = "beside what the role allows"
    setting.add_argument("--permission", action="append", default=[], help=more)
    removing = add_command(staff, "remove", staff_remove, "make a user none of them")
    removing.add_argument("principal", metavar="PRINCIPAL", help="its uid")


def _principals(principals: "Subparsers[argparse.ArgumentParser]") -> None:
    listing = at_place(add_command(principals, "list", principals_list, "the principals"))
    listing.add_argument("--kind", default="", help="user, service or source")
    creating = at_place(add_command(principals, "create", principals_create, "make one"))
    creating.add_argument("kind", choices=("user", "service", "source"))
    creating.add_argument("name", metavar="NAME", help="what people read")
    creating.add_argument("--issuer", default="", help="who says who it is")
    creating.add_argument("--subject", default="", help="its name with the issuer")
    creating.add_argument("--email", default="", help="of a user")
    for name, run, words in (
        ("disable", principals_disable, "it may not call any more"),
        ("enable", principals_enable, "it may call again"),
    ):
        command = at_place(add_command(principals, name, run, words))
        command.add_argument("principal", metavar="PRINCIPAL", help="its uid")


def whoami(args: argparse.Namespace) -> int:
    """Show the caller."""
    with open_service(args, args.registry) as channel:
        stub = access_service_pb2_grpc.AccessServiceStub(channel)
        found = stub.WhoAmI(access_service_pb2.WhoAmIRequest(), timeout=CALL_S)
        return shown(args, [found], _whoami_table)


def principals_list(args: argparse.Namespace) -> int:
    """Show the principals of a tenant, or of the platform."""
    request = principal_service_pb2.ListPrincipalsRequest(
        parent=parent(args), kind=args.kind, page_size=PAGE
    )
    with _principals_of(args) as stub:
        found = pages(stub.ListPrincipals, request, "principals")
        return shown(args, found, _principals_table)


def principals_create(args: argparse.Namespace) -> int:
    """Make one."""
    request = principal_service_pb2.CreatePrincipalRequest(
        parent=parent(args),
        kind=args.kind,
        issuer=args.issuer,
        subject=args.subject,
        display_name=args.name,
        email=args.email,
        request_id=str(uuid.uuid4()),
    )
    with _principals_of(args) as stub:
        return shown(args, [stub.CreatePrincipal(request, timeout=CALL_S)], _principals_table)


def principals_disable(args: argparse.Namespace) -> int:
    """Say that one may not call."""
    request = principal_service_pb2.DisablePrincipalRequest(
        name=named(args, "principals", args.principal), request_id=str(uuid.uuid4())
    )
    with _principals_of(args) as stub:
        return shown(args, [stub.DisablePrincipal(request, timeout=CALL_S)], _principals_table)


def principals_enable(args: argparse.Namespace) -> int:
    """Say that one may call again."""
    request = principal_service_pb2.EnablePrincipalRequest(
        name=named(args, "principals", args.principal), request_id=str(uuid.uuid4())
    )
    with _principals_of(args) as stub:
        return shown(args, [stub.EnablePrincipal(request, timeout=CALL_S)], _principals_table)


def staff_list(args: argparse.Namespace) -> int:
    """Show the staff."""
    with open_service(args, args.registry) as channel:
        stub = staff_service_pb2_grpc.StaffServiceStub(channel)
        request = staff_service_pb2.ListStaffRequest(page_size=PAGE)
        return shown(args, pages(stub.ListStaff, request, "staff"), _staff_table)


def staff_set(args: argparse.Namespace) -> int:
    """Make a user one of the staff."""
    request = staff_service_pb2.SetStaffRequest(
        principal=f"principals/{args.principal}",
        role=args.role,
        permissions=args.permission,
        request_id=str(uuid.uuid4()),
    )
    with open_service(args, args.registry) as channel:
        stub = staff_service_pb2_grpc.StaffServiceStub(channel)
        return shown(args, [stub.SetStaff(request, timeout=CALL_S)], _staff_table)


def staff_remove(args: argparse.Namespace) -> int:
    """Make a user none of the staff."""
    request = staff_service_pb2.RemoveStaffRequest(
        principal=f"principals/{args.principal}", request_id=str(uuid.uuid4())
    )
    with open_service(args, args.registry) as channel:
        staff_service_pb2_grpc.StaffServiceStub(channel).RemoveStaff(request, timeout=CALL_S)
    return 0


@contextmanager
def _principals_of(
    args: argparse.Namespace,
) -> Iterator[principal_service_pb2_grpc.PrincipalServiceStub]:
    with open_service(args, args.registry) as channel:
        yield principal_service_pb2_grpc.PrincipalServiceStub(channel)


def _whoami_table(found: Iterable[access_service_pb2.WhoAmIResponse]) -> Table:
    (one,) = found
    table = new_table("where", "role", "needs a reason", "stands", "there since")
    staff = f", {one.staff_role} of the staff" if one.staff_role else ""
    who = f"{one.principal.display_name} ({one.principal.kind} {one.principal.uid}{staff})"
    until = f", until {at(one.expire_time)}" if one.HasField("expire_time") else ""
    table.title = printable(f"{who}, by {one.session}{until}")
    for grant in one.grants:
        table.add_row(
            printable(grant.tenant) or "every tenant",
            printable(grant.role),
            "yes" if grant.needs_reason else "",
            grant.state,
            at(grant.switch_time) if grant.HasField("switch_time") else "",
        )
    return table


def _principals_table(found: Iterable[Principal]) -> Table:
    table = new_table("principal", "kind", "name", "issuer", "subject", "may call")
    for one in found:
        own = one.subject == one.uid
        table.add_row(
            one.uid,
            one.kind,
            printable(one.display_name),
            printable(one.issuer),
            "" if own else printable(one.subject),
            "no" if one.HasField("disable_time") else "yes",
        )
    return table


def _staff_table(found: Iterable[staff_service_pb2.StaffMember]) -> Table:
    table = new_table("principal", "name", "role", "also may", "by", "since")
    for one in found:
        table.add_row(
            one.principal.rpartition("/")[2],
            printable(one.display_name),
            one.role,
            ", ".join(one.permissions),
            printable(one.created_by),
            at(one.create_time),
        )
    return table
