"""What a page that did not come means: what waits and for how long, and what ends a transfer."""

from typing import get_args

import pytest

from services.chassis import egress_errors
from services.chassis.egress_errors import (
    BadIdentity,
    ConnectFailed,
    EgressError,
    EgressRefused,
    NotPermitted,
    ResponseLost,
    ResponseTooLarge,
    Unsendable,
)
from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound
from services.chassis.secret import MASK, Secret
from services.executor.syncs.verdicts import (
    LONGEST_WAIT_S,
    PATIENT_S,
    Fault,
    refused,
    unanswered,
    unusable,
)
from services.providers.failures import Failure
from services.providers.manifest import FailureKind
from services.providers.streams import Unlisted

TOKEN = Secret("correct-horse-battery-staple")
WAITS = {"rate_limited", "transient"}


def of(kind: FailureKind, status: int = 400, **more: object) -> Fault:
    return refused(Failure(kind, status, **more), [TOKEN])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_a_refusal_waits_where_it_may_pass_and_else_ends_the_transfer(kind: FailureKind) -> None:
    fault = of(kind)
    assert fault.reason == kind.upper()
    assert (fault.wait_s is not None) == (kind in WAITS)


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_patience_is_for_who_asks_for_it(kind: FailureKind) -> None:
    assert of(kind).patient == (kind == "rate_limited")


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_a_pages_address_may_have_ended_where_the_provider_does_not_know_it(
    kind: FailureKind,
) -> None:
    assert of(kind).address_ended == (kind in {"not_found", "invalid"})


@pytest.mark.parametrize(
    ("kind", "asked_s", "waits_s"),
    [
        ("rate_limited", None, PATIENT_S),
        ("rate_limited", 0.0, 0.0),
        ("rate_limited", 7.5, 7.5),
        ("rate_limited", LONGEST_WAIT_S, LONGEST_WAIT_S),
        ("rate_limited", LONGEST_WAIT_S + 1, LONGEST_WAIT_S),
        ("rate_limited", float("inf"), LONGEST_WAIT_S),
        ("transient", None, 0.0),
        ("transient", 30.0, 30.0),
        ("transient", 10 * LONGEST_WAIT_S, LONGEST_WAIT_S),
        ("auth", 30.0, None),
        ("provider_error", 30.0, None),
    ],
)
def test_a_wait_is_as_the_provider_says_and_an_hour_at_most(
    kind: FailureKind, asked_s: float | None, waits_s: float | None
) -> None:
    assert of(kind, retry_after_s=asked_s).wait_s == waits_s


def test_the_providers_words_are_told_with_its_status() -> None:
    assert of("invalid", 422, message="no such sort").message == (
        "the provider answered 422: no such sort"
    )
    assert of("transient", 503).message == "the provider answered 503"


def test_its_words_give_no_secret_away_and_stay_one_line() -> None:
    hidden = of("auth", 401, message=f"{TOKEN.reveal_text()} is no token of ours").message
    assert hidden == MASK
    obeyed = of("invalid", message="no\x1b[2J\nsuch thing").message
    assert obeyed.isprintable() and "such thing" in obeyed
    assert len(of("invalid", message="x" * 5000).message) < 400


@pytest.mark.parametrize("error", [ConnectFailed("nobody listens"), ResponseLost("it broke off")])
def test_a_call_that_broke_off_is_made_again(error: EgressError) -> None:
    fault = unanswered(error)
    assert (fault.reason, fault.message) == (error.code, error.message)
    assert (fault.wait_s, fault.patient, fault.address_ended) == (0.0, False, False)


ENDING = [
    Unsendable("a header has a line break"),
    BadIdentity("no certificate"),
    NotPermitted("not below the credential's urls"),
    EgressRefused("api.example:443", ["10.0.0.7"]),
    ResponseTooLarge("more than a MiB", 200),
]


@pytest.mark.parametrize("error", ENDING, ids=lambda each: type(each).__name__)
def test_what_will_be_no_better_next_time_ends_it(error: EgressError) -> None:
    assert unanswered(error) == Fault(error.code, error.message)


def test_every_fault_of_the_way_out_is_among_these() -> None:
    told = {*map(type, ENDING), ConnectFailed, ResponseLost}
    kinds = [each for each in vars(egress_errors).values() if isinstance(each, type)]
    assert {each for each in kinds if issubclass(each, EgressError)} == {*told, EgressError}


def test_a_call_that_cannot_be_made_or_brings_no_page_ends_it() -> None:
    for error in (
        Unlisted("the answer has no list"),
        InvalidArgument("query.since: must be text"),
        FailedPrecondition("the stream is inactive", reason="STREAM_INACTIVE"),
        NotFound("no such provider"),
    ):
        fault = unusable(error, [TOKEN])
        assert fault == Fault(error.code, error.message)
        assert (fault.wait_s, fault.address_ended) == (None, False)
    shown = unusable(InvalidArgument(f"not with {TOKEN.reveal_text()}"), [TOKEN])
    assert TOKEN.reveal_text() not in shown.message
