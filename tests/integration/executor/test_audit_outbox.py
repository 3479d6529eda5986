"""What people do in the executor is written down with it, and told to the registry once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from google.protobuf.json_format import ParseDict
from tenon.registry.v1 import audit_service_pb2 as pb2

from services.chassis.errors import InvalidArgument, NotFound, Unavailable
from services.executor.audit.outbox import Deed, Doer, telling
from services.executor.audit.shipping import AT_ONCE, FIRST_WAIT_S, Shipping
from services.executor.engine.switchboard import Switchboard
from services.executor.store.audit_outbox import Told
from services.providers.catalog import Catalog
from tests.integration.executor.lane_bench import LaneBench

Admin = psycopg.AsyncConnection[Any]
DOER = Doer(uuid4(), "user", "Ada", "ADMIN", "192.0.2.1", "tests", "key k1", "a test", "/m", "r1")


@pytest.fixture
def bench(bench: LaneBench, tenant_ids: tuple[UUID, UUID]) -> LaneBench:
    bench.tenant_id = tenant_ids[0]
    return bench


@pytest.fixture
def switchboard(bench: LaneBench) -> Switchboard:
    return Switchboard(bench.database, Catalog.load(), [bench.KIND])


class Notes:
    """A registry that takes, or does not."""

    def __init__(self) -> None:
        self.taken: list[tuple[UUID | None, pb2.RecordedEvent]] = []
        self.away = False
        self.gone: UUID | None = None
        self.refused: set[str] = set()

    async def record(self, tenant_id: UUID | None, told: Sequence[Told]) -> None:
        if self.away:
            raise Unavailable("away")
        if tenant_id is not None and tenant_id == self.gone:
            raise NotFound("no more")
        if any(one.event["object"] in self.refused for one in told):
            raise InvalidArgument("no such event")
        self.taken += [(tenant_id, ParseDict(one.event, pb2.RecordedEvent())) for one in told]


async def outbox(admin: Admin) -> int:
    counted = await admin.execute(
        "SELECT (SELECT count(*) FROM executor.audit_outbox)"
        " + (SELECT count(*) FROM executor.platform_audit_outbox)"
    )
    row = await counted.fetchone()
    assert row is not None
    return int(row[0])


async def test_each_deed_is_told_with_who_did_it(
    bench: LaneBench, switchboard: Switchboard, admin: Admin
) -> None:
    lane = bench.lane_id
    await bench.enqueue(bench.item())
    await switchboard.pause(bench.tenant_id, lane, "too loud", DOER)
    await switchboard.resume(bench.tenant_id, lane, DOER)
    await switchboard.switch_off("github", "broken", DOER)
    await switchboard.switch_off("github", "again", DOER)  # it is off: nothing was done
    await switchboard.switch_on("github", DOER)
    await switchboard.switch_on("github", DOER)
    assert await outbox(admin) == 4
    notes = Notes()
    assert await Shipping(bench.database, notes).ship() == 4
    assert [(tenant, one.kind, one.action, one.object) for tenant, one in notes.taken] == [
        (bench.tenant_id, "Lane", "pause", str(lane)),
        (bench.tenant_id, "Lane", "resume", str(lane)),
        (None, "ProviderSwitch", "switch_off", "github"),
        (None, "ProviderSwitch", "switch_on", "github"),
    ]
    first = notes.taken[0][1]
    assert [(f.path, f.after) for f in first.fields] == [("pause_reason", '"too loud"')]
    actor = first.actor
    assert (actor.display_name, actor.address, actor.session, actor.reason, actor.method) == (
        "Ada", "192.0.2.1", "key k1", "a test", "/m",
    )  # fmt: skip
    assert first.request_id == "r1" and actor.uid == str(DOER.uid)
    assert await outbox(admin) == 0


async def test_what_was_not_done_is_not_told(
    bench: LaneBench, switchboard: Switchboard, admin: Admin
) -> None:
    with pytest.raises(NotFound):
        await switchboard.pause(bench.tenant_id, uuid4(), "why", DOER)
    assert await outbox(admin) == 0


async def test_what_the_registry_does_not_take_waits(
    bench: LaneBench, switchboard: Switchboard, admin: Admin
) -> None:
    notes = Notes()
    notes.away = True
    await switchboard.switch_off("github", "broken", DOER)
    clock = SteppedClock()
    shipping = Shipping(bench.database, notes, clock)
    assert await shipping.ship() == 0 and await outbox(admin) == 1
    notes.away = False
    assert await shipping.ship() == 0  # not at once
    clock.now += FIRST_WAIT_S
    assert await shipping.ship() == 1 and await outbox(admin) == 0


async def test_a_log_that_cannot_be_told_holds_up_no_other(
    bench: LaneBench, tenant_ids: tuple[UUID, UUID], admin: Admin
) -> None:
    gone, other = tenant_ids
    await do(bench, gone, *map(str, range(AT_ONCE)))
    await do(bench, other, "lane")
    notes = Notes()
    notes.gone = gone
    shipping = Shipping(bench.database, notes)
    assert await shipping.ship() == 1
    assert [(tenant, one.object) for tenant, one in notes.taken] == [(other, "lane")]
    assert await outbox(admin) == AT_ONCE


async def test_a_log_that_cannot_be_told_is_asked_for_less_and_less_often(
    bench: LaneBench, tenant_ids: tuple[UUID, UUID]
) -> None:
    await do(bench, tenant_ids[0], "lane")
    clock, tried = SteppedClock(), list[float]()

    class Counting(Notes):
        async def record(self, tenant_id: UUID | None, told: Sequence[Told]) -> None:
            tried.append(clock.now)
            await super().record(tenant_id, told)

    notes = Counting()
    notes.away = True
    shipping = Shipping(bench.database, notes, clock)
    for _ in range(400):
        await shipping.ship()
        clock.now += 0.25
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert gaps == [0.5, 1, 2, 4, 8, 16, 30, 30]


async def test_an_event_that_is_refused_is_kept_and_holds_up_no_other(
    bench: LaneBench, tenant_ids: tuple[UUID, UUID], admin: Admin
) -> None:
    mine = tenant_ids[0]
    lanes = [str(number) for number in range(20)]
    await do(bench, mine, *lanes)
    notes = Notes()
    notes.refused = {"3", "19"}
    shipping = Shipping(bench.database, notes)
    assert await shipping.ship() == 18
    assert [one.object for _, one in notes.taken] == [o for o in lanes if o not in notes.refused]
    assert (shipping.aside, await outbox(admin)) == (2, 2)

    await do(bench, mine, "next")
    assert await shipping.ship() == 1  # without those set aside
    notes.refused = set()
    assert await Shipping(bench.database, notes).ship() == 2  # which the next leader tells anew
    assert await outbox(admin) == 0


async def do(bench: LaneBench, tenant_id: UUID, *objects: str) -> None:
    """Do something to each, in this order."""
    async with bench.database.tenant(tenant_id) as tx:
        deeds = [Deed("Lane", "pause", each) for each in objects]
        await tx.pipeline([telling(tenant_id, DOER, deed) for deed in deeds])


class SteppedClock:
    """A clock that stands still unless told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
