"""The timeline of snapshots: units, gaps and texts."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from snapshots.models import State
from snapshots.timeline import LEAST_DAYS, MOST_MARKS, timeline
from tests.factories import ProjectFactory, SnapshotFactory, UserFactory, VMSnapshotFactory, VolumeFactory

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)  # in Yangon it is the 23rd already
YANGON = ZoneInfo("Asia/Yangon")
BORN = NOW - timedelta(days=3000)


def ago(*days: float, state: str = State.READY) -> list[tuple[datetime, str]]:
    return [(NOW - timedelta(days=number), state) for number in days]


def test_days_are_those_of_the_zone() -> None:
    line = timeline(ago(0, 0.9, 1), born=BORN, now=NOW, zone=YANGON)

    assert line.unit == "day"
    assert len(line.marks) == LEAST_DAYS
    assert [mark.ready for mark in line.marks[-3:]] == [0, 2, 1]
    assert line.marks[-1].first.isoformat() == "2026-11-23"


@pytest.mark.parametrize(
    ("oldest", "unit"),
    [(1, "day"), (61, "day"), (62, "week"), (400, "week"), (450, "month"), (1800, "month"), (2900, "month")],
)
def test_the_unit_is_the_finest_that_fits_and_nothing_is_left_out(oldest: int, unit: str) -> None:
    line = timeline(ago(0, oldest), born=BORN, now=NOW, zone=YANGON)

    assert line.unit == unit
    assert len(line.marks) <= MOST_MARKS
    assert sum(mark.count for mark in line.marks) == line.count == 2
    days = [(mark.first, mark.last) for mark in line.marks]
    assert all(last + timedelta(days=1) == first for (_, last), (first, _) in zip(days, days[1:], strict=False))


def test_the_longest_gap_is_found_among_those_that_can_be_restored() -> None:
    line = timeline(ago(20, 12, 2) + ago(8, state=State.FAILED), born=BORN, now=NOW, zone=YANGON)

    assert line.gap is not None
    assert line.gap.length == timedelta(days=10)
    assert line.gap.start == NOW - timedelta(days=12)


def test_a_gap_may_go_on_and_there_is_none_before_the_first() -> None:
    line = timeline(ago(9, 8), born=BORN, now=NOW, zone=YANGON)
    assert line.gap is not None and line.gap.end is None and line.gap.length == timedelta(days=8)

    assert timeline(ago(3, state=State.FAILED), born=BORN, now=NOW, zone=YANGON).gap is None


def test_days_before_it_existed_are_no_gap() -> None:
    line = timeline(ago(1), born=NOW - timedelta(days=4), now=NOW, zone=YANGON)

    assert [mark.is_there for mark in line.marks].count(True) == 5


@pytest.mark.django_db
def test_pages_describe_the_timeline_in_words(client_for: Callable[..., Client]) -> None:
    project = ProjectFactory()
    client = client_for(UserFactory(member_of=project))
    volume = VolumeFactory(project=project, created_at=timezone.now() - timedelta(days=90))
    page = reverse("snapshots:volume", args=[volume.pk])
    assert 'class="timeline"' not in client.get(page).content.decode()
    for number in range(30):
        SnapshotFactory(volume=volume, created_at=timezone.now() - timedelta(days=2 * number))

    html = client.get(page).content.decode()
    assert "30 snapshots since" in html
    assert "The longest time without one: 2 days" in html
    assert html.count("<title>") <= 1 + MOST_MARKS

    vm = VMSnapshotFactory(vm__project=project).vm
    assert "1 snapshot since" in client.get(reverse("snapshots:machine", args=[vm.pk])).content.decode()
