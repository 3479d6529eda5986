"""kill -9 of either service anywhere in a deletion: all of the tenant goes, and nothing of others."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from migrations.tenancy import KEPT
from services.executor.store import draining
from services.registry.store import purge
from tests.family import Family, until
from tests.faults.points import points
from tests.faults.runs import Delivery, new_delivery

pytestmark = pytest.mark.faults

# One deletion goes by a point of each service.
CASES: Final = list(zip(points("drain"), points("purge"), strict=True))
PURGED_S: Final = 90.0
MANY: Final = 2500
"""Rows of one table: more than two batches."""
TENANTS: Final = {
    # A leader anchors every log that has grown, whenever it likes.
    "registry": (
        *purge.ROWS.tables,
        *(t.partition(".")[2] for t in KEPT - {"registry.audit_anchors"}),
    ),
    "executor": (*draining.ROWS.tables, "tenants"),
}
STAYS: Final = ["feed"]
"""Beside the proof: the end of the purge and its notice, for whoever follows the feed."""

# Once its lanes sleep, nobody touches a tenant.
BUSY: Final = (
    "SELECT FROM executor.lanes WHERE tenant_id = %s AND next_at < 'infinity' UNION ALL "
    "SELECT FROM executor.tenant_lanes WHERE tenant_id = %s AND next_at < 'infinity'"
)

Rows = dict[str, list[str]]


@pytest.fixture(scope="module", autouse=True)
def _other(family: Family) -> None:
    """Another tenant, with all that the deleted ones have."""
    family.start("executor")
    inhabit(family, "other")


@pytest.fixture(autouse=True)
def _again(family: Family) -> Iterator[None]:
    """Both services, and nothing kills them."""
    yield
    for service in ("registry", "executor"):
        family.restart(service)


def canary(tenant: str) -> str:
    """What no other tenant has in its events."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:24]


def inhabit(family: Family, tenant: str) -> None:
    """Apply the example for a tenant, run it once, and give it many rows in both services."""
    family.apply_example(tenant)
    assert send(family, tenant)[0] == 202
    tenant_id = family.tenant_id(tenant)
    until(lambda: not family.rows(BUSY, tenant_id, tenant_id), what="the run's end")
    family.rows(
        "INSERT INTO executor.event_receipts SELECT %s, gen_random_uuid(), n::text,"
        " gen_random_uuid() FROM generate_series(1, %s) n RETURNING 1",
        tenant_id,
        MANY,
    )
    family.rows(
        "INSERT INTO registry.feed (tenant_id, kind, revision) SELECT %s, 'revision', 1"
        " FROM generate_series(1, %s) RETURNING 1",
        tenant_id,
        MANY,
    )


def send(family: Family, tenant: str, delivery: Delivery | None = None) -> tuple[int, Any]:
    """A webhook with the tenant's canary in it."""
    body = json.loads((delivery or new_delivery()).body)
    body["issue"]["title"] = canary(tenant)
    return family.webhook(json.dumps(body).encode(), tenant=tenant)


def rows_of(family: Family, tenant_id: object) -> Rows:
    """All rows of a tenant, by schema and table; of tables with none, nothing."""
    found = {}
    for schema, tables in TENANTS.items():
        for table in tables:
            query = f"SELECT row_to_json(t)::text FROM {schema}.{table} t WHERE tenant_id = %s"
            if rows := sorted(text for (text,) in family.rows(query, tenant_id)):
                found[f"{schema}.{table}"] = rows
    return found


def delete(family: Family, tenant: str, *options: str) -> None:
    done = family.tenon("tenants", "delete", tenant, "--force", "--yes", "--no-wait", *options)
    assert done.returncode == 0, done.stderr


def tombstone(family: Family, tenant: str) -> dict[str, Any]:
    """What is known of a tenant that goes."""
    ((stone,),) = family.rows(
        "SELECT row_to_json(t) FROM registry.tenant_tombstones t WHERE slug = %s", tenant
    )
    return dict(stone)


def await_purged(family: Family, tenant: str) -> dict[str, Any]:
    """The tombstone once it says that nothing else is left."""
    until(lambda: tombstone(family, tenant)["purged_at"], PURGED_S, "the purge")
    return tombstone(family, tenant)


@pytest.mark.parametrize(("in_executor", "in_registry"), CASES)
def test_killed_deletion_goes_on_to_its_end(
    family: Family, in_executor: str, in_registry: str
) -> None:
    tenant = f"gone-{in_executor.replace('.', '-').replace('_', '-')}"
    inhabit(family, tenant)
    mine, other = family.tenant_id(tenant), family.tenant_id("other")
    others, before = rows_of(family, other), rows_of(family, mine)
    family.restart("registry", f"{in_registry}=kill@1")
    family.restart("executor", f"{in_executor}=kill@1")
    delete(family, tenant)
    family.await_killed("executor")
    family.start("executor")
    family.await_killed("registry", PURGED_S)
    family.start("registry")
    stone = await_purged(family, tenant)

    proof = {table for table in KEPT if table.startswith("registry.")}
    until(lambda: "executor.tenants" not in rows_of(family, mine), what="the executor's end")
    after = rows_of(family, mine)
    assert set(after) - proof == {f"registry.{table}" for table in STAYS}
    kinds = sorted(json.loads(row)["kind"] for row in after["registry.feed"])
    assert kinds == ["notice", "tenant"]
    assert set(before["registry.audit_events"]) < set(after["registry.audit_events"])
    assert rows_of(family, other) == others
    assert stone["executor_rows"] == counts(before, "executor")
    # The feed and the answers to requests grew by the deletion itself.
    told = counts(before, "registry")
    assert {
        table for table, count in told.items() if stone["registry_rows"][table] < count
    } == set()
    assert_nothing_told(family, tenant)


def counts(rows: Rows, schema: str) -> dict[str, int]:
    """How many rows a schema has of a tenant, by table, without the proof and the tenant itself."""
    return {
        name.partition(".")[2]: len(of)
        for name, of in rows.items()
        if name.startswith(f"{schema}.") and name not in {*KEPT, "executor.tenants"}
    }


def assert_nothing_told(family: Family, tenant: str) -> None:
    """No row of any table, and no log, has what only this tenant had."""
    marks = (canary(tenant), canary(tenant).encode().hex())
    for schema in TENANTS:
        for table, rows in family.state_of(schema).items():
            assert not [row for row in rows if any(mark in row for mark in marks)], table
    for service in ("registry", "executor"):
        assert canary(tenant) not in family.said(service)


def begun(family: Family, tenant_id: object) -> list[int]:
    """How many of what a tenant begins there are."""
    counted = "SELECT count(*) FROM executor.{} WHERE tenant_id = %s"
    return [
        family.rows(counted.format(table), tenant_id)[0][0]
        for table in ("events", "executions", "event_receipts")
    ]


@contextlib.contextmanager
def knocking(*knocks: Callable[[], object]) -> Iterator[None]:
    """Do each of these again and again, at the same time, until the block ends."""
    stop = threading.Event()

    def knock(once: Callable[[], object]) -> None:
        while not stop.is_set():
            once()

    threads = [threading.Thread(target=knock, args=[one]) for one in knocks]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        stop.set()
        for one in threads:
            one.join()


def test_nothing_of_a_tenant_begins_once_it_drains(family: Family) -> None:
    inhabit(family, "racing")
    tenant_id, statuses = family.tenant_id("racing"), list[int]()

    def webhook() -> None:
        statuses.append(send(family, "racing")[0])

    def run() -> None:
        family.tenon("run", "racing", "triage")

    with knocking(webhook, run):
        until(lambda: statuses.count(202) > 5, what="the first webhooks")
        delete(family, "racing")
        until(lambda: 404 in statuses, what="a refused webhook")
        before, at = begun(family, tenant_id), len(statuses)
        until(lambda: len(statuses) > at + 20, what="more webhooks")
        assert begun(family, tenant_id) == before
        assert set(statuses[at:]) == {404}
    await_purged(family, "racing")
    assert begun(family, tenant_id) == [0, 0, 0]
