"""kill -9 of the executor anywhere in a transfer: all is here in the end, and nothing twice."""

import json
from typing import Any, Final
from urllib.request import Request, urlopen

import pytest

from tests.family import Family, until
from tests.faults.points import points, thinned

pytestmark = pytest.mark.faults

ISSUES: Final = 45
ENDED_S: Final = 60.0
STREAM: Final = "github/issues"
CASES: Final = [(point, kind) for point in points("sync") for kind in ("kill", "error")]
RUNS: Final = (
    "SELECT state, whole, created, updated, deleted FROM executor.sync_runs "
    "WHERE ended_at IS NOT NULL ORDER BY id"
)
RECORDS: Final = "SELECT count(*), max(version) FROM executor.records WHERE deleted_at IS NULL"


@pytest.fixture(scope="module", autouse=True)
def _applied(family: Family) -> None:
    family.start("executor")
    family.apply_example()


@pytest.fixture(autouse=True)
def _nothing_here(family: Family) -> None:
    """Nothing was ever transferred, and nobody has asked for anything."""
    for table in ("records", "sync_states", "sync_runs"):
        family.rows(f"DELETE FROM executor.{table} RETURNING 1")
    urlopen(Request(f"{family.sandbox}/__calls", method="DELETE")).close()


def trigger(family: Family, *options: str) -> None:
    """Ask for a transfer; whoever is killed meanwhile may not answer."""
    family.tenon("sync", "trigger", "acme", STREAM, *options)


def ended(family: Family, count: int) -> list[tuple[Any, ...]]:
    """So many transfers, once they have ended."""
    until(lambda: len(family.rows(RUNS)) == count, ENDED_S, "their end")
    return family.rows(RUNS)


def asked(family: Family) -> int:
    """How often the list was asked for."""
    with urlopen(f"{family.sandbox}/__calls") as answer:
        log = json.load(answer)
    return sum(one["path"] == "/repos/acme/shop/issues" for one in log)


@pytest.mark.parametrize(("point", "kind"), thinned(CASES, keep=3))
def test_a_transfer_ends_whole_whoever_dies(family: Family, point: str, kind: str) -> None:
    family.restart("executor", f"{point}={kind}@1")
    trigger(family)
    if kind == "kill":
        family.await_killed("executor")
        family.start("executor")
    assert ended(family, 1) == [("success", True, ISSUES, 0, 0)]
    assert family.rows(RECORDS) == [(ISSUES, 1)]
    assert asked(family) <= 2, "only the page under way is asked for again"

    trigger(family, "--wait")
    assert ended(family, 2)[1] == ("success", False, 0, 0, 0)
    assert family.rows(RECORDS) == [(ISSUES, 1)]
