"""Which months are wanted, and which have had their time."""

from datetime import UTC, date, datetime, time, timedelta, timezone

import pytest

from services.chassis.partitions import has_had_its_time, longest_kept, wanted

DAYS_90 = timedelta(days=90)


@pytest.mark.parametrize(
    ("now", "months"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), ["2025-12", "2026-01", "2026-02"]),
        (datetime(2026, 12, 31, 23, 59, tzinfo=UTC), ["2026-11", "2026-12", "2027-01"]),
        # Still February in UTC.
        (datetime(2028, 3, 1, 1, tzinfo=timezone(timedelta(hours=2))), ["2028-01", "2028-02", "2028-03"]),
    ],
)  # fmt: skip
def test_the_last_month_this_one_and_the_next_are_wanted(now: datetime, months: list[str]) -> None:
    assert [f"{month:%Y-%m}" for month in wanted(now)] == months


@pytest.mark.parametrize(
    ("month", "now", "retention", "gone"),
    [
        # 90 days after 1 April is 30 June.
        (date(2026, 3, 1), datetime(2026, 6, 29, 23, 59, 59, tzinfo=UTC), DAYS_90, False),
        (date(2026, 3, 1), datetime(2026, 6, 30, tzinfo=UTC), DAYS_90, True),
        (date(2025, 12, 1), datetime(2026, 4, 1, tzinfo=UTC), DAYS_90, True),
        # Two behind stay, however short the retention.
        (date(2026, 4, 1), datetime(2026, 6, 30, tzinfo=UTC), timedelta(days=1), False),
        (date(2026, 3, 1), datetime(2026, 6, 1, tzinfo=UTC), timedelta(days=1), True),
        (date(2026, 8, 1), datetime(2026, 6, 1, tzinfo=UTC), timedelta(days=-400), False),
        (date(2020, 1, 1), datetime(2026, 6, 1, tzinfo=UTC), timedelta(days=3650), False),
    ],
)
def test_a_month_goes_when_all_of_it_is_old(
    month: date, now: datetime, retention: timedelta, gone: bool
) -> None:
    assert has_had_its_time(month, now, retention) is gone


@pytest.mark.parametrize("days", [0, 1, 61, 62, 90, 365])
def test_nothing_is_kept_longer_than_is_said(days: int) -> None:
    retention, ages = timedelta(days=days), list[timedelta]()
    for number in range(48):
        month = date(2026 + number // 12, number % 12 + 1, 1)
        begin = now = datetime.combine(month, time(), UTC)
        while not has_had_its_time(month, now, retention):
            now += timedelta(days=1)
        ages.append(now - begin)
    assert max(ages) == longest_kept(retention)
