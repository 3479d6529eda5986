"""The command `seal`: a secret as text that may stand in Git, since the registry alone opens it."""

import argparse
import getpass
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Final

from tenon.registry.v1 import credential_service_pb2, credential_service_pb2_grpc

from config.asking import add_command, parent
from config.cli import Subparsers, UsageError, open_service
from config.documents import SPECS
from config.loader import read_regular, shown
from config.look import CALL_S
from config.problems import Mark
from config.secretrefs import SecretRef, fetch, without_line_break
from services.chassis.constraints import NAME_LIKE
from services.chassis.ids import SLUG, SLUG_RULE
from services.chassis.rules import schema_of
from services.chassis.sealed_box import (
    LARGEST,
    NotASealingKey,
    Purpose,
    seal,
    sealing_key_of,
    sealing_key_text,
)
from services.chassis.secret import Secret

KINDS: Final = tuple(
    kind
    for kind, field in SPECS.items()
    if any(each.shape == "secret" for each in schema_of(field.message_type))
)
"""The kinds of object that have secrets."""
LARGEST_KEY: Final = 2**10
"""Bytes of a file with a public key."""


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command to a parser. A secret is never one of its words: others can read those."""
    words = "seal a secret to the registry's public key, for one part of one object alone"
    command = add_command(subparsers, "seal", sealed, words)
    command.add_argument("--tenant", default="", help="whose object; its slug")
    command.add_argument("--name", default="", help="the object's name")
    command.add_argument("--kind", choices=KINDS, default=KINDS[0], help="(%(default)s)")
    command.add_argument("--part", default="", help="which part of it, such as token")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--from-file", metavar="PATH", help="take the secret from this file")
    words = "or from this environment variable; otherwise from standard input"
    source.add_argument("--from-env", metavar="NAME", help=words)
    keyed = command.add_mutually_exclusive_group()
    words = "seal to the key in this file, and ask nobody"
    keyed.add_argument("--public-key", type=Path, metavar="FILE", help=words)
    words = "print the registry's public key, for --public-key, and seal nothing"
    keyed.add_argument("--print-key", action="store_true", help=words)


def sealed(args: argparse.Namespace) -> int:
    """Print a seal ready to be pasted into YAML, or the public key."""
    if args.print_key:
        return _said(args, "key", sealing_key_text(*_asked(args)))
    purpose = _purpose(args)
    version, public = _saved(args.public_key) if args.public_key else _asked(args)
    return _said(args, "sealed", seal(public, version, purpose, _secret(args)))


def _said(args: argparse.Namespace, form: str, text: str) -> int:
    people = f"{{sealed: {text}}}" if form == "sealed" else text
    told = json.dumps({form: text}) if args.output == "json" else people
    sys.stdout.write(f"{told}\n")
    return 0


def _purpose(args: argparse.Namespace) -> Purpose:
    """What the seal is for. A wrong word here would make a seal that never opens."""
    for option in ("tenant", "name"):
        if not SLUG.fullmatch(getattr(args, option)):
            raise UsageError(f"--{option} must be {SLUG_RULE}")
    if not NAME_LIKE.fullmatch(args.part):
        raise UsageError("--part must be the name of a secret part, such as token")
    return Purpose(args.tenant, args.kind, args.name, args.part)


def _asked(args: argparse.Namespace) -> tuple[int, bytes]:
    request = credential_service_pb2.GetSealingKeyRequest(parent=parent(args))
    with open_service(args, args.registry) as channel:
        stub = credential_service_pb2_grpc.CredentialServiceStub(channel)
        key = stub.GetSealingKey(request, timeout=CALL_S)
    return key.version, key.public_key


def _saved(path: Path) -> tuple[int, bytes]:
    data, fault = read_regular(path, LARGEST_KEY, "1 KiB")
    if fault:
        raise UsageError(f"{shown(path)}: the public key: {fault}")
    try:
        return sealing_key_of(data.decode("ascii", "replace").strip())
    except NotASealingKey as error:
        raise UsageError(f"{shown(path)}: {error.message}") from None


def _secret(args: argparse.Namespace) -> Secret:
    """The secret, from where the options say. Raises UsageError where there is none."""
    secret: Secret | None
    if args.from_file is not None:
        secret, fault = fetch(SecretRef("file", args.from_file, None, Mark("tenon")), os.environ)
    elif args.from_env is not None:
        secret, fault = fetch(SecretRef("env", args.from_env, None, Mark("tenon")), os.environ)
    else:
        secret, fault = Secret(_typed() if sys.stdin.isatty() else _piped()), ""
        fault = "" if secret.reveal() else "the secret on standard input is empty"
    if fault or secret is None:
        raise UsageError(fault)
    return secret


def _piped() -> bytes:
    return without_line_break(sys.stdin.buffer.read(LARGEST + len(b"\r\n") + 1))


def _typed() -> bytes:
    with warnings.catch_warnings():
        # Where it cannot be hidden, getpass would warn and show it.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return os.fsencode(getpass.getpass("The secret, one line; it is not shown: "))
        except getpass.GetPassWarning:
            raise UsageError("this terminal cannot hide what is typed: use --from-file") from None
        except EOFError:
            return b""
