from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from billing import rating
from billing.rating import Price, Usage
from cng_portal.common import money

YANGON = ZoneInfo("Asia/Yangon")
BERLIN = ZoneInfo("Europe/Berlin")
KYAT_0_40 = [Price(since=datetime(2026, 1, 1, tzinfo=UTC), rate_micro=400_000, id=1)]


def rate(usage: Usage, **window) -> list[rating.Line]:
    """Rate the usage in kyat, which has two decimals."""
    return rating.rate(usage, **window, unit_micro=10_000)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cost(start: datetime, end: datetime | None, *, at: datetime | None = None, size_gb: int = 50) -> tuple[int, int]:
    at = at or end
    lines = rate(
        Usage(started_at=start, ended_at=end, size_gb=size_gb),
        since=start - timedelta(days=40),
        until=at + timedelta(days=40),
        at=at,
        prices=KYAT_0_40,
    )
    return sum(line.hours for line in lines), sum(line.amount_micro for line in lines)


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        ("2026-11-05 10:17:23", "2026-11-05 13:02:10", 3),
        ("2026-11-05 10:17:23", "2026-11-05 10:32:23", 1),  # 15 minutes
        ("2026-11-05 10:00:00", "2026-11-05 11:00:00", 1),  # exactly 1 h
        ("2026-11-05 10:00:00", "2026-11-05 11:00:01", 2),
        ("2026-11-05 10:00:00", "2026-11-05 11:00:00.000001", 2),
        ("2026-11-05 10:50:00", "2026-11-05 11:05:00", 1),
        ("2026-11-05 10:00:00", "2026-11-05 10:00:00", 1),
        ("2026-11-05 10:00:00", "2026-11-05 12:45:00", 3),
    ],
)
def test_a_started_hour_is_charged_whole_and_hours_count_from_the_start(start, end, hours):
    assert rating.hours(instant(start), instant(end)) == hours
    assert cost(instant(start), instant(end)) == (hours, hours * 20_000_000)


def test_a_snapshot_open_through_all_of_november_has_720_hours():
    november = rating.windows(
        month=date(2026, 11, 1),
        since=rating.month_start(date(2026, 11, 1), YANGON),
        at=datetime(2026, 11, 15, tzinfo=UTC),
        zone=YANGON,
    )
    assert len(november) == 1
    usage = Usage(started_at=datetime(2026, 10, 3, 4, 5, 6, tzinfo=UTC), ended_at=None, size_gb=50)
    lines = rate(
        usage,
        since=november[0].since,
        until=november[0].until,
        at=november[0].until,
        prices=KYAT_0_40,
    )
    assert [(line.hours, line.amount_micro) for line in lines] == [(720, 14_400_000_000)]


def test_an_hour_belongs_to_the_month_in_which_it_starts():
    usage = Usage(started_at=instant("2026-10-31 23:30:00"), ended_at=instant("2026-11-01 01:00:00"), size_gb=1)
    first = instant("2026-11-01 00:00:00")
    october = rate(usage, since=instant("2026-10-01"), until=first, at=instant("2026-12-01"), prices=KYAT_0_40)
    november = rate(usage, since=first, until=instant("2026-12-01"), at=instant("2026-12-01"), prices=KYAT_0_40)
    assert [(line.from_at, line.to_at, line.hours) for line in october] == [
        (instant("2026-10-31 23:30:00"), instant("2026-11-01 00:30:00"), 1)
    ]
    assert [(line.from_at, line.to_at, line.hours) for line in november] == [
        (instant("2026-11-01 00:30:00"), instant("2026-11-01 01:00:00"), 1)
    ]


def test_a_new_price_applies_to_hours_that_start_at_or_after_it():
    prices = [*KYAT_0_40, Price(since=instant("2026-11-05 12:00:00"), rate_micro=500_000, id=2)]
    usage = Usage(started_at=instant("2026-11-05 10:30:00"), ended_at=instant("2026-11-05 13:30:00"), size_gb=10)
    lines = rate(
        usage,
        since=instant("2026-11-01"),
        until=instant("2026-12-01"),
        at=instant("2026-12-01"),
        prices=prices,
    )
    assert [(line.hours, line.rate_micro, line.amount_micro) for line in lines] == [
        (2, 400_000, 8_000_000),
        (1, 500_000, 5_000_000),
    ]


def test_hours_before_the_first_price_have_no_amount():
    usage = Usage(started_at=instant("2025-12-31 22:00:00"), ended_at=instant("2026-01-01 02:00:00"), size_gb=10)
    lines = rate(
        usage,
        since=instant("2025-12-01"),
        until=instant("2026-02-01"),
        at=instant("2026-02-01"),
        prices=KYAT_0_40,
    )
    assert [(line.hours, line.amount_micro) for line in lines] == [(2, None), (2, 8_000_000)]


def test_automatic_backups_cost_a_fifth_of_the_virtual_machine():
    usage = Usage(
        started_at=instant("2026-11-05 10:00:00"), ended_at=instant("2026-11-05 12:45:00"), base_rate_micro=123_456_789
    )
    [line] = rate(
        usage,
        since=instant("2026-11-01"),
        until=instant("2026-12-01"),
        at=instant("2026-12-01"),
        prices=[],
    )
    assert (line.hours, line.amount_micro) == (3, 74_070_000)  # 3 × 123.456789 × 0.2 = 74.0740734


def test_hours_are_real_hours_when_the_clock_changes():
    start = datetime(2026, 10, 25, 0, 30, tzinfo=BERLIN)
    end = datetime(2026, 10, 25, 4, 30, tzinfo=BERLIN)
    assert rating.hours(start, end) == 5


def test_an_end_before_the_start_is_refused():
    with pytest.raises(ValueError, match="before the start"):
        rating.hours(instant("2026-11-02"), instant("2026-11-01"))
    with pytest.raises(ValueError, match="before its start"):
        rate(
            Usage(started_at=instant("2026-11-01"), ended_at=None, size_gb=1),
            since=instant("2026-11-02"),
            until=instant("2026-11-01"),
            at=instant("2026-11-03"),
            prices=KYAT_0_40,
        )


def test_a_month_after_a_change_of_time_zone_begins_where_the_last_one_ended():
    months = rating.windows(
        month=date(2026, 12, 1),
        since=rating.month_start(date(2026, 12, 1), YANGON),
        at=instant("2027-01-15"),
        zone=ZoneInfo("America/New_York"),
    )
    assert [(window.month, window.since, window.until) for window in months] == [
        (date(2026, 12, 1), instant("2026-11-30 17:30:00"), instant("2027-01-01 05:00:00")),
        (date(2027, 1, 1), instant("2027-01-01 05:00:00"), instant("2027-02-01 05:00:00")),
    ]


@pytest.mark.parametrize(("currency", "amount_micro"), [("JPY", 21_000_000), ("MMK", 20_560_000), ("KWD", 20_556_000)])
def test_an_amount_is_rounded_to_the_digits_of_its_currency(currency, amount_micro):
    exact = {"hours": 3, "rate_micro": 1_370_407, "size_gb": 5}  # 20.556105
    assert rating.line_amount(**exact, unit_micro=money.unit_micro(currency)) == amount_micro
    assert rating.hourly_micro(rate_micro=1_370_407, size_gb=5) == 6_852_035
