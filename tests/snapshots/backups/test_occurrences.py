"""Occurrences, compared with an oracle that walks through every minute of the local time."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshots.backups.occurrences import Recurrence, instant, next_occurrence, occurrences_between, preview

BERLIN, YANGON = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Yangon")
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
# +06:30; both hemispheres; half an hour of daylight saving; at midnight; 45 minutes; a whole day left out in 2011
ZONES = [
    "Asia/Yangon",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Africa/Casablanca",
    "UTC",
]
# around daylight saving changes, and on any other day
DAYS = st.one_of(
    st.dates(date(2008, 1, 1), date(2030, 12, 1)),
    st.builds(
        lambda day, shift: day + shift * DAY,
        st.sampled_from(
            [date(2026, 3, 29), date(2026, 10, 25), date(2011, 12, 30), date(2026, 4, 5), date(2018, 11, 4)]
            + [date(2024, 2, 29), date(2026, 2, 28), date(2026, 12, 31)]
        ),
        st.integers(-2, 2),
    ),
)
TIMES = st.one_of(st.times(), st.sampled_from([time(0), time(2), time(2, 30), time(3), time(23, 59), time(1, 45)])).map(
    lambda at: at.replace(second=0, microsecond=0)
)
RULES = st.one_of(
    st.builds(Recurrence, interval=st.just("daily"), at=TIMES),
    st.builds(Recurrence, interval=st.just("weekly"), at=TIMES, weekday=st.integers(0, 6)),
    st.builds(Recurrence, interval=st.just("monthly"), at=TIMES, month_day=st.integers(1, 31)),
)


def runs_on(rule: Recurrence, day: date) -> bool:
    if rule.interval == "weekly":
        return day.weekday() == rule.weekday
    if rule.interval == "monthly":
        is_last = (day + DAY).month != day.month
        return day.day == rule.month_day or (is_last and day.day < rule.month_day)
    return True


def first_minute_at_or_past(day: date, at: time, zone: ZoneInfo) -> datetime:
    """Walk through the minutes until the local time is at or past this one."""
    wanted = datetime.combine(day, at)
    minute = wanted.replace(tzinfo=UTC) - timedelta(hours=27)
    while minute.astimezone(zone).replace(tzinfo=None) < wanted:
        minute += MINUTE
    return minute


@settings(deadline=None, max_examples=150)
@given(DAYS, TIMES, st.sampled_from(ZONES))
def test_a_time_of_day_is_the_first_instant_at_or_after_it_on_the_wall_clock(day: date, at: time, zone: str):
    assert instant(day, at, ZoneInfo(zone)) == first_minute_at_or_past(day, at, ZoneInfo(zone))


@settings(deadline=None, max_examples=60)
@given(RULES, DAYS, st.integers(0, 1439), st.sampled_from(ZONES))
def test_occurrences_are_on_the_days_of_the_recurrence(rule: Recurrence, start: date, minute: int, zone: str):
    after = datetime.combine(start, time(), tzinfo=UTC) + minute * MINUTE
    until = after + 40 * DAY
    days = [start + number * DAY for number in range(-3, 44)]
    expected = sorted({first_minute_at_or_past(day, rule.at, ZoneInfo(zone)) for day in days if runs_on(rule, day)})
    expected = [occurrence for occurrence in expected if after < occurrence <= until]

    assert occurrences_between(rule, ZoneInfo(zone), after, until) == expected
    assert next_occurrence(rule, ZoneInfo(zone), after) == expected[0]


@given(RULES, DAYS, st.sampled_from(ZONES))
def test_iterating_occurrences_gives_the_same_as_listing_them(rule: Recurrence, start: date, zone: str):
    after = datetime.combine(start, time(), tzinfo=UTC)
    occurrences, at = [], after
    while (at := next_occurrence(rule, ZoneInfo(zone), at)) <= after + 100 * DAY:
        occurrences.append(at)
    assert occurrences == occurrences_between(rule, ZoneInfo(zone), after, after + 100 * DAY)


def test_a_zone_with_a_half_hour_offset_is_converted():
    rule = Recurrence(interval="daily", at=time(2))
    assert next_occurrence(rule, YANGON, datetime(2026, 11, 22, tzinfo=UTC)) == datetime(
        2026, 11, 22, 19, 30, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("day", "at", "expected"),
    [
        (date(2026, 3, 29), time(2, 30), datetime(2026, 3, 29, 1, tzinfo=UTC)),  # left out: 03:00 is the first instant
        (date(2026, 10, 25), time(2, 30), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),  # twice: the first
        (date(2026, 10, 25), time(3), datetime(2026, 10, 25, 2, tzinfo=UTC)),
    ],
)
def test_skipped_times_run_after_the_gap_and_repeated_ones_once(day: date, at: time, expected: datetime):
    assert instant(day, at, BERLIN) == expected
    recurrence = Recurrence(interval="daily", at=at)
    assert occurrences_between(recurrence, BERLIN, expected - MINUTE, expected + timedelta(hours=20)) == [expected]


def test_a_day_that_the_month_does_not_have_is_its_last():
    rule = Recurrence(interval="monthly", at=time(12), month_day=31)
    occurrences = occurrences_between(
        rule, ZoneInfo("UTC"), datetime(2028, 1, 1, tzinfo=UTC), datetime(2028, 7, 1, tzinfo=UTC)
    )
    assert [occurrence.date() for occurrence in occurrences] == [
        date(2028, 1, 31),
        date(2028, 2, 29),
        date(2028, 3, 31),
        date(2028, 4, 30),
        date(2028, 5, 31),
        date(2028, 6, 30),
    ]


def test_the_preview_shows_kept_and_deleted_backups():
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    one, two, three = (datetime(2026, 11, day, 2, tzinfo=UTC) for day in (23, 24, 25))
    first, second, third = preview(
        Recurrence(interval="daily", at=time(2)), ZoneInfo("UTC"), now, count=3, retention_count=2, existing=[now]
    )
    assert (first.at, first.backups, first.deleted) == (one, (now, one), ())
    assert (second.at, second.backups, second.deleted) == (two, (one, two), (now,))
    assert (third.at, third.backups, third.deleted) == (three, (two, three), (one,))
