"""Keyrings in text form: a line `VERSION:64 hexadecimal digits` for each version.

One bare line of 64 hexadecimal digits is version 1. Blank lines and lines that begin with `#` say
nothing. No fault ever shows what stands in a line, only its number.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.chassis.settings import SettingsError

LINE: Final = "<64 hexadecimal digits>"
"""What stands in a line after its version, as sentences for people say it."""
HIGHEST_VERSION: Final = 2**31 - 1
_LINE: Final = re.compile(r"(?:([0-9]{1,10})[ \t]*:[ \t]*)?([0-9A-Fa-f]{64})")


class KeyringError(SettingsError):
    """A keyring that cannot be read; one line for each fault, with its line number alone."""


def parse(text: str) -> Mapping[int, Secret]:
    """The keys in a keyring, by version; none in an empty one. Raises KeyringError."""
    found: dict[int, Secret] = {}
    faults: list[str] = []
    lines = list(_telling(text))
    for number, line in lines:
        try:
            version, key = _entry(line, alone=len(lines) == 1)
            if version in found:
                raise ValueError("has the version of a line before it")
            found[version] = key
        except ValueError as fault:
            faults.append(f"line {number} {fault}")
    if faults:
        raise KeyringError("\n".join(faults))
    return found


def extended(text: str, version: int, key: Secret) -> str:
    """The keyring with a line more; what stood there stays, a bare line gets its version 1."""
    lines = [_numbered(line) for line in text.splitlines()]
    return "\n".join([*lines, f"{version}:{key.reveal().hex()}", ""])


def _telling(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers from 1."""
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def _entry(line: str, *, alone: bool) -> tuple[int, Secret]:
    matched = _LINE.fullmatch(line)
    if matched is None:
        raise ValueError("must be a version, a colon and 64 hexadecimal digits")
    if matched[1] is None and not alone:
        raise ValueError("must begin with a version and a colon, since there are other lines")
    version = int(matched[1] or 1)
    if not 1 <= version <= HIGHEST_VERSION:
        raise ValueError(f"must have a version from 1 to {HIGHEST_VERSION}")
    return version, remember(Secret(bytes.fromhex(matched[2])))


def _numbered(line: str) -> str:
    matched = _LINE.fullmatch(line.strip())
    return f"1:{matched[2]}" if matched and matched[1] is None else line
