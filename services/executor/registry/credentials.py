"""Credentials and keys as the executor has them: opened, for memory only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

from services.chassis.endpoint_limits import Only
from services.chassis.secret import Secret

NO_LIMIT: Final = Only()

Values = Mapping[str, Secret]
"""The parts of one version by name."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A credential's values.

    `previous` are those of older versions that go on beside them, the newest first. `only` limits
    where it may be sent.
    """

    credential_id: UUID
    type: str
    version: int
    values: Values = field(repr=False)
    previous: tuple[Values, ...] = field(default=(), repr=False)
    only: Only = NO_LIMIT


def _uncounted() -> None:
    """Nobody counts."""


@dataclass(frozen=True, slots=True)
class LeasedKey:
    """A tenant's key for the executor's own sealing; `count` is called for each message sealed."""

    data_key_id: UUID
    key: Secret
    count: Callable[[], None] = field(default=_uncounted, repr=False, compare=False)


class Secrets(Protocol):
    """Where credentials and a tenant's keys come from: the registry."""

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
        """The tenant's key for sealing what stays here, or the one that something was sealed with.

        Raises Unsealable where that one is gone for good.
        """
        ...

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The values of a credential."""
        ...

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        """See that a credential has newer tokens than those of a version."""
        ...
