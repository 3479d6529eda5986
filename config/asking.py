"""What commands that ask the registry have in common: which thing, where, and page by page."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.message import Message

from config.cli import Subparsers, add_registry_options
from config.look import CALL_S, guarded
from services.chassis.ids import format_name

Run = Callable[[argparse.Namespace], int]

PAGE: Final = 500
UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
MOST_DIGITS: Final = 6


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


def in_tenant(command: argparse.ArgumentParser, what: str = "") -> argparse.ArgumentParser:
    """Let a command say which tenant, and which thing of it where `what` names one; the same."""
    command.add_argument("tenant", metavar="TENANT", help="its slug")
    if what:
        command.add_argument("name", metavar="NAME", help=f"the {what}'s name")
    return command


def name_in_tenant(args: argparse.Namespace, collection: str) -> str:
    """The whole name of what `in_tenant` let the command say. Raises BadName."""
    return format_name(args.tenant, collection, args.name)


def span(text: str) -> timedelta:
    """A stretch of time such as 30m, 12h or 90d."""
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or len(number) > MOST_DIGITS or unit not in UNITS:
        raise argparse.ArgumentTypeError("must be a number with m, h or d, such as 90d")
    return timedelta(**{UNITS[unit]: int(number)})


def moment(text: str) -> datetime:
    """A day or a time; in UTC where it does not say its zone."""
    try:
        said = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("write it as 2026-01-31 or 2026-01-31T12:00") from None
    try:
        return said.replace(tzinfo=said.tzinfo or UTC).astimezone(UTC)
    except OverflowError:
        raise argparse.ArgumentTypeError("must lie in the years 1 to 9999") from None


def since(text: str) -> datetime:
    """A day, a time, or how long ago."""
    try:
        return datetime.now(UTC) - span(text) if text[-1:] in UNITS else moment(text)
    except OverflowError:
        raise argparse.ArgumentTypeError("must not lie before the year 1") from None


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
