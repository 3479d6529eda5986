"""Places for streams that stay open: so many in all, and so many of one tenant."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from services.chassis.errors import ResourceExhausted


class Places:
    """Those of one kind of stream: `who` takes them, `reason` says that all are taken."""

    def __init__(self, who: str, reason: str) -> None:
        self._who = who
        self._reason = reason
        self._open: Counter[UUID] = Counter()

    @contextmanager
    def taken(self, tenant_id: UUID, most: int, most_of_tenant: int) -> Iterator[None]:
        """A place of a tenant, for as long as the block lasts. Raises ResourceExhausted."""
        for limit, count in (
            (most, self._open.total()),
            (most_of_tenant, self._open[tenant_id]),
        ):
            if count >= limit:
                raise ResourceExhausted(
                    f"{limit} {self._who} are here already", reason=self._reason
                )
        self._open[tenant_id] += 1
        try:
            yield
        finally:
            self._open[tenant_id] -= 1
            self._open += Counter()
