"""The commands `credentials list|show|rotate|reveal|refresh|revoke|shred`."""

import argparse
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2_grpc

from config.asking import PAGE, add_command, add_group, in_tenant, name_in_tenant, pages, span
from config.cli import Subparsers, UsageError, open_service
from config.credential_tables import (
    FINDINGS,
    credential_facts,
    credentials_table,
    revealed_table,
)
from config.look import CALL_S, shown
from config.secretvalues import add_values, read_values
from config.telling import add_out, writing
from services.chassis.ids import format_tenant

PROVIDER_S: Final = 60.0
"""Seconds for a call in which the registry may ask a provider."""


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    doing = add_group(
        subparsers, "credentials", "sealed secrets: how they stand, their change and end"
    )
    listing = in_tenant(add_command(doing, "list", credentials, "a tenant's credentials, masked"))
    listing.add_argument("--finding", choices=tuple(FINDINGS), help="only those that show it")
    for name, run, words in (
        ("show", show, "all that is known of one but its values"),
        ("rotate", rotate, "give one new values, or let Tenon make a webhook secret's"),
        ("reveal", reveal, "tell the webhook secret that Tenon made"),
        ("refresh", refresh, "ask the provider for new tokens now"),
        ("revoke", revoke, "take one back for good, here and at the provider"),
        ("shred", shred, "destroy the key of an old version of one"),
    ):
        command = in_tenant(add_command(doing, name, run, words), "credential")
        if run is rotate:
            add_values(command)
            on = "how long the old values go on, such as 12h; without it as its rotation says"
            command.add_argument("--overlap", type=span, help=on)
        if run in (rotate, reveal):
            add_out(command)
        if run is revoke:
            command.add_argument("--why", required=True, help="kept with it")
        if run is shred:
            command.add_argument("version", metavar="VERSION", type=int, help="its number")


def credentials(args: argparse.Namespace) -> int:
    """Show a tenant's credentials."""
    request = pb2.ListCredentialsRequest(
        parent=format_tenant(args.tenant),
        page_size=PAGE,
        finding=FINDINGS[args.finding] if args.finding else pb2.FINDING_UNSPECIFIED,
    )
    with _credentials_of(args) as stub:
        found = pages(stub.ListCredentials, request, "credentials")
        return shown(args, found, credentials_table)


def show(args: argparse.Namespace) -> int:
    """Show one with its versions."""
    with _credentials_of(args) as stub:
        return shown(args, [_credential(stub, args)], credential_facts)


def rotate(args: argparse.Namespace) -> int:
    """Give one new values; of what Tenon makes without any, what the other side needs is told."""
    if args.value and args.out is not None:
        raise UsageError("--out is for the secret that Tenon makes, which it does without --value")
    request = pb2.RotateCredentialRequest(
        name=name_in_tenant(args, "credentials"), request_id=str(uuid.uuid4())
    )
    values = read_values(args.value)
    for part, value in values.items():
        request.values[part].plain = value.reveal()
    if args.overlap is not None:
        request.overlap.FromTimedelta(args.overlap)
    with writing(args.out) as write, _credentials_of(args) as stub:
        made = stub.RotateCredential(request, timeout=PROVIDER_S)
        if values:
            return shown(args, [made.credential], credentials_table)
        # A private key stays with the registry: what is taken to the other side is the public one.
        write(made.secret or made.credential.public_key.encode())
        if args.out is not None:
            return shown(args, [made.credential], credentials_table)
    what = "secret" if made.secret else "public key"
    return _say(made.credential.name, made.credential.version, what)


def reveal(args: argparse.Namespace) -> int:
    """Tell the secret that Tenon made."""
    request = pb2.RevealCredentialRequest(name=name_in_tenant(args, "credentials"))
    with writing(args.out) as write, _credentials_of(args) as stub:
        found = stub.RevealCredential(request, timeout=CALL_S)
        write(found.secret)
    if args.out is not None:
        return shown(args, [pb2.RevealCredentialResponse(version=found.version)], revealed_table)
    return _say(request.name, found.version)


def refresh(args: argparse.Namespace) -> int:
    """Ask the provider for new tokens in place of the current ones."""
    with _credentials_of(args) as stub:
        now = _credential(stub, args)
        request = pb2.RefreshCredentialRequest(name=now.name, version=now.version)
        done = stub.RefreshCredential(request, timeout=PROVIDER_S)
        return shown(args, [done], credentials_table)


def revoke(args: argparse.Namespace) -> int:
    """Take one back for good."""
    request = pb2.RevokeCredentialRequest(
        name=name_in_tenant(args, "credentials"), reason=args.why, request_id=str(uuid.uuid4())
    )
    with _credentials_of(args) as stub:
        done = stub.RevokeCredential(request, timeout=PROVIDER_S)
        return shown(args, [done], credentials_table)


def shred(args: argparse.Namespace) -> int:
    """Destroy the key of an old version."""
    request = pb2.ShredCredentialVersionRequest(
        name=name_in_tenant(args, "credentials"),
        version=args.version,
        request_id=str(uuid.uuid4()),
    )
    with _credentials_of(args) as stub:
        done = stub.ShredCredentialVersion(request, timeout=CALL_S)
        return shown(args, [done], credential_facts)


def _credential(
    stub: credential_service_pb2_grpc.CredentialServiceStub, args: argparse.Namespace
) -> pb2.Credential:
    request = pb2.GetCredentialRequest(name=name_in_tenant(args, "credentials"))
    return stub.GetCredential(request, timeout=CALL_S)


def _say(name: str, version: int, what: str = "secret") -> int:
    """Say what stands on standard output, where it is not: that may be a pipe."""
    sys.stderr.write(f"{name}: this is the {what} of version {version}\n")
    return 0


@contextmanager
def _credentials_of(
    args: argparse.Namespace,
) -> Iterator[credential_service_pb2_grpc.CredentialServiceStub]:
    with open_service(args, args.registry) as channel:
        yield credential_service_pb2_grpc.CredentialServiceStub(channel)
