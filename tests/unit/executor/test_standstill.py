"""Why a lane does not move, from how it stands."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.executor.engine.standstill import LaneState, why

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
KINDS = frozenset({"execution"})

# One item is due, and a worker is about to look.
MOVING = LaneState(
    lane_id=UUID(int=1),
    kind="execution",
    provider="github",
    owner="triage",
    owner_state="active",
    pause_reason="",
    breaker="CLOSED",
    open_until=datetime(1970, 1, 1, tzinfo=UTC),
    probes=1,
    concurrency=2,
    ordering="none",
    running=0,
    waiting=1,
    blocked=0,
    due_at=NOW - MINUTE,
    next_at=NOW,
    rate_at=None,
    off_reason=None,
    tenant_paused=False,
    tenant_running=0,
    tenant_most=None,
    provider_running=0,
    provider_most=None,
    now=NOW,
)


def codes(**stands: Any) -> list[str]:
    return [reason.code for reason in why(replace(MOVING, **stands), KINDS)]


def test_a_lane_that_moves_or_has_nothing_to_do_has_no_reason() -> None:
    assert codes() == []
    assert codes(waiting=0, due_at=None, next_at=None, pause_reason="by hand") == []
    assert codes(running=1, tenant_running=1, tenant_most=2, rate_at=NOW - MINUTE) == []
    assert codes(breaker="OPEN", open_until=NOW - MINUTE) == []
    assert codes(breaker="HALF_OPEN") == []


@pytest.mark.parametrize(
    ("stands", "code", "words"),
    [
        ({"pause_reason": "a migration"}, "PAUSED", "paused: a migration"),
        ({"owner_state": "inactive"}, "OWNER_INACTIVE", "its owner is inactive"),
        ({"tenant_paused": True}, "TENANT_PAUSED", "the tenant is paused or disabled"),
        (
            {"off_reason": "an incident"},
            "PROVIDER_OFF",
            "provider github is switched off: an incident",
        ),
        (
            {"breaker": "OPEN", "open_until": NOW + MINUTE},
            "BREAKER_OPEN",
            "the breaker is open until 2026-03-01 12:01:00 UTC",
        ),
        (
            {"breaker": "HALF_OPEN", "running": 1},
            "BREAKER_PROBING",
            "the breaker is half-open: 1 of 1 probes run",
        ),
        ({"running": 2}, "FULL", "full: 2 of 2 run"),
        (
            {"tenant_running": 5, "tenant_most": 5},
            "TENANT_FULL",
            "the tenant is at its cap: 5 of 5 run",
        ),
        (
            {"provider_running": 3, "provider_most": 3},
            "PROVIDER_FULL",
            "the tenant is at its cap for github: 3 of 3 run",
        ),
        (
            {"rate_at": NOW + MINUTE},
            "RATE",
            "the rate is used up until 2026-03-01 12:01:00 UTC",
        ),
        (
            {"waiting": 0, "blocked": 7, "due_at": None, "running": 1},
            "IN_ORDER",
            "in order: 7 behind what runs",
        ),
        (
            {"blocked": 7, "due_at": NOW + MINUTE},
            "IN_ORDER",
            "in order: 7 behind what is due at 2026-03-01 12:01:00 UTC",
        ),
        (
            {"due_at": NOW + MINUTE, "next_at": NOW + MINUTE},
            "NOT_DUE",
            "nothing is due before 2026-03-01 12:01:00 UTC",
        ),
        ({"kind": "delivery"}, "NO_KIND", "nobody works on delivery"),
        (
            {"next_at": None},
            "ASLEEP",
            "asleep until something happens over due work: the doctor will wake it",
        ),
        (
            {"next_at": NOW + MINUTE},
            "ASLEEP",
            "asleep until 2026-03-01 12:01:00 UTC over due work: the doctor will wake it",
        ),
        (
            {"next_at": NOW - MINUTE},
            "NO_WORKER",
            "no worker has looked since 2026-03-01 11:59:00 UTC: does a `work` process run?",
        ),
    ],
)
def test_each_reason_is_said_in_words(stands: dict[str, Any], code: str, words: str) -> None:
    (reason,) = why(replace(MOVING, **stands), KINDS)
    assert (reason.code, reason.message) == (code, words)


def test_what_holds_back_together_is_told_together_and_before_what_follows_from_it() -> None:
    assert codes(pause_reason="x", off_reason="y", next_at=None) == ["PAUSED", "PROVIDER_OFF"]
    assert codes(running=2, due_at=NOW + MINUTE) == ["FULL"]


def test_what_ends_because_its_owner_is_gone_is_held_back_by_nothing() -> None:
    assert (
        codes(owner_state="gone", pause_reason="x", breaker="OPEN", open_until=NOW + MINUTE) == []
    )
    assert codes(owner_state="gone", next_at=None) == ["ASLEEP"]
