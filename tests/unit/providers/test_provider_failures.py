"""What answers mean, and how long to wait."""

import json
from email.utils import formatdate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.providers.catalog import Catalog
from services.providers.failures import MAX_RETRY_AFTER_S, backoff, classify, retry_after

CATALOG = Catalog.load()
GITHUB = CATALOG.get("github")
HTTP = CATALOG.get("http")
NOW = 1_700_000_000.0


@pytest.mark.parametrize("status", [200, 201, 204, 304])
def test_success_is_no_failure(status: int) -> None:
    assert classify(HTTP, status, {}, NOW) is None


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "refused"),
    [
        (301, "provider_error", False, False),
        (400, "invalid", False, True),
        (401, "auth", False, True),
        (403, "auth", False, True),
        (404, "not_found", False, True),
        (409, "invalid", False, True),
        (410, "not_found", False, True),
        (418, "invalid", False, True),
        (422, "invalid", False, True),
        (429, "rate_limited", True, True),
        (500, "transient", True, False),
        (501, "provider_error", False, False),
        (503, "transient", True, False),
        (504, "transient", True, False),
        (999, "provider_error", False, False),
    ],
)
def test_what_a_status_means(status: int, kind: str, *, retryable: bool, refused: bool) -> None:
    failure = classify(HTTP, status, {}, NOW)
    assert failure is not None
    assert (failure.kind, failure.retryable, failure.refused) == (kind, retryable, refused)


SECONDARY = json.dumps({"message": "You have exceeded a secondary rate limit."}).encode()


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "wait_s"),
    [
        (403, {}, b'{"message": "Resource not accessible"}', "auth", None),
        (403, {"retry-after": "7"}, SECONDARY, "rate_limited", 7),
        (429, {"retry-after": "7"}, b"", "rate_limited", 7),
        (403, {}, SECONDARY, "rate_limited", 60),
        (
            403,
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW) + 90)},
            b"",
            "rate_limited",
            90,
        ),
        (403, {"x-ratelimit-remaining": "12"}, b"", "auth", None),
        (404, {"x-ratelimit-remaining": "0"}, b"", "not_found", None),
        (503, {"retry-after": "3"}, b"", "transient", 3),
    ],
)
def test_github_says_its_limits_its_own_way(
    status: int, headers: dict[str, str], body: bytes, kind: str, wait_s: float | None
) -> None:
    failure = classify(GITHUB, status, headers, NOW, body)
    assert failure is not None
    assert (failure.kind, failure.retry_after_s) == (kind, wait_s)


def test_the_same_headers_are_no_limit_elsewhere() -> None:
    failure = classify(HTTP, 403, {"x-ratelimit-remaining": "0"}, NOW)
    assert failure is not None
    assert failure.kind == "auth"


def test_the_providers_message_is_kept_short_and_clean() -> None:
    body = json.dumps({"message": "bad\r\n\x1b[31m" + "x" * 1000}).encode()
    failure = classify(HTTP, 422, {}, NOW, body)
    assert failure is not None
    assert failure.message is not None
    assert failure.message.isprintable()
    assert len(failure.message) == 300


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"message": 7}', b"\xff", b"[" * 99999])
def test_any_body_is_survived(body: bytes) -> None:
    failure = classify(GITHUB, 500, {}, NOW, body)
    assert failure is not None
    assert failure.message is None


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "120"}, 120),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "999999"}, MAX_RETRY_AFTER_S),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0),
        ({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": ""}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000045"}, 45),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "1700000045"}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "x"}, None),
        ({}, None),
    ],
)
def test_how_long_a_provider_asks_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after(headers, NOW) == wait_s


@given(st.text())
def test_no_retry_after_breaks_us(value: str) -> None:
    wait = retry_after({"retry-after": value}, NOW)
    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER_S


@given(st.integers(1, 10**9), st.floats(0.01, 60), st.floats(0.01, 3600), st.integers())
def test_backoff_keeps_half_and_never_passes_its_cap(
    attempt: int, base_s: float, cap_s: float, seed: int
) -> None:
    wait = backoff(attempt, base_s=base_s, cap_s=cap_s, rng=Random(seed))
    ceiling = min(cap_s, base_s * 2.0 ** min(attempt - 1, 60))
    assert ceiling / 2 <= wait <= ceiling


def test_backoff_doubles_and_spreads() -> None:
    rng = Random(1)
    waits = [[backoff(n, base_s=1, cap_s=60, rng=rng) for _ in range(200)] for n in (1, 2, 3, 20)]
    assert [max(each) > top * 0.98 for each, top in zip(waits, (1, 2, 4, 60), strict=True)]
    assert all(len(set(each)) > 190 for each in waits)
    assert [round(min(each)) for each in waits] == [0 if min(waits[0]) < 0.5 else 1, 1, 2, 30]


@pytest.mark.parametrize(
    ("error", "kind", "wait_s"),
    [
        ("ratelimited", "rate_limited", 30.0),
        ("invalid_auth", "auth", None),
        ("channel_not_found", "not_found", None),
        ("internal_error", "transient", None),
        ("msg_too_long", "invalid", None),
    ],
)
def test_a_good_status_is_a_failure_where_the_body_says_so(
    error: str, kind: str, wait_s: float | None
) -> None:
    body = json.dumps({"ok": False, "error": error}).encode()
    failure = classify(CATALOG.get("slack"), 200, {}, NOW, body)
    assert failure is not None
    assert (failure.kind, failure.status, failure.message) == (kind, 200, error)
    assert failure.retry_after_s == wait_s


@pytest.mark.parametrize("body", [b'{"ok": true, "error": "x"}', b'{"ok": 0}', b"[]", b"no JSON"])
def test_a_good_status_is_good_where_the_body_says_nothing_else(body: bytes) -> None:
    assert classify(CATALOG.get("slack"), 200, {}, NOW, body) is None


def test_reasons_may_be_lists_and_mappings() -> None:
    jira = CATALOG.get("jira")
    for said, message in (
        ({"errorMessages": ["No project.", "No type."], "errors": {}}, "No project.; No type."),
        ({"errorMessages": [], "errors": {"summary": "It is empty."}}, "summary: It is empty."),
        ({"errorMessages": [1], "errors": []}, None),
    ):
        failure = classify(jira, 400, {}, NOW, json.dumps(said).encode())
        assert failure is not None
        assert (failure.kind, failure.message) == ("invalid", message)
