"""Which failpoints a run of the tests goes to."""

import os
from collections.abc import Sequence
from typing import Final, TypeVar

import services.executor.main
import services.registry.main  # noqa: F401 - both declare their points when imported
from services.chassis import failpoints

Case = TypeVar("Case")
ALL: Final = os.environ.get("TENON_FAULTS") == "all"


def points(room: str) -> list[str]:
    """Every declared point of a room, such as `apply`, in the order of the code."""
    found = [name for name in failpoints.declared() if name.startswith(f"{room}.")]
    assert found, f"nothing declares a failpoint of {room}"
    return found


def thinned(cases: Sequence[Case], keep: int = 3) -> list[Case]:
    """All with TENON_FAULTS=all, else `keep` spread from the first to the last."""
    if ALL or len(cases) <= keep:
        return list(cases)
    apart = (len(cases) - 1) / max(1, keep - 1)
    return [cases[round(at * apart)] for at in range(keep)]
