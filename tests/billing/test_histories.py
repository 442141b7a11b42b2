"""Random histories, compared with the oracle on both databases. HISTORIES=1000 runs more."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from django.db import connection, transaction
from django.db.models import Sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import bulk, closing, verification
from billing.balance import get_standing, open_windows, with_ledger
from billing.charges import costs_so_far, due_lines, total_charged
from billing.models import Invoice, InvoiceLine, PriceVersion, ServiceKind, UsageSegment, WalletTransaction
from billing.pricing.packages import correct_price, create_package, set_price
from billing.usage import change_usage, close_segment, closed_until, open_segment
from billing.wallet import buy_credits, expire_credits, grant_credits
from cng_portal.accounts.models import Customer
from cng_portal.common import money
from cng_portal.inventory.models import Location, Volume
from snapshots.usage_check import check_usage
from snapshots.volumes.charges import (
    change_volume_charge,
    charge_volumes,
    start_charging_volume,
    stop_charging_volume,
)
from tests.billing import oracle
from tests.factories import ProjectFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.both_databases]

HISTORIES = int(os.environ.get("HISTORIES", "40"))
EPOCH = datetime(2040, 2, 25, tzinfo=UTC)  # a leap year; both daylight saving changes are within the range
RANGE = 75 * 86_400
FIRST_PRICE = datetime(2026, 1, 1, tzinfo=UTC)  # has begun by the database's clock, so it can be corrected
CURRENCIES = ["MMK", "MMK", "EUR", "JPY", "KWD"]
ZONES = ["Asia/Yangon", "Europe/Berlin", "America/New_York", "UTC", "Australia/Lord_Howe"]
KIND = ServiceKind.BS_SNAPSHOT
AUTOMATIC = ServiceKind.VM_BACKUP_AUTOMATIC
VOLUME = ServiceKind.BLOCK_STORAGE
relaxed = settings(
    max_examples=HISTORIES,
    derandomize="HISTORIES" not in os.environ,  # the same histories in every run, and new ones with HISTORIES
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# instants cluster around hours, days and month ends, where errors are likely
boundaries = st.sampled_from([0, 1, -1, 3600, 3599, 3601, 1800, 23_400, 23_399, -7200, -3600])
month_ends = st.sampled_from([5, 36, 66]).map(lambda day: day * 86_400 - 23_400)
seconds = st.one_of(
    st.integers(0, RANGE),
    st.builds(lambda day, shift: max(0, day * 86_400 + shift), st.integers(0, 74), boundaries),
    st.builds(lambda end, shift: max(0, end + shift), month_ends, boundaries),
)
instants = st.builds(
    lambda second, microsecond: EPOCH + timedelta(seconds=second, microseconds=microsecond),
    seconds,
    st.sampled_from([0, 0, 0, 1, 999_999, 500_000]),
)
lives = st.one_of(
    st.none(),
    st.integers(0, 3 * 3600),
    st.integers(0, 40 * 86_400),
    st.sampled_from([0, 900, 3600, 3601, 7200]),
)
delays = st.one_of(st.just(0), st.just(0), st.just(0), st.integers(0, 60), st.integers(0, 30 * 86_400))
rates = st.one_of(st.sampled_from([400_000, 0, 1, 999_999, 33_333, 12_345]), st.integers(0, 5_000_000))


@dataclass
class Event:
    at: datetime
    arrives: datetime
    resource: int
    kind: str
    action: str  # open, close, change, move
    amount: int = 0  # GB, the VM's price in millionths, or the number of the project
    repeats: int = 1
    crashes: bool = False


@dataclass
class History:
    zone: str
    prices: list[tuple[datetime, int]]
    events: list[Event] = field(default_factory=list)
    credits: int = 0
    checks: list[datetime] = field(default_factory=list)
    currency: str = "MMK"
    correction: tuple[datetime, int] | None = None  # when the first price is corrected, and to what
    volume_prices: list[tuple[datetime, int]] = field(default_factory=lambda: [(FIRST_PRICE, 100_000)])
    volume_correction: tuple[datetime, int] | None = None


def corrections_of(prices: list[tuple[datetime, int]]) -> st.SearchStrategy:
    """Draw (instant, rate) of a correction of the first price, which must have started by the database's clock, or None."""
    start, rate = prices[0]
    if start != FIRST_PRICE or not rate:
        return st.none()
    return st.one_of(st.none(), st.none(), st.tuples(instants, st.integers(0, rate - 1)))


@st.composite
def histories(draw: st.DrawFn) -> History:
    starts = sorted({FIRST_PRICE, *draw(st.lists(instants, max_size=3))})
    prices = [(start, draw(rates)) for start in starts]
    currency = draw(st.sampled_from(CURRENCIES))
    # The package of volumes may be older than everything, or be added while volumes exist.
    sold_since = draw(st.one_of(st.just(FIRST_PRICE), instants))
    later = [start for start in draw(st.lists(instants, max_size=2)) if start > sold_since]
    volume_prices = [(start, draw(rates)) for start in sorted({sold_since, *later})]
    history = History(
        zone=draw(st.sampled_from(ZONES)),
        prices=prices,
        currency=currency,
        correction=draw(corrections_of(prices)),
        volume_prices=volume_prices,
        volume_correction=draw(corrections_of(volume_prices)),
        credits=draw(st.integers(0, 10**7)) * money.unit_micro(currency),
        checks=sorted(draw(st.lists(instants, max_size=3))),
    )
    for resource in range(draw(st.integers(1, 5))):
        start, life = draw(instants), draw(lives)
        arrives = start + timedelta(seconds=draw(delays))
        history.events.append(Event(start, arrives, resource, KIND, "open", draw(st.integers(1, 5000))))
        if life is not None:
            end = start + timedelta(seconds=life)
            history.events.append(
                Event(end, max(arrives, end + timedelta(seconds=draw(delays))), resource, KIND, "close")
            )
    for resource in range(100, 100 + draw(st.integers(0, 2))):
        instant, arrives, on = draw(instants), EPOCH, False
        for _step in range(draw(st.integers(1, 5))):
            action = draw(st.sampled_from(["close", "change"])) if on else "open"
            arrives = max(arrives, instant + timedelta(seconds=draw(delays)))
            history.events.append(Event(instant, arrives, resource, AUTOMATIC, action, draw(st.integers(0, 10**9))))
            on = action != "close"
            instant += timedelta(seconds=draw(st.one_of(st.integers(1, 7200), st.integers(1, 40 * 86_400))))
    for resource in range(200, 200 + draw(st.integers(0, 2))):
        instant, size_gb, project, action = draw(instants), draw(st.integers(1, 5000)), 0, "open"
        for _step in range(draw(st.integers(1, 6))):
            amount = project if action == "move" else size_gb
            history.events.append(Event(instant, instant, resource, VOLUME, action, amount))
            if action == "close":
                break
            instant += timedelta(seconds=draw(st.one_of(st.integers(1, 7200), st.integers(1, 40 * 86_400))))
            action = draw(st.sampled_from(["change", "change", "move", "close"]))
            size_gb += draw(st.integers(0, 100)) if action == "change" else 0
            project = 1 - project if action == "move" else project
    for event in history.events:
        event.repeats = draw(st.sampled_from([1, 1, 1, 2]))
        event.crashes = draw(st.sampled_from([False, False, False, True]))
    history.events.sort(key=lambda event: event.arrives)
    return history


def stays_of(events: list[Event], volumes_sold_since: datetime) -> list[oracle.Stay]:
    """Return the stays that follow from the events that have arrived."""
    stays = []
    changes = defaultdict(list)
    volumes: dict[int, list] = defaultdict(list)
    for event in events:
        if event.kind == VOLUME:
            own = volumes[event.resource]
            size_gb, project = own[-1][1] if own else (0, 0)
            states = {"close": None, "move": (size_gb, event.amount)}
            own.append((event.at, states.get(event.action, (event.amount, project))))
        elif event.kind == AUTOMATIC:
            changes[event.resource].append(
                (event.at, None if event.action == "close" else Fraction(event.amount, 10**6))
            )
        elif event.action == "open":
            ends = [other.at for other in events if other.resource == event.resource and other.action == "close"]
            stays.append(oracle.Stay(event.resource, event.at, ends[0] if ends else None, event.amount, kind=KIND))
    for resource, own in changes.items():
        stays += oracle.switched(own, resource)
    for resource, own in volumes.items():
        stays += oracle.resized(own, resource, VOLUME, volumes_sold_since)
    return stays


class Crash(Exception):
    pass


class Player:
    def __init__(self, history: History, location: Location | None = None) -> None:
        self.history = history
        self.arrived: list[Event] = []
        self.prices = {KIND: list(history.prices), VOLUME: list(history.volume_prices)}
        self.project = ProjectFactory(customer__time_zone=history.zone, customer__currency=history.currency)
        self.customer = self.project.customer
        self.projects = [self.project, ProjectFactory(customer=self.customer)]
        if location:
            self.location = location
            return
        self.location = Location.objects.create(code="1CNG-YGN-AZ01", city="Yangon", country="MM", region="asia")
        for kind, (first, *later) in self.prices.items():
            package = create_package(
                location=self.location, kind=kind, currency=history.currency, rate_micro=first[1], starts_at=first[0]
            )
            for start, rate in later:
                set_price(package=package, rate_micro=rate, starts_at=start, by=None, at=EPOCH - timedelta(days=9))
        if history.credits:
            buy_credits(
                customer=self.customer,
                amount_micro=history.credits,
                reason="paid",
                by=None,
                key="credits",
                at=EPOCH - timedelta(days=1),
            )

    def charge_older_volumes(self, now: datetime) -> None:
        """Charge existing volumes, as the scheduler does once the first price starts."""
        if now >= self.history.volume_prices[0][0]:
            charge_volumes(at=self.history.volume_prices[0][0])

    def deliver(self, event: Event) -> None:
        self.charge_older_volumes(event.arrives)
        if event.crashes:
            with pytest.raises(Crash), transaction.atomic():
                self.call(event)
                raise Crash
        for _time in range(event.repeats):
            self.call(event)
        self.arrived.append(event)

    def call(self, event: Event) -> None:
        resource_id = UUID(int=event.resource + 1)
        if event.kind == VOLUME:
            self.change_volume(resource_id, event)
        elif event.action == "close":
            close_segment(resource_id=resource_id, kind=event.kind, at=event.at)
        elif event.action == "change":
            change_usage(resource_id=resource_id, kind=event.kind, base_rate_micro=event.amount, at=event.at)
        else:
            automatic = event.kind == AUTOMATIC
            open_segment(
                resource_id=resource_id,
                kind=event.kind,
                name=f"disk-{event.resource}",
                project=self.project,
                location=self.location,
                size_gb=0 if automatic else event.amount,
                base_rate_micro=event.amount if automatic else None,
                at=event.at,
            )

    def change_volume(self, volume_id: UUID, event: Event) -> None:
        if event.action == "open":
            fields = {"project": self.project, "location": self.location, "size_gb": event.amount}
            fields |= {"name": f"disk-{event.resource}", "available_at": event.at}
            volume, _created = Volume.objects.get_or_create(pk=volume_id, defaults=fields)
            start_charging_volume(volume, at=event.at)
            return
        fields = {
            "close": {"state": Volume.State.DELETING, "delete_requested_at": event.at},
            "change": {"size_gb": event.amount},
            "move": {"project": self.projects[event.amount % 2]},
        }[event.action]
        Volume.objects.filter(pk=volume_id).update(**fields)
        action = stop_charging_volume if event.action == "close" else change_volume_charge
        action(Volume.objects.get(pk=volume_id), at=event.at)

    def correct_first_price(self, kind: str, rate_micro: int) -> None:
        version = PriceVersion.objects.get(starts_at=FIRST_PRICE, package__kind=kind)
        correct_price(version=version, rate_micro=rate_micro, reason="typo", by=None)
        self.prices[kind][0] = FIRST_PRICE, rate_micro

    def expected(self, now: datetime) -> dict:
        return oracle.bill(
            stays_of(self.arrived, self.history.volume_prices[0][0]),
            prices={
                kind: [(start, Fraction(rate, 10**6)) for start, rate in prices] for kind, prices in self.prices.items()
            },
            zone=ZoneInfo(self.history.zone),
            now=now,
            digits=money.digits(self.history.currency),
        )

    def check(self, now: datetime) -> None:
        """Compare the balance and each resource's cost, from SQL and from Python, with the oracle."""
        self.charge_older_volumes(now)
        expected = self.expected(now)
        standing = get_standing(customer=self.customer, at=now)
        owed = sum(amount for _hours, amount in expected.values())
        assert Fraction(standing.balance_micro, 10**6) == Fraction(self.history.credits, 10**6) - owed
        assert total_charged(customer=self.customer, at=now) == owed * 10**6
        resources = {key[0] for key in expected}
        costs = costs_so_far([UUID(int=resource + 1) for resource in resources], now)
        for resource in resources:
            own = [value for key, value in expected.items() if key[0] == resource]
            cost = costs[UUID(int=resource + 1)]
            assert cost.hours == sum(hours for hours, _amount in own)
            assert Fraction(cost.amount_micro, 10**6) == sum(amount for _hours, amount in own)


def invoiced() -> dict:
    """Return all invoice lines, including corrections, in the oracle's format."""
    invoiced_hours: dict = defaultdict(lambda: [0, Fraction(0)])
    for line in InvoiceLine.objects.select_related("segment", "price_version"):
        since = line.price_version.starts_at if line.price_version else None
        own = invoiced_hours[line.resource_id.int - 1, line.segment.started_at, line.month, since]
        own[0] += line.hours
        own[1] += Fraction(line.amount_micro, 10**6)
    return {key: (hours, amount) for key, (hours, amount) in invoiced_hours.items() if hours}


def check_books(at: datetime) -> None:
    for invoice in Invoice.objects.all():
        total = invoice.lines.aggregate(total=Sum("amount_micro", default=0))["total"]
        assert invoice.total_micro == total
        assert total % money.unit_micro(invoice.currency) == 0
        moved = [move.wallet_micro for move in invoice.transactions.all()]
        assert moved == ([-total] if total else [])
    assert [invoice.sequence for invoice in Invoice.objects.order_by("month")] == list(
        range(1, Invoice.objects.count() + 1)
    )
    for move in WalletTransaction.objects.all():
        assert sum(amount for _account, amount in move.entries) == 0
    assert verification.differences(at=at) == []
    # Nothing but volumes exists in these histories.
    assert [sentence for sentence in check_usage(at) if ": volume “" in sentence] == []


@relaxed
@given(histories())
def test_any_history_costs_what_the_oracle_computes(history: History):
    with transaction.atomic():
        player = Player(history)
        closings = [EPOCH + timedelta(days=day, hours=20) for day in (10, 36, 66)]
        corrections = [(KIND, history.correction), (VOLUME, history.volume_correction)]
        timeline: list = [(event.arrives, 0, index, event) for index, event in enumerate(history.events)]
        timeline += [(instant, 1, 0, None) for instant in history.checks]
        timeline += [(instant, 2, 0, None) for instant in closings]
        timeline += [(correction[0], 3, 0, (kind, correction[1])) for kind, correction in corrections if correction]
        for instant, action, _index, event in sorted(timeline, key=lambda entry: entry[:3]):
            if action == 0:
                player.deliver(event)
            elif action == 1:
                player.check(max(instant, closed_until(player.customer.pk) or instant))
            elif action == 3:
                player.correct_first_price(*event)
                player.check(max(instant, closed_until(player.customer.pk) or instant))
            else:
                player.charge_older_volumes(instant)
                closing.close_months(at=instant)
                assert closing.close_months(at=instant).invoices == 0
                player.check(instant)
        end = datetime(2040, 6, 20, tzinfo=UTC)
        player.charge_older_volumes(end)
        closing.close_months(at=end)
        player.check(end)
        months_over = {key: value for key, value in player.expected(end).items() if key[2].month < 6}
        assert invoiced() == months_over
        check_books(end)
        connection.check_constraints()
        transaction.set_rollback(True)


grants = st.lists(
    st.tuples(instants, st.integers(1, 10**7), st.one_of(st.none(), st.integers(1, 60 * 86_400))),
    min_size=1,
    max_size=4,
)


@settings(relaxed, max_examples=max(10, HISTORIES // 5))
@given(histories(), grants)
def test_credits_that_expire_in_any_history_are_what_verification_recomputes(history: History, granted):
    """Some are recorded at once, others weeks later, and usage may arrive after the expiry that it would have reduced."""
    with transaction.atomic():
        player = Player(history)
        for number, (start, units, life) in enumerate(granted):
            grant_credits(
                customer=player.customer,
                amount_micro=units * money.unit_micro(history.currency),
                reason="gift",
                by=None,
                key=f"grant-{number}",
                at=start,
                expires_at=start + timedelta(seconds=life) if life else None,
            )
        timeline = [(event.arrives, 0, index, event) for index, event in enumerate(history.events)]
        timeline += [(instant, 1, 0, None) for instant in history.checks]
        timeline += [(EPOCH + timedelta(days=day, hours=20), 2, 0, None) for day in (10, 36, 66)]
        for instant, action, _index, event in sorted(timeline, key=lambda entry: entry[:3]):
            if action == 0:
                player.deliver(event)
            elif action == 1:
                expire_credits(at=instant)
            else:
                player.charge_older_volumes(instant)
                closing.close_months(at=instant)
                assert verification.differences(at=instant) == []
        end = datetime(2040, 6, 20, tzinfo=UTC)
        player.charge_older_volumes(end)
        closing.close_months(at=end)
        assert verification.differences(at=end) == []
        expire_credits(at=end)
        assert verification.differences(at=end) == []
        transaction.set_rollback(True)


@settings(relaxed, max_examples=max(10, HISTORIES // 5))
@given(histories(), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_any_partition_and_order_of_closing_gives_the_same_invoices(history: History, groups, random):
    """Four customers have the same history and are closed together or separately, month by month or at once."""
    outcomes = []
    for at_once in (True, False):
        with transaction.atomic():
            players = []
            for copy in range(4):
                player = Player(history, location=players[0].location if players else None)
                players.append(player)
                for event in history.events:
                    shifted = Event(**event.__dict__ | {"resource": event.resource + 1000 * copy, "crashes": False})
                    player.deliver(shifted)
                player.charge_older_volumes(EPOCH + timedelta(days=100))
            ids = [player.customer.pk for player in players]
            end = datetime(2040, 6, 20, tzinfo=UTC)
            if at_once:
                closing.close_months(at=end)
            else:
                parts = [[pk for pk, group in zip(ids, groups, strict=True) if group == number] for number in range(4)]
                random.shuffle(parts)
                for month in range(2, 6):
                    for part in parts:
                        closing.close_months(at=end, through=datetime(2040, month, 1).date(), customer_ids=part)
                closing.close_months(at=end)
            outcomes.append(
                [
                    [
                        (one.sequence, one.month, one.starts_at, one.ends_at, one.total_micro, one.line_count)
                        + tuple(
                            one.lines.order_by("resource_id", "from_at").values_list(
                                "kind", "resource_name", "from_at", "to_at", "hours", "rate_micro", "amount_micro"
                            )
                        )
                        for one in player.customer.invoices.order_by("month")
                    ]
                    for player in players
                ]
            )
            transaction.set_rollback(True)
    assert outcomes[0] == outcomes[1]


@settings(relaxed, max_examples=max(10, HISTORIES // 5))
@given(
    st.integers(0, 10 * 86_400), st.integers(0, 10 * 86_400), st.integers(1, 5000), st.integers(0, 3 * 86_400), rates
)
def test_a_shift_inside_the_month_changes_nothing_and_more_never_costs_less(start, life, size_gb, shift, rate):
    with transaction.atomic():
        player = Player(History(zone="Asia/Yangon", prices=[(EPOCH - timedelta(days=30), rate)]))
        begin = EPOCH + timedelta(days=6, seconds=start)

        def cost(number: int, at: datetime, life: int, size_gb: int) -> int:
            event = Event(at, at, number, KIND, "open", size_gb)
            player.call(event)
            player.call(Event(at + timedelta(seconds=life), at, number, KIND, "close"))
            costs = costs_so_far([UUID(int=number + 1)], EPOCH + timedelta(days=200))
            return costs[UUID(int=number + 1)].amount_micro

        base = cost(1, begin, life, size_gb)
        assert cost(2, begin + timedelta(seconds=shift), life, size_gb) == base
        assert cost(3, begin, life + shift, size_gb) >= base
        assert cost(4, begin, life, size_gb + 1) >= base
        transaction.set_rollback(True)


@settings(relaxed, max_examples=max(10, HISTORIES // 5))
@given(histories())
def test_sql_and_python_give_the_same_lines(history: History):
    """Every line that closing a month would insert equals the line that `rating.rate` returns for the segment."""
    with transaction.atomic():
        player = Player(history)
        for event in history.events:
            player.deliver(event)
        now = EPOCH + timedelta(days=80)
        player.charge_older_volumes(now)
        for kind, correction in ((KIND, history.correction), (VOLUME, history.volume_correction)):
            if correction:
                player.correct_first_price(kind, correction[1])
        windows = open_windows(with_ledger(Customer.objects.all(), at=now), now)
        python = {
            (due.segment.pk, due.month, due.line.from_at): (due.line.to_at, due.line.hours, due.line.amount_micro)
            for due in due_lines(customer=player.customer, at=now, segments=list(UsageSegment.objects.all()))
        }
        assert {key: value for key, value in bulk.lines(windows).items()} == python
        transaction.set_rollback(True)


def test_an_end_inside_the_last_hour_of_an_invoiced_month_may_be_reported_late():
    """Its line was written while the usage ran, so it ends with the paid hour. The end changes no amount."""
    month_end = datetime(2040, 4, 30, 17, 30, tzinfo=UTC)  # in Yangon
    start, reported = month_end - timedelta(seconds=1), month_end + timedelta(days=6)
    player = Player(History("Asia/Yangon", [(EPOCH - timedelta(days=30), 400_000)]))
    player.deliver(Event(start, start, 1, KIND, "open", 50))
    closing.close_months(at=month_end + timedelta(days=1))
    player.deliver(Event(start, reported, 1, KIND, "close", repeats=2))
    closing.close_months(at=reported + timedelta(days=30))
    assert [(line.from_at, line.to_at, line.hours) for line in InvoiceLine.objects.all()] == [
        (start, start + timedelta(hours=1), 1)
    ]
    check_books(reported + timedelta(days=30))


def test_automatic_backups_that_never_began_are_credited_when_reported_a_month_late():
    """Switched on again inside a paid hour and off before it ended, but the second "off" arrives after the invoice."""
    events = [
        Event(EPOCH, EPOCH, 100, AUTOMATIC, "open", 120),
        Event(EPOCH + timedelta(seconds=1), EPOCH, 100, AUTOMATIC, "close"),
        Event(EPOCH + timedelta(seconds=2), EPOCH, 100, AUTOMATIC, "open", 120),
    ]
    player = Player(History("Asia/Yangon", [(EPOCH - timedelta(days=30), 400_000)], events))
    for event in events:
        player.deliver(event)
    closing.close_months(at=EPOCH + timedelta(days=10))
    late = Event(EPOCH + timedelta(seconds=3), EPOCH + timedelta(days=30), 100, AUTOMATIC, "close", repeats=2)
    player.deliver(late)
    player.check(EPOCH + timedelta(days=30))
    never = UsageSegment.objects.get(voided=True)
    charged = InvoiceLine.objects.get(segment=never)
    closing.close_months(at=EPOCH + timedelta(days=40))
    correction = InvoiceLine.objects.get(corrects=charged)
    assert (correction.hours, correction.amount_micro) == (-charged.hours, -charged.amount_micro)
    player.check(EPOCH + timedelta(days=40))
    closing.close_months(at=EPOCH + timedelta(days=70))
    assert InvoiceLine.objects.filter(segment=never).count() == 2
    check_books(EPOCH + timedelta(days=70))
