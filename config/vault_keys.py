"""The commands `keys status|rewrap|disable|enable|destroy`, and `keys rotate` without an API key:
the key-encryption key, its versions, and what each of them wraps."""

import argparse
import sys
import uuid
from collections.abc import Iterable
from typing import Final

from rich.console import Group
from rich.table import Table
from tenon.registry.v1 import vault_service_pb2 as pb2
from tenon.registry.v1 import vault_service_pb2_grpc

from config.asking import add_command
from config.cli import Subparsers, UsageError, open_service
from config.look import CALL_S, shown
from config.render import printable
from config.rewrapping import RewrapProgress, follow
from config.tables import new_table, when
from services.chassis.ids import format_tenant

Stub = vault_service_pb2_grpc.VaultServiceStub
KeyVersion = pb2.KeyVersion

MUST_ROTATE: Final = 2**31
"""Wraps by one version. Source: vault_service.proto."""
SHOULD_ROTATE: Final = 2**30

LOST: Final = (
    "this gives version {version} up for good: what only it opens can never be opened again, "
    "in backups too that were made before all was wrapped anew; say --yes if you mean it"
)
BY_HAND: Final = (
    "the line of version {version} still stands in the key file of each registry: "
    "now delete it there by hand, and from what copies there are\n"
)


def register(keys: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser; `begin_version` is `keys rotate` without a KEY."""
    words = "the versions of the key-encryption key, and which registries have them"
    add_command(keys, "status", status, words)
    words = "follow how all is wrapped by the newest keys; may be stopped and begun again"
    rewrapping = add_command(keys, "rewrap", rewrap, words)
    words = "of this tenant, by its slug; without it of the deployment"
    rewrapping.add_argument("--tenant", default="", help=words)
    words = "first give the tenant a new data key"
    rewrapping.add_argument("--replace", action="store_true", help=words)
    for name, run, words in (
        ("disable", disable, "let a version open nothing; refused while anything needs it"),
        ("enable", enable, "let a disabled version be used again"),
        ("destroy", destroy, "give a disabled version up for good"),
    ):
        command = add_command(keys, name, run, words)
        command.add_argument("version", metavar="VERSION", type=int, help="its number")
        if run is destroy:
            lost = "say that what only it opens may be lost"
            command.add_argument("--yes", action="store_true", help=lost)


def status(args: argparse.Namespace) -> int:
    """Show the versions and who has them; warn before one has wrapped too often."""
    with open_service(args, args.registry) as channel:
        found = Stub(channel).ListKeyVersions(pb2.ListKeyVersionsRequest(), timeout=CALL_S)
    shown(args, [found], _status_tables)
    for one in found.versions:
        if one.state == KeyVersion.STATE_ACTIVE and one.wrapped_in_all > SHOULD_ROTATE:
            sys.stderr.write(
                f"version {one.version} has wrapped {one.wrapped_in_all} times, of at most "
                f"{MUST_ROTATE}: `tenon keys rotate` begins the next one\n"
            )
    return 0


def begin_version(args: argparse.Namespace) -> int:
    """Begin a new version of the key-encryption key, and follow until all is wrapped by it."""
    request = pb2.CreateKeyVersionRequest(request_id=str(uuid.uuid4()))
    with open_service(args, args.registry) as channel:
        stub = Stub(channel)
        made = stub.CreateKeyVersion(request, timeout=CALL_S)
        sys.stderr.write(f"version {made.version} of the key-encryption key has begun\n")
        if args.no_wait:
            sys.stderr.write("`tenon keys rewrap` follows how all is wrapped by it\n")
        else:
            follow(channel, "")
            made = _version(stub, made)
        return shown(args, [made], _versions_table)


def rewrap(args: argparse.Namespace) -> int:
    """Follow until all is wrapped by the newest keys; with `--replace` a tenant gets a new one."""
    if args.replace and not args.tenant:
        raise UsageError("--replace gives one tenant a new data key: say whose with --tenant")
    name = format_tenant(args.tenant) if args.tenant else ""
    with open_service(args, args.registry) as channel:
        if args.replace:
            request = pb2.ReplaceTenantKeyRequest(name=name, request_id=str(uuid.uuid4()))
            made = Stub(channel).ReplaceTenantKey(request, timeout=CALL_S)
            sys.stderr.write(f"{name} has a new data key, {printable(made.uid)}\n")
        return shown(args, [follow(channel, args.tenant)], _done)


def disable(args: argparse.Namespace) -> int:
    """Let a version open nothing."""
    request = pb2.DisableKeyVersionRequest(version=args.version, request_id=str(uuid.uuid4()))
    with open_service(args, args.registry) as channel:
        changed = Stub(channel).DisableKeyVersion(request, timeout=CALL_S)
        return shown(args, [changed], _versions_table)


def enable(args: argparse.Namespace) -> int:
    """Let a disabled version be used again."""
    request = pb2.EnableKeyVersionRequest(version=args.version, request_id=str(uuid.uuid4()))
    with open_service(args, args.registry) as channel:
        changed = Stub(channel).EnableKeyVersion(request, timeout=CALL_S)
        return shown(args, [changed], _versions_table)


def destroy(args: argparse.Namespace) -> int:
    """Give a disabled version up for good, and say what is left to do by hand."""
    if not args.yes:
        raise UsageError(LOST.format(version=args.version))
    request = pb2.DestroyKeyVersionRequest(version=args.version, request_id=str(uuid.uuid4()))
    with open_service(args, args.registry) as channel:
        changed = Stub(channel).DestroyKeyVersion(request, timeout=CALL_S)
    if changed.provider == "file":
        sys.stderr.write(BY_HAND.format(version=args.version))
    return shown(args, [changed], _versions_table)


def _version(stub: Stub, made: KeyVersion) -> KeyVersion:
    """How a version stands now."""
    found = stub.ListKeyVersions(pb2.ListKeyVersionsRequest(), timeout=CALL_S).versions
    return next((each for each in found if each.version == made.version), made)


def _status_tables(found: Iterable[pb2.ListKeyVersionsResponse]) -> Group:
    (one,) = found
    return Group(_versions_table(one.versions), "", _holders_table(one.holders))


def _versions_table(found: Iterable[KeyVersion]) -> Table:
    table = new_table(
        "version", "state", "provider", "reference", "wraps", "wrapped in all", "made", "since"
    )
    for one in found:
        table.add_row(
            str(one.version),
            KeyVersion.State.Name(one.state).removeprefix("STATE_").lower().replace("_", "-"),
            printable(one.provider),
            printable(one.reference),
            str(one.wraps),
            str(one.wrapped_in_all),
            when(one, "create_time"),
            when(one, "update_time"),
        )
    return table


def _holders_table(found: Iterable[pb2.KeyHolder]) -> Table:
    table = new_table("host", "has versions", "seen", "registry")
    for one in found:
        versions = ", ".join(map(str, sorted(one.versions, reverse=True)))
        table.add_row(printable(one.host), versions, when(one, "seen_time"), printable(one.uid))
    return table


def _done(found: Iterable[RewrapProgress]) -> str:
    (one,) = found
    by = f" by version {one.version}" if one.version else ""
    return f"all is wrapped{by}, {one.done} anew"
