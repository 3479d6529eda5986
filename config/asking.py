"""What the commands of access have in common: which thing, where, and page by page."""

import argparse
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import Message

from config.cli import Subparsers, add_registry_options
from config.look import CALL_S, guarded

Run = Callable[[argparse.Namespace], int]

PAGE: Final = 500


def add_group(
    subparsers: "Subparsers[argparse.ArgumentParser]", name: str, words: str
) -> "Subparsers[argparse.ArgumentParser]":
    """A command of commands."""
    group = subparsers.add_parser(name, help=words, description=words)
    return group.add_subparsers(metavar="COMMAND", required=True)


def add_command(
    subparsers: "Subparsers[argparse.ArgumentParser]", name: str, run: Run, words: str
) -> argparse.ArgumentParser:
    """A command that asks the registry and shows what it says."""
    command = subparsers.add_parser(name, help=words, description=words)
    command.add_argument("--output", choices=("table", "json"), default="table")
    add_registry_options(command)
    command.set_defaults(run=guarded(run))
    return command


def at_place(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a command say of which tenant; the same command."""
    words = "of this tenant, by its slug; without it the platform's"
    command.add_argument("--tenant", default="", help=words)
    return command


def parent(args: argparse.Namespace) -> str:
    """The place of a command: a tenant, or nothing for the platform."""
    return f"tenants/{args.tenant}" if args.tenant else ""


def named(args: argparse.Namespace, collection: str, uid: str) -> str:
    """The name of a thing by its id, or by its name."""
    place = f"tenants/{args.tenant}/" if args.tenant else ""
    return uid if "/" in uid else f"{place}{collection}/{uid}"


def pages(call: Callable[..., Any], request: Any, field: str) -> list[Message]:
    """All of a list, however many pages it has."""
    found: list[Message] = []
    while True:
        page = call(request, timeout=CALL_S)
        found += getattr(page, field)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found
