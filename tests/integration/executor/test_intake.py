"""Events of many tenants share a transaction, and stand or fall each alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.chassis.database import Database
from services.chassis.errors import NotFound, TenonError, Unavailable
from services.chassis.ids import uuid7
from services.chassis.secret import Secret
from services.executor.engine import lanes
from services.executor.events import accepting
from services.executor.events.accepting import Draft, Event
from services.executor.events.routing import Route
from services.executor.ingress import intake
from services.executor.ingress.intake import Busy, Intake
from services.executor.registry.credentials import LeasedKey
from services.executor.store import events as store
from services.executor.store import projected, tenants
from services.executor.store.projected import ProjectedObject
from services.executor.store.tenants import ProjectedTenant
from tests.integration.executor.ingress_house import Admin

KEY = LeasedKey(UUID(int=1), Secret(bytes(32)))
STEPS = [{"name": "who", "integration": "github", "operation": "get_authenticated_user"}]
CONNECTOR = ProjectedObject("Connector", uuid4(), "triage", 1, {"steps": STEPS, "is_active": True})
ENDPOINT = ProjectedObject("WebhookEndpoint", uuid4(), "hook", 1, {})
ALL = ProjectedObject("Subscription", uuid4(), "all", 1, {"connector": "triage"})


class Counting(Database):
    """Counts the transactions that go from tenant to tenant."""

    groups = 0

    def across(self, **how: Any) -> Any:
        self.groups += 1
        return super().across(**how)


@pytest.fixture
async def counting(executor_conninfos: tuple[Secret, Secret]) -> AsyncIterator[Counting]:
    async with Counting(*executor_conninfos, constraints=lanes.CONSTRAINTS) as database:
        yield database


async def tenants_of(database: Database, count: int, *, enabled: bool = True) -> list[UUID]:
    made = [uuid7() for _ in range(count)]
    for number, tenant_id in enumerate(made):
        tenant = ProjectedTenant(tenant_id, f"t{number}-{tenant_id.hex[-8:]}", enabled, 1)
        async with database.tenant(tenant_id) as tx:
            await tenants.write(tx, tenant, seen=None)
            await projected.replace(tx, tenant_id, [CONNECTOR])
    return made


def drafted(tenant_id: UUID, key: str, *, starting: bool = False) -> Draft:
    event = Event(tenant_id, ENDPOINT, "push", key, {}, {}, b"{}")
    return accepting.draft(event, [Route(ALL, CONNECTOR)] if starting else [], KEY)


async def accepted(taking: Intake, drafts: Sequence[Draft]) -> list[Any]:
    """What becomes of events that come at once."""
    calls = (taking.accept(each) for each in drafts)
    return await asyncio.gather(*calls, return_exceptions=True)


async def count(admin: Admin, table: str) -> int:
    ((number,),) = await (await admin.execute(f"SELECT count(*) FROM executor.{table}")).fetchall()
    return int(number)


async def test_those_that_come_at_once_share_transactions(counting: Counting, admin: Admin) -> None:
    of = await tenants_of(counting, 20)
    drafts = [drafted(each, "k", starting=True) for each in of]
    before = counting.groups
    assert await accepted(Intake(counting), drafts) == [each.event.id for each in drafts]
    # The first is not kept waiting for the others.
    assert counting.groups - before <= 3
    for table in ("events", "event_receipts", "executions", "work"):
        assert await count(admin, table) == 20


async def test_large_ones_share_a_transaction_with_few(
    counting: Counting, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = [drafted(each, "k") for each in await tenants_of(counting, 12)]
    monkeypatch.setattr(intake, "LARGEST", 2 * len(drafts[0].kept.body) + 1)
    assert await accepted(Intake(counting), drafts) == [each.event.id for each in drafts]
    together = await admin.execute(
        "SELECT count(*) FROM executor.events GROUP BY xmin ORDER BY 1 DESC"
    )
    assert [many for (many,) in await together.fetchall()] == [3, 3, 3, 1, 1, 1]


async def test_of_one_that_is_bad_nothing_stays_and_all_others_are_kept(
    counting: Counting, admin: Admin
) -> None:
    of = await tenants_of(counting, 8)
    (disabled,) = await tenants_of(counting, 1, enabled=False)
    drafts = [drafted(each, "k", starting=True) for each in [*of, disabled]]
    # It starts one run twice, which the database refuses.
    broken = Draft(drafts[3].event, drafts[3].kept, [*drafts[3].starts, *drafts[3].starts])
    outcomes = await accepted(Intake(counting), [*drafts[:3], broken, *drafts[4:]])
    assert isinstance(outcomes[3], TenonError)
    assert isinstance(outcomes[8], NotFound)
    good = [one for number, one in enumerate(outcomes) if number not in {3, 8}]
    assert good == [one.event.id for n, one in enumerate(drafts) if n not in {3, 8}]
    for table in ("events", "event_receipts", "executions", "work"):
        assert await count(admin, table) == 7


async def test_what_was_made_up_before_a_projection_leaves_nothing_and_disturbs_nobody(
    counting: Counting, admin: Admin
) -> None:
    first, *others = await tenants_of(counting, 4)
    standing = {row[0]: row[1] for row in await projections(admin)}
    drafts = [
        replace(drafted(each, "k", starting=True), as_of=standing[each])
        for each in (first, *others)
    ]
    async with counting.tenant(first) as tx:
        now = await tenants.get(tx, first)
        assert now is not None
        await tenants.write(tx, replace(now, revision=2), seen=1)
    outcomes = await accepted(Intake(counting), drafts)
    assert isinstance(outcomes[0], store.Stale)
    assert outcomes[1:] == [each.event.id for each in drafts[1:]]
    for table in ("events", "event_receipts", "executions", "work"):
        assert await count(admin, table) == 3


async def projections(admin: Admin) -> list[Any]:
    rows = await admin.execute("SELECT tenant_id, projected_at FROM executor.tenants")
    return await rows.fetchall()


async def test_of_one_delivery_that_comes_often_one_event_is_kept(
    counting: Counting, admin: Admin
) -> None:
    (tenant_id,) = await tenants_of(counting, 1)
    for starting in (False, True):
        key = f"k-{starting}"
        drafts = [drafted(tenant_id, key, starting=starting) for _ in range(40)]
        outcomes = await accepted(Intake(counting), drafts)
        assert len(set(outcomes)) == 1
        assert outcomes[0] in {each.event.id for each in drafts}
    assert await count(admin, "events") == 2
    assert await count(admin, "executions") == await count(admin, "work") == 1


async def test_a_delivery_that_another_process_takes_at_this_moment_is_that_ones(
    counting: Counting, admin: Admin
) -> None:
    (tenant_id,) = await tenants_of(counting, 1)
    first, second = [drafted(tenant_id, "k", starting=True) for _ in range(2)]
    taking = Intake(counting)
    async with counting.across() as tx:
        await tx.pipeline([store.accepting([first.arriving])])
        waiting = asyncio.create_task(taking.accept(second))
        async with asyncio.timeout(20):
            while not await blocked(admin):
                await asyncio.sleep(0.01)
    assert await waiting == first.event.id
    assert await count(admin, "events") == 1
    assert await count(admin, "executions") == 0


async def blocked(admin: Admin) -> bool:
    rows = await admin.execute(
        "SELECT FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(await rows.fetchall())


async def test_events_of_one_tenant_that_start_something_go_one_by_one_and_all_go(
    counting: Counting, admin: Admin
) -> None:
    (tenant_id,) = await tenants_of(counting, 1)
    drafts = [drafted(tenant_id, f"k-{n}", starting=True) for n in range(12)]
    assert await accepted(Intake(counting), drafts) == [each.event.id for each in drafts]
    assert await count(admin, "work") == 12


async def test_a_sender_that_goes_away_takes_nobody_along(counting: Counting, admin: Admin) -> None:
    of = await tenants_of(counting, 6)
    taking = Intake(counting)
    calls = [asyncio.create_task(taking.accept(drafted(each, "k"))) for each in of]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[4].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(each, UUID) for each in outcomes] == [False, True, True, True, False, True]
    assert await count(admin, "events") == 6


async def test_a_tenant_of_which_too_much_is_under_way_is_told_at_once(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST_OF_A_TENANT", 2)
    taking, one, other = Intake(counting), uuid4(), uuid4()
    with taking.room(one), taking.room(one), taking.room(other):
        with pytest.raises(Busy) as told, taking.room(one):
            raise AssertionError
        assert told.value.retry_after_s == 1
    with taking.room(one), taking.room(one):
        pass


async def test_with_the_database_away_all_of_a_group_are_told_to_come_again(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = await tenants_of(counting, 8)
    drafts = [drafted(each, "k") for each in of]
    asked = 0

    @asynccontextmanager
    async def away(**_: object) -> AsyncIterator[None]:
        nonlocal asked
        asked += 1
        raise Unavailable("the database is away")
        yield

    monkeypatch.setattr(counting, "across", away)
    outcomes = await accepted(Intake(counting), drafts)
    assert all(isinstance(each, Unavailable) for each in outcomes)
    # Nobody is tried alone: that would wait for the database once more each.
    assert asked <= 3
