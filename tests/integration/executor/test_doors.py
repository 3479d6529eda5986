"""What is remembered of endpoints never outlives what their tenant wants."""

from typing import Any
from uuid import UUID

import pytest

from services.chassis.database import Database
from services.executor.ingress import doors as doors_module
from services.executor.ingress.doors import Doors
from services.executor.store import projected
from tests.integration.executor.ingress_house import House, wanted
from tests.integration.executor.running_registry import document


class Looks:
    """Counts the looks at what a tenant wants of an endpoint."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, way_in = 0, projected.way_in

        async def counted(*place: Any) -> Any:
            self.count += 1
            return await way_in(*place)

        monkeypatch.setattr(projected, "way_in", counted)


async def test_an_endpoint_is_looked_at_once_and_again_after_every_change(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, doors = Looks(house.database, monkeypatch), Doors(house.database)
    for _ in range(3):
        place = await doors.find("acme", "hook")
        assert {each.name for each in place.subscribed.subscriptions} == {
            "opened",
            "numbered",
            "to-idle",
        }
    assert looks.count == 1

    more = document("Subscription", "more", endpoint="hook", connector="triage")
    await house.want(*wanted(), more)
    for _ in range(2):
        place = await doors.find("acme", "hook")
        assert "more" in {each.name for each in place.subscribed.subscriptions}
    assert looks.count == 2

    await house.want(document("Tenant", "acme", display_name="Acme", enabled=False))
    assert (await doors.find("acme", "hook")).parts == {}
    await house.want(document("Tenant", "acme", display_name="Acme", enabled=True))
    assert (await doors.find("acme", "hook")).parts


async def test_what_is_not_there_costs_the_same_look_and_is_remembered_apart(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors_module, "MOST", 2)
    looks, doors = Looks(house.database, monkeypatch), Doors(house.database)
    assert (await doors.find("acme", "hook")).parts
    for tenant, tenant_id in (("acme", house.tenant_id), ("nobody", UUID(int=0))):
        before = looks.count
        for name in ("a", "b", "c", "c"):
            place = await doors.find(tenant, name)
            assert (place.parts, place.tenant_id) == ({}, tenant_id)
        assert looks.count - before == 3
    before = looks.count
    assert (await doors.find("acme", "hook")).parts
    assert looks.count == before
