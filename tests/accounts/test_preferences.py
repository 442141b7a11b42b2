"""Each user's time zone and date format apply on every page, in the bell and in e-mails."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from html import unescape
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind
from billing.usage import open_segment
from cng_portal.accounts.models import DateFormat, User
from cng_portal.common.preferences import localized_for
from cng_portal.common.templatetags.portal import month
from snapshots.backups.notifications import notify_missed
from snapshots.backups.preview_chart import format_day_and_time
from snapshots.models import SERVICE_KINDS, Kind
from snapshots.views.timelines import near_day
from snapshots.wizard import wizard
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    InvitationFactory,
    NotificationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.smtp import sent_mails
from tests.snapshots.disks import content, put_volume, sell_everywhere

pytestmark = pytest.mark.django_db

IN_WORDS = re.compile(
    r"\b\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\b"
    r"|\b(?:January|February|March|April|May|June|July|August|September|October|November|December) \d{4}"
)
LONG_AGO = datetime(2025, 3, 4, 20, tzinfo=UTC)


@pytest.fixture
def user() -> User:
    return UserFactory(member_of=ProjectFactory(customer__postpaid=True, customer__time_zone="Asia/Yangon"))


def text_of(client: Client, path: str) -> str:
    """Return the text and labels of a page, without the examples of date formats in the profile."""
    response = client.get(path)
    assert response.status_code == 200, (path, response.get("Location"))
    html = response.text
    main = html[html.index("<main") : html.index("</main>")]
    labels = " ".join(re.findall(r'aria-label="([^"]*)"', main))
    return unescape(f"{re.sub(r'<[^>]+>', ' ', main)} {labels}")


def test_every_page_uses_the_users_date_format(
    user: User, client_for: Callable[..., Client], storage_root: Path
) -> None:
    project = user.projects.get()
    volume = VolumeFactory(project=project, attached=True, created_at=LONG_AGO)
    put_volume(storage_root, volume, content(b"bytes"))
    for kind in SERVICE_KINDS.values():
        sell_everywhere(kind=kind)
    snapshot = SnapshotFactory(volume=volume, created_at=LONG_AGO, ready_at=LONG_AGO)
    SnapshotFactory(volume=volume)
    open_segment(
        resource_id=snapshot.pk,
        kind=ServiceKind.BS_SNAPSHOT,
        name=snapshot.name,
        project=project,
        location=volume.location,
        size_gb=1,
        at=timezone.now() - timedelta(days=1),
    )
    schedule = BackupScheduleFactory(vm=volume.vm, monthly=True)
    BackupRunFactory(schedule=schedule)
    BackupRunFactory(schedule=schedule, waiting=True)
    NotificationFactory(user=user, created_at=LONG_AGO)
    InvitationFactory(project=project, invited_by=user)
    draft = wizard.start(user, kind=Kind.BACKUP, source=volume.vm)
    draft.interval, draft.at, draft.weekday = "weekly", time(2), 2
    draft.save()
    client = client_for(user)
    paths = [
        "/",
        "/snapshots/",
        "/snapshots/?view=cards",
        reverse("snapshots:snapshot", args=[snapshot.pk]),
        "/volumes/",
        reverse("snapshots:volume", args=[volume.pk]),
        "/instances/",
        reverse("snapshots:machine", args=[volume.vm_id]),
        "/backups/",
        "/backups/schedules/",
        reverse("snapshots:schedule", args=[schedule.pk]),
        reverse("snapshots:edit_schedule", args=[schedule.pk]),
        *(wizard.url(draft, slug) for slug in wizard.slugs(draft)),
        *(f"/billing/{name}" for name in ("", "subscriptions/", "credits/", "transactions/", "statement/")),
        "/notifications/",
        *(reverse(f"accounts:{name}") for name in ("security", "sessions", "sign_ins")),
        reverse("activity:log"),
        reverse("projects"),
        reverse("project", args=[project.pk]),
    ]
    User.objects.update(date_format=DateFormat.ISO)
    texts = {path: text_of(client, path) for path in paths}
    assert {path: IN_WORDS.findall(text) for path, text in texts.items() if IN_WORDS.search(text)} == {}
    assert "2025-03-05, 02:30:00 UTC+06:30" in texts[reverse("snapshots:snapshot", args=[snapshot.pk])]
    assert f"{timezone.localtime():%Y-%m}" in texts["/billing/"]
    User.objects.update(date_format=DateFormat.WORDS)  # checks that dates are found on these pages at all
    assert sum(bool(IN_WORDS.search(text_of(client, path))) for path in paths) >= 10


@pytest.mark.parametrize(
    ("date_format", "near", "far", "run", "whole_month"),
    [
        (DateFormat.WORDS, "3 Nov", "3 Nov 2025", "Tue 3 Nov", "November 2026"),
        (DateFormat.ISO, "2026-11-03", "2025-11-03", "Tue 2026-11-03", "2026-11"),
        (DateFormat.DAY_FIRST, "03/11/2026", "03/11/2025", "Tue 03/11/2026", "11/2026"),
        (DateFormat.MONTH_FIRST, "11/03/2026", "11/03/2025", "Tue 11/03/2026", "11/2026"),
    ],
)
def test_days_runs_and_months_follow_the_users_preferences(
    user: User, time_machine, date_format: DateFormat, near: str, far: str, run: str, whole_month: str
) -> None:
    time_machine.move_to(datetime(2026, 11, 22, 12, tzinfo=UTC))
    user.date_format = date_format
    at = datetime(2026, 11, 3, 1, tzinfo=UTC)
    with localized_for(user):
        assert near_day(at.date()) == near
        assert near_day(at.date().replace(year=2025)) == far
        assert format_day_and_time(at, user.zone)[0] == run
        assert month(at.date()) == whole_month


def test_notifications_and_e_mails_use_each_recipients_time_zone_and_format(user: User) -> None:
    other = UserFactory(member_of=user.projects.get(), date_format=DateFormat.ISO, time_zone="Europe/Berlin")
    schedule = BackupScheduleFactory(vm__project=user.projects.get(), vm__name="web-1")
    notify_missed(schedule, [datetime(2026, 11, 21, 19, 30, tzinfo=UTC)], "The storage was full.")
    assert user.notifications.get().text == (
        "The backup of 22 Nov 2026, 02:00 UTC+06:30 was missed. The storage was full."
    )
    theirs = other.notifications.get()
    assert "2026-11-21, 20:30 UTC+01:00" in theirs.text
    assert {message.to[0]: theirs.text in message.body for message in sent_mails()} == {
        user.email: False,
        other.email: True,
    }
