"""What endpoints answer has a meaning, whatever they answer."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.executor.deliveries.verdicts import LONGEST_WAIT_S, retry_after

NOW = 1_700_000_000.0
DATE = st.from_regex(
    r"\A[A-Z][a-z]{2}, [0-9]{1,12} Jan [0-9]{1,24} [0-9]{1,4}:[0-9]{1,4}:[0-9]{1,4} [+-]?[0-9]{1,24}\Z"
)


@given(st.text() | DATE)
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Mon, 01 Jan 2026 00:00:00 +99999999999999999999")
@example("9" * 5000)
def test_no_retry_after_fails_or_asks_for_more_than_a_day(text: str) -> None:
    assert 0.0 <= retry_after({"retry-after": text}, NOW) <= LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("120", 120.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 30.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("soon", 0.0),
    ],
)
def test_a_retry_after_is_a_number_of_seconds_or_a_moment(text: str, wait_s: float) -> None:
    assert retry_after({"retry-after": text}, NOW) == wait_s
