"""Where key-encryption keys come from: what each provider can do, and how it fails."""

from dataclasses import dataclass
from typing import Protocol

from services.chassis.errors import FailedPrecondition, Unavailable
from services.chassis.secret import Secret


class KeyMissing(FailedPrecondition):
    """This process has no material of that version; the message says what to do about it."""

    reason = "KEY_MISSING"


class KeyProviderDown(Unavailable):
    """The provider does not answer; nothing is known about the key."""

    reason = "KEY_PROVIDER_DOWN"


@dataclass(frozen=True, slots=True)
class Material:
    """A version of the key-encryption key as its provider keeps it.

    `key` is 32 bytes. `reference` says which of the provider's keys it is of (a KMS key's ARN), for
    people too; `wrapped` is what the provider needs to open it again. The database keeps both.
    """

    key: Secret
    reference: str = ""
    wrapped: bytes = b""


class KeyProvider(Protocol):
    """Makes and opens versions of the key-encryption key; a version is 1 or more.

    `name` is what `key_versions.provider` says: "file", "environment" or "aws_kms".
    """

    name: str

    async def make(self, version: int) -> Material:
        """Material for a new version. Raises KeyMissing, KeyProviderDown."""
        ...

    async def open(self, version: int, reference: str, wrapped: bytes) -> Secret:
        """The key of a version that was made before. Raises KeyMissing, KeyProviderDown."""
        ...
