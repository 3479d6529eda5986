"""What somebody wants an API key to be, and what is wrong with it: pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Final

from services.chassis.errors import InvalidArgument, Violation
from services.chassis.redaction import redact

EVERYTHING: Final = "*"
LONGEST_NAME: Final = 100
MOST_RANGES: Final = 100
MOST_METADATA: Final = 20
LONGEST_METADATA: Final = 200


@dataclass(frozen=True, slots=True)
class Wish:
    """A key to be made; no scopes mean the least, no ranges any address, no end none."""

    display_name: str
    scopes: Sequence[str] = ()
    address_ranges: Sequence[str] = ()
    metadata: Mapping[str, str] | None = None
    expires_at: datetime | None = None

    def check(self, permissions: Collection[str], now: datetime) -> None:
        """Raises InvalidArgument that names every fault at once."""
        found = [*self._faults(permissions, now)]
        if found:
            words = "; ".join(f"{one.field}: {one.description}" for one in found)
            raise InvalidArgument(words, violations=found)

    def _faults(self, permissions: Collection[str], now: datetime) -> list[Violation]:
        found = []
        if not 0 < len(self.display_name.strip()) <= LONGEST_NAME:
            found.append(Violation("display_name", f"must have 1 to {LONGEST_NAME} characters"))
        found += [
            Violation(f"scopes[{at}]", "is no permission; ListRoles shows them, `*` means all")
            for at, scope in enumerate(self.scopes)
            if scope != EVERYTHING and scope not in permissions
        ]
        found += [
            Violation(f"address_ranges[{at}]", fault)
            for at, text in enumerate(self.address_ranges)
            if (fault := _not_a_network(text))
        ]
        if len(self.address_ranges) > MOST_RANGES:
            found.append(Violation("address_ranges", f"has more than {MOST_RANGES}"))
        if self.expires_at is not None and self.expires_at <= now:
            found.append(Violation("expire_time", "must lie ahead"))
        return found + _metadata_faults(self.metadata or {})


def _not_a_network(text: str) -> str:
    try:
        ip_network(text)
    except ValueError as error:
        # Of all that is wrong with a network only its spare bits need telling.
        bits = "has bits set behind its length" if "host bits" in str(error) else ""
        return bits or "is no network such as 10.0.0.0/8 or 2001:db8::/32"
    return ""


def _metadata_faults(metadata: Mapping[str, str]) -> list[Violation]:
    if len(metadata) > MOST_METADATA:
        return [Violation("metadata", f"has more than {MOST_METADATA} entries")]
    return [
        Violation("metadata", fault)
        for key, text in metadata.items()
        if (fault := _metadata_fault(key, text))
    ]


def _metadata_fault(key: str, text: str) -> str:
    if max(len(key), len(text)) > LONGEST_METADATA:
        return f"has more than {LONGEST_METADATA} characters somewhere"
    return "" if redact(text) == text else "holds what looks like a secret"
