"""The commands `connections list|show|disconnect|link|links|unlink|begin`."""

import argparse
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.table import Table
from tenon.registry.v1 import connection_service_pb2 as pb2
from tenon.registry.v1 import connection_service_pb2_grpc

from config.asking import (
    PAGE,
    add_command,
    add_group,
    in_tenant,
    name_in_tenant,
    named,
    pages,
    span,
)
from config.cli import Subparsers, open_service
from config.credential_tables import status_word
from config.credentials import PROVIDER_S
from config.look import CALL_S, shown
from config.render import printable
from config.tables import at, facts, new_table, wanted, when
from services.chassis.ids import format_name, format_tenant

Connection = pb2.Connection


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    words = "accounts that are authorised under an integration"
    doing = add_group(subparsers, "connections", words)
    listing = in_tenant(add_command(doing, "list", connections, "a tenant's connections"))
    for name in ("integration", "venue", "user"):
        listing.add_argument(f"--{name}", default="", help=f"only of this {name}")
    in_tenant(add_command(doing, "show", show, "all that is known of one"), "connection")
    words = "end one: its credential is revoked, here and at the provider"
    ending = in_tenant(add_command(doing, "disconnect", disconnect, words), "connection")
    ending.add_argument("--why", required=True, help="kept with its credential")
    words = "make a link that an account's owner opens to connect it; says its address"
    linking = _authorising(add_command(doing, "link", link, words))
    words = "how long it holds, such as 12h; a day where absent, up to 30 days"
    linking.add_argument("--expires-in", type=span, help=words)
    in_tenant(add_command(doing, "links", links, "links that may still be used"))
    words = "take a link back: nobody connects an account by it any more"
    unlinking = in_tenant(add_command(doing, "unlink", unlink, words))
    unlinking.add_argument("link", metavar="LINK", help="its id, as `connections links` says it")
    words = "begin to authorise an account; says where its owner is to be sent, then the state"
    beginning = _authorising(add_command(doing, "begin", begin, words))
    words = "which account the provider should propose"
    beginning.add_argument("--login-hint", default="", help=words)
    words = "where the provider sends the browser, if not to the ingress"
    beginning.add_argument("--redirect-url", default="", help=words)


def _authorising(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    in_tenant(command).add_argument("integration", metavar="INTEGRATION", help="its name")
    for name, words in (
        ("connection", "its name; one that is there is connected anew; without it one is made up"),
        ("venue", "the venue it is for"),
        ("user", "the user it is for, as the tenant's own systems name them"),
        ("return-url", "where the browser goes in the end"),
    ):
        command.add_argument(f"--{name}", default="", help=words)
    words = "what is asked for; may be repeated; without it what the provider's manifest says"
    command.add_argument("--scope", action="append", default=[], help=words)
    return command


def connections(args: argparse.Namespace) -> int:
    """Show a tenant's connections."""
    request = pb2.ListConnectionsRequest(
        parent=format_tenant(args.tenant),
        page_size=PAGE,
        integration=args.integration,
        venue=args.venue,
        user=args.user,
    )
    with _connections_of(args) as stub:
        found = pages(stub.ListConnections, request, "connections")
        return shown(args, found, _connections_table)


def show(args: argparse.Namespace) -> int:
    """Show one."""
    request = pb2.GetConnectionRequest(name=name_in_tenant(args, "connections"))
    with _connections_of(args) as stub:
        return shown(args, [stub.GetConnection(request, timeout=CALL_S)], _connection_facts)


def disconnect(args: argparse.Namespace) -> int:
    """End one."""
    request = pb2.DisconnectRequest(
        name=name_in_tenant(args, "connections"), reason=args.why, request_id=str(uuid.uuid4())
    )
    with _connections_of(args) as stub:
        return shown(args, [stub.Disconnect(request, timeout=PROVIDER_S)], _connections_table)


def link(args: argparse.Namespace) -> int:
    """Make a link, and say its address: whoever has it may connect an account, once."""
    request = pb2.CreateConnectLinkRequest(**_asked(args))
    if args.expires_in is not None:
        request.ttl.FromTimedelta(args.expires_in)
    with _connections_of(args) as stub:
        made = stub.CreateConnectLink(request, timeout=CALL_S)
    if args.output == "json":
        return shown(args, [made], _connections_table)
    sys.stdout.write(f"{printable(made.url)}\n")
    sys.stdout.flush()
    until = at(made.expire_time)
    sys.stderr.write(f"whoever has this link may connect an account, once, until {until} UTC\n")
    return 0


def links(args: argparse.Namespace) -> int:
    """Show the links that may still be used."""
    request = pb2.ListConnectLinksRequest(parent=format_tenant(args.tenant), page_size=PAGE)
    with _connections_of(args) as stub:
        found = pages(stub.ListConnectLinks, request, "connect_links")
        return shown(args, found, _links_table)


def unlink(args: argparse.Namespace) -> int:
    """Take a link back."""
    request = pb2.RevokeConnectLinkRequest(name=named(args, "connectLinks", args.link))
    with _connections_of(args) as stub:
        return shown(args, [stub.RevokeConnectLink(request, timeout=CALL_S)], _links_table)


def begin(args: argparse.Namespace) -> int:
    """Begin an authorisation, and say where its owner is to be sent, then the state."""
    request = pb2.BeginOAuthRequest(
        **_asked(args), login_hint=args.login_hint, redirect_url=args.redirect_url
    )
    with _connections_of(args) as stub:
        begun = stub.BeginOAuth(request, timeout=CALL_S)
    if args.output == "json":
        return shown(args, [begun], _connections_table)
    sys.stdout.write(f"{printable(begun.authorization_url)}\n{printable(begun.state)}\n")
    sys.stdout.flush()
    until = at(begun.expire_time)
    sys.stderr.write(f"where the account's owner is to be sent, and the state; until {until} UTC\n")
    return 0


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """What is to be authorised, as both ways to begin have it."""
    return {
        "integration": format_name(args.tenant, "integrations", args.integration),
        "connection": args.connection,
        "venue": args.venue,
        "user": args.user,
        "scopes": args.scope,
        "return_url": args.return_url,
    }


@contextmanager
def _connections_of(
    args: argparse.Namespace,
) -> Iterator[connection_service_pb2_grpc.ConnectionServiceStub]:
    with open_service(args, args.registry) as channel:
        yield connection_service_pb2_grpc.ConnectionServiceStub(channel)


def _connections_table(found: Iterable[Connection]) -> Table:
    table = new_table(
        "connection", "integration", "provider", "account", "venue", "user", "status", "changed"
    )
    for one in found:
        spec = one.spec
        table.add_row(
            one.name.rpartition("/")[2],
            spec.integration,
            printable(one.provider),
            printable(spec.external_account_id),
            spec.venue,
            printable(spec.user),
            status_word(one.status),
            when(one, "update_time"),
        )
    return table


def _links_table(found: Iterable[pb2.ConnectLink]) -> Table:
    table = new_table("link", "integration", "connection", "venue", "user", "made by", "until")
    for one in found:
        table.add_row(
            one.name.rpartition("/")[2],
            one.integration,
            one.connection,
            one.venue,
            printable(one.user),
            printable(one.creator),
            when(one, "expire_time"),
        )
    return table


def _connection_facts(found: Iterable[Connection]) -> Table:
    (one,) = found
    status = status_word(one.status)
    return facts(
        {
            "connection": one.name,
            "id": one.uid,
            "provider": one.provider,
            "status": f"{status}: {one.status_reason}" if one.status_reason else status,
            **wanted(one.spec),
            "made": when(one, "create_time"),
            "changed": when(one, "update_time"),
        }
    )
