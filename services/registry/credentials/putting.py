"""Makes and changes one credential by the one write path, for callers who bring no YAML."""

from services.chassis.errors import FailedPrecondition
from services.registry.credentials.changing import Named
from services.registry.wanted.apply import Applied, Caller, Config
from services.registry.wanted.drafts import Submission


class WaitsForApproval(FailedPrecondition):
    """Nothing was changed yet: a review policy lets the change wait, and it does."""

    reason = "WAITS_FOR_APPROVAL"


class Putting:
    """The use case."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def put(self, named: Named, submission: Submission, caller: Caller) -> None:
        """Apply it. Raises WaitsForApproval where it waits, with the pending revision's name."""
        pending = await self._config.apply(submission, named.tenant_id, caller, _pending)
        if pending:
            name = f"tenants/{named.tenant}/pendingRevisions/{pending.decode()}"
            raise WaitsForApproval(
                f"the change waits for approval as {name}", metadata={"pending_revision": name}
            )


def _pending(applied: Applied) -> bytes:
    return b"" if applied.pending is None else str(applied.pending.pending_id).encode()
