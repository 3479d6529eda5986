"""Secrets that a command is given: by where they stand, never as words of the command line, which
every process of the machine can read."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final, Literal

from config.cli import UsageError
from config.problems import Mark
from config.secretrefs import SecretRef, fetch
from services.chassis.constraints import NAME_LIKE
from services.chassis.redaction import remember
from services.chassis.sealed_box import LARGEST
from services.chassis.secret import Secret

FORMS: Final = "PART=env:NAME, PART=file:PATH, or PART=- for standard input"
STDIN: Final = "-"
_FORMS: Final[dict[str, Literal["env", "file"]]] = {"env": "env", "file": "file"}

Given = tuple[str, SecretRef | None]
"""A part's name, and where its value stands; None is standard input."""


def add_values(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a command be given the parts of a credential; the same command."""
    words = f"a part's new value: {FORMS}; may be repeated"
    command.add_argument(
        "--value", type=_given, action="append", default=[], metavar="PART=WHERE", help=words
    )
    return command


def read_values(given: Sequence[Given]) -> dict[str, Secret]:
    """The values by part, which no message can repeat. Raises UsageError for what is not there."""
    parts = [part for part, _ in given]
    if len(set(parts)) < len(parts):
        raise UsageError("--value: each part may be given once")
    if sum(ref is None for _, ref in given) > 1:
        raise UsageError("--value: standard input holds the value of one part")
    return {part: remember(_value(part, ref)) for part, ref in given}


def _given(text: str) -> Given:
    """Read `PART=WHERE`; what is wrong is not repeated, since it may be a secret."""
    part, _, where = text.partition("=")
    form, _, at = where.partition(":")
    if NAME_LIKE.fullmatch(part):
        if where == STDIN:
            return part, None
        if form in _FORMS and at:
            return part, SecretRef(_FORMS[form], at, None, Mark(f"--value {part}"))
    raise argparse.ArgumentTypeError(f"must be {FORMS}; a value itself is refused")


def _value(part: str, ref: SecretRef | None) -> Secret:
    value, fault = _from_stdin() if ref is None else fetch(ref, os.environ)
    if value is None:
        raise UsageError(f"--value {part}: {fault}")
    return value


def _from_stdin() -> tuple[Secret | None, str]:
    """The secret or what is wrong, by the rules of a file: LARGEST bytes, a last line break cut."""
    if sys.stdin.isatty():
        return None, "a terminal would show it: let a pipe or a file be standard input"
    data = sys.stdin.buffer.read(LARGEST + 1)
    if len(data) > LARGEST:
        return None, "standard input is larger than 64 KiB"
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    return (Secret(data), "") if data else (None, "standard input is empty")
