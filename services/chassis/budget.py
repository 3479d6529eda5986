"""The budget of database connections: what a service may open, against what the server has."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class Share:
    """So many processes of a role, and how many connections each opens at most."""

    role: str
    processes: int
    connections: int


def check(shares: Sequence[Share], capacity: int) -> int:
    """How many connections all may open together. Raises FailedPrecondition beyond the capacity.

    `capacity` is what the server has for logins without privileges. Others may have taken of it
    already: to leave room for them is the operators' part.
    """
    wanted = sum(share.processes * share.connections for share in shares)
    if wanted > capacity:
        terms = " + ".join(f"{s.role} {s.processes} × {s.connections}" for s in shares)
        raise FailedPrecondition(
            f"the connection budget is exceeded: {terms} = {wanted}, and the database has "
            f"{capacity} (max_connections without the reserved ones). Run fewer processes, set a "
            "smaller POOL_SIZE, or raise max_connections",
            reason="CONNECTION_BUDGET_EXCEEDED",
        )
    return wanted
