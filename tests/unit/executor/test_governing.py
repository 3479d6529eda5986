"""What a connector's wishes mean for its lane, and what of its lanes a tenant has to change."""

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.executor.deliveries.policies import BREAKER
from services.executor.engine import lanes
from services.executor.engine.governing import Changes, Wanted, changes_of, lanes_of, policy_of
from services.executor.engine.work import LanePolicy
from services.executor.store.projected import ProjectedObject

LANE = {"concurrency": 16, "rate_per_minute": 0, "ordering": "none"}


def spec(**lane: Any) -> dict[str, Any]:
    steps = [{"integration": "code"}, {"integration": "chat"}]
    return {"is_active": True, "steps": steps, "lane": {**LANE, **lane}}


def standing(lane_id: UUID, owner: str, policy: LanePolicy) -> SimpleNamespace:
    """A lane's row."""
    return SimpleNamespace(lane_id=lane_id, owner=owner, **lanes.policy_row(policy))


@pytest.mark.parametrize(
    ("per_minute", "rate_per_s", "burst"), [(0, None, 1), (1, 1 / 60, 1), (600, 10.0, 10)]
)
def test_a_rate_is_per_minute_and_a_second_of_it_may_begin_at_once(
    per_minute: int, rate_per_s: float | None, burst: int
) -> None:
    policy = policy_of(spec(rate_per_minute=per_minute), {})
    assert (policy.rate_per_s, policy.burst) == (rate_per_s, burst)


def test_a_lane_belongs_to_the_provider_of_its_first_step() -> None:
    providers = {"code": "github", "chat": "slack"}
    assert policy_of(spec(), providers).provider == "github"
    assert policy_of(spec(), {"chat": "slack"}).provider == ""


def endpoint() -> dict[str, Any]:
    delivery = {
        "concurrency": 3,
        "ordering": "key",
        "rate_per_minute": 120,
        "retries": ["5s", "300s"],
        "timeout": "15s",
    }
    return {"direction": "OUTBOUND", "is_active": True, "delivery": delivery}


def test_each_connector_and_outbound_endpoint_has_a_lane_and_nothing_else_has() -> None:
    active, asleep, out = uuid4(), uuid4(), uuid4()
    found = lanes_of(
        [
            ProjectedObject("Integration", uuid4(), "code", 0, {"provider": "github"}),
            ProjectedObject("Connector", active, "a", 0, spec(concurrency=2, ordering="lane")),
            ProjectedObject("Connector", asleep, "b", 0, {**spec(), "is_active": False}),
            ProjectedObject("WebhookEndpoint", uuid4(), "in", 0, {"direction": "INBOUND"}),
            ProjectedObject("WebhookEndpoint", out, "out", 0, endpoint()),
        ]
    )
    assert found == {
        active: Wanted("execution", "active", LanePolicy(concurrency=2, ordering="lane", provider="github")),
        asleep: Wanted("execution", "inactive", LanePolicy(provider="github")),
        out: Wanted(
            "delivery",
            "active",
            LanePolicy(
                concurrency=3, ordering="key", rate_per_s=2.0, burst=2, retry_s=(5.0, 300.0),
                breaker=BREAKER,
            ),
        ),
    }  # fmt: skip


def test_only_what_differs_changes() -> None:
    policy, other = LanePolicy(), LanePolicy(concurrency=3)
    same, wider, asleep, gone, long_gone, new, new_asleep = (uuid4() for _ in range(7))
    changes = changes_of(
        [
            standing(same, "active", policy),
            standing(wider, "active", policy),
            standing(asleep, "active", policy),
            standing(gone, "inactive", policy),
            standing(long_gone, "gone", policy),
        ],
        {
            same: Wanted("execution", "active", policy),
            wider: Wanted("execution", "active", other),
            asleep: Wanted("execution", "inactive", policy),
            new: Wanted("execution", "active", policy),
            new_asleep: Wanted("execution", "inactive", policy),
        },
    )
    assert changes == Changes(
        policies={
            wider: ("execution", other),
            new: ("execution", policy),
            new_asleep: ("execution", policy),
        },
        owners={asleep: "inactive", new_asleep: "inactive", gone: "gone"},
    )
    assert changes.gone == [gone]


def test_a_connector_that_is_back_has_its_lane_again() -> None:
    back = uuid4()
    found = [standing(back, "gone", LanePolicy())]
    changes = changes_of(found, {back: Wanted("execution", "active", LanePolicy())})
    assert changes == Changes(policies={}, owners={back: "active"})
