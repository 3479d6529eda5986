"""`tenon bootstrap`: the first owner, once, and the identities of services."""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from services.chassis.errors import FailedPrecondition, InvalidArgument

STATE: Final = Path(".tenon")
WORDS: Final = "make the first owner once, or tell who a service is"


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to a parser."""
    command = subparsers.add_parser(
        "bootstrap",
        help=WORDS,
        description=f"{WORDS}; by the registry's own settings (TENON_REGISTRY_*, or --state)",
    )
    state = os.environ.get("TENON_STATE", str(STATE))
    command.add_argument("--state", type=Path, default=Path(state), help="(%(default)s)")
    command.add_argument(
        "--service",
        metavar="NAME",
        default="",
        help="this service instead of the owner; `executor` also gets its role",
    )
    command.add_argument("--issuer", default="", help="who says who it is, such as `mtls`")
    command.add_argument("--subject", default="", help="its name with the issuer")
    command.add_argument(
        "--key-file", type=Path, help="where its key is written, where it has no issuer"
    )
    command.set_defaults(run=bootstrap)


def bootstrap(given: argparse.Namespace) -> int:
    """Make whom the arguments name; say so in a line each."""
    from services.chassis.settings import SettingsError

    _check(given)
    try:
        asyncio.run(_introduce(given))
    except SettingsError as error:
        raise FailedPrecondition(
            f"{error}\n{given.state} holds no deployment; `tenon up` makes one"
        ) from None
    return 0


def _check(given: argparse.Namespace) -> None:
    if bool(given.issuer) != bool(given.subject):
        raise InvalidArgument("--issuer and --subject belong together")
    if bool(given.issuer) == bool(given.key_file):
        raise InvalidArgument(
            "say who it is with --issuer and --subject, or where its key goes with --key-file"
        )
    if given.key_file is not None and given.key_file.exists():
        raise InvalidArgument(f"{given.key_file} exists; a key replaces no file")


async def _introduce(given: argparse.Namespace) -> None:
    # Other commands need nothing of this.
    from services.deployment import Deployment, bootstrapping, keeping
    from services.registry.access.bootstrap import Identity

    settings = Deployment(given.state.resolve()).environment("registry")
    settings = {name: path for name, path in settings.items() if os.access(path, os.R_OK)}
    identity = Identity(given.issuer, given.subject)
    keep = keeping(given.key_file or Path(os.devnull))
    async with bootstrapping(settings) as (_, bootstrap):
        if given.service:
            await bootstrap.service(given.service, identity, keep)
        else:
            await bootstrap.owner(identity, keep)
    who = f"service {given.service}" if given.service else "the first owner"
    by = f"{given.subject} of {given.issuer}" if given.issuer else f"the key in {given.key_file}"
    sys.stdout.write(f"{who} is known by {by}\n")
