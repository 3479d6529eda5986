"""The versions of the key-encryption key that one process can open, as they are at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from services.chassis.errors import FailedPrecondition, Unavailable
from services.chassis.secret import Secret

MOST_WRAPS: Final = 2**31
"""How often one key may wrap: half of what NIST SP 800-38D, section 8.3, allows random nonces."""


class KeyUnavailable(Unavailable):
    """This process has no such version, yet or any more."""

    reason = "KEY_UNAVAILABLE"


class KeyWorn(FailedPrecondition):
    """The active version has wrapped as often as it may; `tenon keys rotate` makes another."""

    reason = "KEY_WORN"


@dataclass(frozen=True, slots=True)
class Ring:
    """Opened versions by number, and the one that wraps; `worn` says how often each has wrapped."""

    active: int
    keys: Mapping[int, Secret] = field(repr=False)
    worn: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, key: Secret) -> Self:
        """The ring of a deployment that has never rotated."""
        return cls(1, {1: key})

    def key(self, version: int) -> Secret:
        """The key of a version. Raises KeyUnavailable."""
        try:
            return self.keys[version]
        except KeyError:
            raise KeyUnavailable(
                f"this registry does not have version {version} of the key-encryption key; "
                "`tenon keys status` says which has"
            ) from None

    def wrapping(self) -> Secret:
        """The key that wraps now. Raises KeyWorn."""
        if self.worn.get(self.active, 0) >= MOST_WRAPS:
            raise KeyWorn(
                f"version {self.active} of the key-encryption key has wrapped as often as it may; "
                "`tenon keys rotate` makes another one"
            )
        return self.key(self.active)


EMPTY: Final = Ring(0, {})
"""Before any version is opened."""
