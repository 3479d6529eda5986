"""What an outcome means: tried again, failed, timed out, unknown; pure, one table."""

from random import Random
from typing import Any

import pytest

from services.chassis.egress import (
    ConnectFailed,
    EgressError,
    EgressRefused,
    ResponseLost,
    ResponseTooLarge,
    Unsendable,
)
from services.chassis.evaluator import Evaluator
from services.executor.executions.steps import LARGEST_BODY, Step, Verdict, answered, unanswered
from services.providers.catalog import Catalog
from services.providers.client import ProviderResponse
from services.providers.failures import Failure
from services.providers.manifest import FailureKind

GITHUB = Catalog.load().get("github")


def a_step(**spec: Any) -> Step:
    retry = {"max_attempts": 3, "base": "1s", "cap": "60s"}
    return Step.from_spec({"name": "s", "timeout": "30s", "retry": retry, "method": "GET", **spec})


def answer(
    status: int = 200, body: bytes = b"", failure: Failure | None = None
) -> ProviderResponse:
    return ProviderResponse("", status, {}, body, failure)


async def judged(
    failure: Failure, attempts: int = 1, *, repeatable: bool, seed: int = 1
) -> Verdict:
    response = answer(failure.status, failure=failure)
    rng, evaluator = Random(seed), Evaluator()
    return await answered(a_step(), response, attempts, rng, evaluator, repeatable=repeatable)


async def understood(step: Step, response: ProviderResponse) -> Verdict:
    return await answered(step, response, 1, Random(1), Evaluator(), repeatable=True)


@pytest.mark.parametrize(
    ("kind", "status", "retry_after_s", "safe", "unsafe"),
    [
        ("rate_limited", 429, None, "running", "running"),
        ("rate_limited", 403, 5, "running", "running"),
        ("transient", 503, 5, "running", "running"),
        ("transient", 503, None, "running", "failed"),
        ("transient", 500, 5, "running", "failed"),
        ("transient", 500, None, "running", "failed"),
        ("transient", 408, None, "running", "failed"),
        ("auth", 401, None, "failed", "failed"),
        ("not_found", 404, None, "failed", "failed"),
        ("invalid", 422, None, "failed", "failed"),
        ("provider_error", 501, None, "failed", "failed"),
    ],
)
async def test_a_refusal_is_tried_again_where_that_helps_and_harms_nothing(
    kind: FailureKind, status: int, retry_after_s: float | None, safe: str, unsafe: str
) -> None:
    failure = Failure(kind, status, "said why", retry_after_s)
    for repeatable, state in ((True, safe), (False, unsafe)):
        found = await judged(failure, repeatable=repeatable)
        assert (found.state, found.status, found.reason) == (state, status, kind.upper())
        assert "said why" in found.message
        spent = await judged(failure, 3, repeatable=repeatable)
        assert (spent.state, spent.may_pass) == ("failed", state == "running")


@pytest.mark.parametrize(
    ("error", "safe", "unsafe", "spent", "reason"),
    [
        (ConnectFailed("x"), "running", "running", "failed", "CONNECT_FAILED"),
        (ResponseLost("x"), "running", "failed", "failed", "RESPONSE_LOST"),
        (ResponseLost("x", 200), "running", "failed", "failed", "RESPONSE_LOST"),
        (ResponseLost("x", late=True), "running", "failed", "timeout", "TIMEOUT"),
        (ResponseTooLarge("x", 200), "failed", "failed", "failed", "RESPONSE_TOO_LARGE"),
        (EgressRefused("h:1", []), "failed", "failed", "failed", "EGRESS_REFUSED"),
        (Unsendable("x"), "failed", "failed", "failed", "UNSENDABLE"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, EgressError) else "",
)
def test_no_whole_answer(
    error: EgressError, safe: str, unsafe: str, spent: str, reason: str
) -> None:
    found = unanswered(a_step(), error, 1, Random(1), repeatable=True)
    assert (found.state, found.reason) == (safe, reason)
    last = unanswered(a_step(), error, 3, Random(1), repeatable=True)
    assert (last.state, last.may_pass) == (spent, safe == "running")
    found = unanswered(a_step(), error, 1, Random(1), repeatable=False)
    lost = isinstance(error, ResponseLost)
    assert (found.state, found.reason) == (unsafe, "OUTCOME_UNKNOWN" if lost else reason)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_waits_grow_and_spread(attempts: int) -> None:
    failure = Failure("transient", 500)
    waits = [
        (await judged(failure, attempts, repeatable=True, seed=seed)).wait_s for seed in range(50)
    ]
    assert len(set(waits)) == 50 and min(waits) > 0 and max(waits) <= 2.0 ** (attempts - 1)


@pytest.mark.parametrize(("asked", "waited"), [(0, 0), (5, 5), (3600, 60)])
async def test_a_wait_that_is_asked_for_is_clamped_to_the_cap(asked: float, waited: float) -> None:
    failure = Failure("rate_limited", 429, None, asked)
    assert (await judged(failure, repeatable=False)).wait_s == waited


async def test_extracts_and_body_are_kept() -> None:
    step = a_step(extract={"a": "$.a", "all": "$.l[*]", "none": "$.x"})
    found = await understood(step, answer(201, b'{"a": 1, "l": [2]}'))
    assert (found.state, found.status) == ("success", 201)
    assert found.kept == {
        "output": {"a": 1, "all": [2], "none": None},
        "status": 201,
        "body": {"a": 1, "l": [2]},
    }


async def test_text_is_kept_as_text_and_nothing_as_null() -> None:
    kept = (await understood(a_step(), answer(200, b"pl\xc3\xa4in"))).kept
    assert kept == {"output": {}, "status": 200, "body": "pläin"}
    assert (await understood(a_step(), answer(204))).kept["body"] is None


async def test_an_answer_that_is_no_json_has_nothing_to_extract() -> None:
    step = a_step(extract={"a": "$.a"})
    found = await understood(step, answer(200, b"<html>"))
    assert (found.state, found.reason) == ("failed", "ANSWER_NOT_JSON")
    assert "<html>" not in found.message


async def test_a_long_body_is_there_for_extracts_only() -> None:
    body = b'{"a": 1, "b": "' + b"x" * LARGEST_BODY + b'"}'
    found = await understood(a_step(extract={"a": "$.a"}), answer(200, body))
    assert found.kept == {"output": {"a": 1}, "status": 200}


@pytest.mark.parametrize(
    ("spec", "repeatable"),
    [
        ({"method": "GET"}, True),
        ({"method": "HEAD"}, True),
        ({"method": "PUT"}, True),
        ({"method": "DELETE"}, True),
        ({"method": "POST"}, False),
        ({"method": "PATCH"}, False),
        ({"method": "POST", "idempotent": True}, True),
        ({"method": "GET", "idempotent": False}, False),
        ({"operation": "list_issues"}, True),
        ({"operation": "create_issue_comment"}, False),
        ({"operation": "unknown"}, False),
    ],
)
def test_which_calls_may_be_made_twice(spec: dict[str, Any], repeatable: bool) -> None:
    assert a_step(**spec).repeatable(GITHUB) is repeatable
    if "operation" in spec:
        assert not a_step(**spec).repeatable(None)
