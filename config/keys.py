"""The commands `keys list|create|rotate|revoke|usage`."""

import argparse
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.table import Table
from tenon.registry.v1 import key_service_pb2, key_service_pb2_grpc

from config.asking import PAGE, add_command, at_place, named, pages, parent, span
from config.cli import Subparsers, UsageError, open_service
from config.look import CALL_S, shown
from config.render import printable
from config.tables import at, lasting, new_table, when
from config.telling import add_out, writing
from config.vault_keys import begin_version

Key = key_service_pb2.Key

OF_API_KEYS: Final = ("tenant", "overlap", "expires_in", "out")
OF_VERSIONS: Final = ("no_wait",)
"""Options of `keys rotate`, by what is rotated."""


def register(keys: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    listing = at_place(add_command(keys, "list", keys_list, "the keys, masked"))
    listing.add_argument("--principal", default="", help="only of this one; its uid")
    creating = at_place(
        add_command(keys, "create", keys_create, "make a key; its text is told once")
    )
    creating.add_argument("principal", metavar="PRINCIPAL", help="whose; its uid")
    creating.add_argument("name", metavar="NAME", help="what it is for")
    words = "a permission, or `*`; none means the least"
    creating.add_argument("--scope", action="append", default=[], help=words)
    words = "a network it may be used from, such as 10.0.0.0/8"
    creating.add_argument("--range", action="append", default=[], help=words)
    _lasting(creating)
    words = "make an API key's successor; without KEY begin a version of the key-encryption key"
    rotating = at_place(add_command(keys, "rotate", keys_rotate, words))
    words = "an API key's id; without it all that is sealed is wrapped anew by a new version"
    rotating.add_argument("key", metavar="KEY", nargs="?", help=words)
    words = "how long the old one holds on, such as 12h (1d)"
    rotating.add_argument("--overlap", type=span, help=words)
    _lasting(rotating)
    words = "without KEY: do not follow how all is wrapped anew"
    rotating.add_argument("--no-wait", action="store_true", help=words)
    revoking = at_place(add_command(keys, "revoke", keys_revoke, "take a key back"))
    revoking.add_argument("key", metavar="KEY", help="its id")
    revoking.add_argument("--why", default="", help="kept with it")
    using = at_place(add_command(keys, "usage", keys_usage, "how a key was used of late"))
    using.add_argument("key", metavar="KEY", help="its id")


def keys_list(args: argparse.Namespace) -> int:
    """Show the keys of a tenant, or of the platform."""
    request = key_service_pb2.ListKeysRequest(parent=parent(args), page_size=PAGE)
    if args.principal:
        request.principal = named(args, "principals", args.principal)
    with _keys_of(args) as stub:
        return shown(args, pages(stub.ListKeys, request, "keys"), _keys_table)


def keys_create(args: argparse.Namespace) -> int:
    """Make a key, and say its text once."""
    request = key_service_pb2.CreateKeyRequest(
        parent=parent(args),
        principal=named(args, "principals", args.principal),
        display_name=args.name,
        scopes=args.scope,
        address_ranges=args.range,
        request_id=str(uuid.uuid4()),
    )
    _end(request, args)
    with writing(args.out) as write, _keys_of(args) as stub:
        made = stub.CreateKey(request, timeout=CALL_S)
        write(made.text.encode())
        return _told(args, made.key)


def keys_rotate(args: argparse.Namespace) -> int:
    """Make a key's successor, and say its text once; or begin a version of the other kind."""
    if args.key is None:
        _refuse(args, OF_API_KEYS, "only with a KEY; without it the key-encryption key is rotated")
        return begin_version(args)
    _refuse(args, OF_VERSIONS, "only without a KEY: an API key's successor is there at once")
    request = key_service_pb2.RotateKeyRequest(
        name=named(args, "keys", args.key), request_id=str(uuid.uuid4())
    )
    if args.overlap is not None:
        request.overlap.FromTimedelta(args.overlap)
    _end(request, args)
    with writing(args.out) as write, _keys_of(args) as stub:
        made = stub.RotateKey(request, timeout=CALL_S)
        write(made.text.encode())
        return _told(args, made.key)


def keys_revoke(args: argparse.Namespace) -> int:
    """Take a key back."""
    request = key_service_pb2.RevokeKeyRequest(
        name=named(args, "keys", args.key), reason=args.why, request_id=str(uuid.uuid4())
    )
    with _keys_of(args) as stub:
        return shown(args, [stub.RevokeKey(request, timeout=CALL_S)], _keys_table)


def keys_usage(args: argparse.Namespace) -> int:
    """Show how a key was used."""
    request = key_service_pb2.GetKeyUsageRequest(name=named(args, "keys", args.key))
    with _keys_of(args) as stub:
        return shown(args, stub.GetKeyUsage(request, timeout=CALL_S).windows, _usage_table)


def _lasting(command: argparse.ArgumentParser) -> None:
    command.add_argument("--expires-in", type=span, help="such as 90d; without it: never")
    add_out(command)


def _refuse(args: argparse.Namespace, options: Iterable[str], why: str) -> None:
    """Raise UsageError where any of these options was given."""
    given = [f"--{name.replace('_', '-')}" for name in options if _is_given(args, name)]
    if given:
        raise UsageError(f"{', '.join(given)}: {why}")


def _is_given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) not in (None, "", False)


def _end(request: Any, args: argparse.Namespace) -> None:
    if args.expires_in is not None:
        request.expire_time.GetCurrentTime()
        request.expire_time.FromDatetime(request.expire_time.ToDatetime() + args.expires_in)


def _told(args: argparse.Namespace, key: Key) -> int:
    """Show a new key where the text is not: standard output may be a pipe to where it goes."""
    if args.out is not None:
        return shown(args, [key], _keys_table)
    sys.stderr.write(f"{key.name}: this is its text; it is never told again\n")
    return 0


@contextmanager
def _keys_of(args: argparse.Namespace) -> Iterator[key_service_pb2_grpc.KeyServiceStub]:
    with open_service(args, args.registry) as channel:
        yield key_service_pb2_grpc.KeyServiceStub(channel)


def _keys_table(found: Iterable[Key]) -> Table:
    table = new_table("key", "for", "of", "state", "ends", "last used", "scopes", "from")
    for one in found:
        table.add_row(
            one.name.rpartition("/")[2],
            printable(one.display_name),
            one.principal.rpartition("/")[2],
            Key.State.Name(one.state).removeprefix("STATE_").lower(),
            at(one.expire_time) if one.HasField("expire_time") else "never",
            when(one, "last_use_time"),
            printable(", ".join(one.scopes)) or "the least",
            ", ".join(one.address_ranges) or "anywhere",
        )
    return table


def _usage_table(found: Iterable[key_service_pb2.UsageWindow]) -> Table:
    table = new_table("in the last", "calls", "most called", "most from")
    for one in found:
        table.add_row(
            lasting(one.period),
            str(one.count),
            _most(one.by_method),
            _most(one.by_address),
        )
    return table


def _most(counts: Iterable[key_service_pb2.UsageCount]) -> str:
    first = list(counts)[:3]
    return printable("\n".join(f"{each.name.rpartition('/')[2]} {each.count}" for each in first))
