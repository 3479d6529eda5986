"""An endpoint that is remembered takes its deliveries in at once, and never by what was wanted."""

import json
from typing import Any

import pytest

from services.executor.store import tenants
from tests.integration.executor.ingress_house import SECRET, House, secret_document, wanted
from tests.integration.executor.running_registry import document
from tests.integration.executor.test_ingress import OTHER
from tests.integration.executor.test_ingress_challenges import SLACKS, asking

OFF = document("Tenant", "acme", display_name="Acme", enabled=False)
ON = document("Tenant", "acme", display_name="Acme", enabled=True)


class Asked:
    """Counts how often it is asked how tenants stand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, standing = 0, tenants.standing

        async def counted(*what: Any) -> Any:
            self.count += 1
            return await standing(*what)

        monkeypatch.setattr(tenants, "standing", counted)


async def test_only_what_was_projected_anew_or_is_refused_is_looked_at_first(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch)
    for _ in range(3):
        assert (await house.send())[0] == 202
    assert asked.count == 1
    assert (await house.send(secret=OTHER))[0] == 404
    assert asked.count == 2

    more = document("Subscription", "more", endpoint="hook", connector="triage")
    await house.want(*wanted(), more)
    assert await house.count("executions") == 6
    for _ in range(2):
        assert (await house.send())[0] == 202
    assert asked.count == 3
    # By the subscription that is new, too, and each of both once.
    assert await house.count("executions") == 12
    assert await house.count("events") == 5


async def test_a_secret_counts_from_the_first_delivery_that_is_signed_with_it(house: House) -> None:
    assert (await house.send())[0] == 202
    await house.want(secret_document(OTHER, rotation={"overlap": "0s"}))
    assert (await house.send(secret=OTHER))[0] == 202
    assert (await house.send())[0] == 404
    assert await house.count("events") == 2


async def test_a_tenant_that_is_disabled_is_not_remembered(house: House) -> None:
    assert (await house.send())[0] == 202
    await house.want(OFF)
    assert await house.send() == (404, {"error": "not found"})
    await house.want(ON)
    assert (await house.send())[0] == 202
    assert await house.count("events") == 2


async def test_a_challenge_is_not_answered_by_memory(house: House) -> None:
    asking(house, SLACKS)
    assert (await house.send())[0] == 202
    body = json.dumps({"type": "url_verification", "challenge": "3eZ"}).encode()
    await house.want(OFF)
    assert await house.send(body, secret=SECRET) == (404, {"error": "not found"})
