"""When something recurs, to the minute: clocks put forward and back, misses, jitter."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.recurrence import Recurrence, RecurrenceError

START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@given(
    st.timedeltas(timedelta(seconds=60), timedelta(days=366)),
    st.timedeltas(timedelta(), timedelta(days=4000)),
)
def test_every_keeps_its_beat_and_skips_what_was_missed(every: timedelta, away: timedelta) -> None:
    moment = Recurrence(every).next(START, START + away)
    assert START + away < moment <= START + away + every
    assert (moment - START) % every == timedelta()


@pytest.mark.parametrize(
    ("cron", "zone", "now", "moment"),
    [
        ("*/15 * * * *", "UTC", "2026-03-01T12:15:00Z", "2026-03-01T12:30:00Z"),
        ("0 9 * * MON-FRI", "Europe/Berlin", "2026-07-03T08:00:00Z", "2026-07-06T07:00:00Z"),
        ("0 9 29 2 *", "UTC", "2026-03-01T00:00:00Z", "2028-02-29T09:00:00Z"),
        # 02:30 is skipped, and comes when the clocks have been put forward.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
        # 02:30 comes twice and is taken once.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ("0 0 1 1 *", "Asia/Kolkata", "2026-06-01T00:00:00Z", "2026-12-31T18:30:00Z"),
    ],
)
def test_a_cron_goes_by_the_clock_of_its_zone(cron: str, zone: str, now: str, moment: str) -> None:
    recurrence = Recurrence(cron=cron, timezone=zone)
    recurrence.check()
    assert recurrence.next(at("2020-01-01T00:00:00Z"), at(now)) == at(moment)


@given(MOMENTS, st.binary(min_size=16, max_size=16))
def test_jitter_is_bounded_and_always_the_same(moment: datetime, key: bytes) -> None:
    recurrence = Recurrence(MINUTE, jitter=timedelta(seconds=30))
    late = recurrence.late(moment, key)
    assert moment <= late < moment + timedelta(seconds=30)
    assert late == recurrence.late(moment, key)


def test_jitter_spreads_schedules_and_times() -> None:
    recurrence = Recurrence(MINUTE, jitter=timedelta(seconds=30))
    by_key = {recurrence.late(START, bytes([n])) for n in range(50)}
    by_time = {recurrence.late(START + n * MINUTE, b"a") - n * MINUTE for n in range(50)}
    assert len(by_key) > 40 and len(by_time) > 40
    assert Recurrence(MINUTE).late(START, b"a") == START


@pytest.mark.parametrize(
    ("recurrence", "field", "words"),
    [
        (Recurrence(), "", "either every or cron"),
        (Recurrence(MINUTE, cron="* * * * *"), "", "either every or cron"),
        (Recurrence(timedelta(seconds=59)), "every", "from 60s"),
        (Recurrence(timedelta(days=367)), "every", "366 days"),
        (Recurrence(MINUTE, jitter=timedelta(seconds=-1)), "jitter", "from 0s"),
        (Recurrence(MINUTE, jitter=timedelta(seconds=3601)), "jitter", "3600s"),
        (Recurrence(MINUTE, timezone="Europe/Berlin"), "timezone", "belongs to cron"),
        (Recurrence(cron="* * * *"), "cron", "five fields"),
        (Recurrence(cron="0 * * * * *"), "cron", "five fields"),
        (Recurrence(cron="61 * * * *"), "cron", "bad minute"),
        (Recurrence(cron="0 0 30 2 *"), "cron", "bad day-of-month"),
        (Recurrence(cron="* * * * *", timezone="Berlin"), "timezone", "time zone"),
        (Recurrence(cron="* * * * *", timezone="../etc/passwd"), "timezone", "time zone"),
        (Recurrence(cron="* * * * *", timezone="Europe"), "timezone", "time zone"),
        (Recurrence(cron="* * * * *", timezone="a\0b"), "timezone", "time zone"),
    ],
)
def test_what_says_no_time_is_refused_in_words(
    recurrence: Recurrence, field: str, words: str
) -> None:
    with pytest.raises(RecurrenceError, match=words) as refused:
        recurrence.check()
    assert refused.value.field == field
