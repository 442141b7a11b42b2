"""Creating a backup: its steps, its schedule with the next runs, and its price."""

import re
from datetime import time, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership, Role
from cng_portal.inventory.models import VirtualMachine
from snapshots.models import BackupRun, BackupSchedule, Draft, Kind, Snapshot, State
from snapshots.wizard import wizard
from tests.factories import (
    LocationFactory,
    MembershipFactory,
    ProjectFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

NEW = "/backups/new/"
DAILY = {"interval": "daily", "at": "02:30", "retention_count": "2"}


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__customer__postpaid=True, project__name="Default")
    member.user.customer = member.project.customer
    member.user.save()
    return member


@pytest.fixture
def vm(storage_root: Path, member: Membership) -> VirtualMachine:
    vm = VirtualMachineFactory(project=member.project, name="db-01")
    for position, size_gb in enumerate([10, 50]):
        volume = VolumeFactory(
            project=member.project, location=vm.location, vm=vm, position=position, size_gb=size_gb, name=f"d{position}"
        )
        put_volume(storage_root, volume, content(b"%d" % position))
    sell_everywhere(kind=ServiceKind.VM_BACKUP, rate_micro=600_000)
    return vm


@pytest.fixture
def client(client_for: Any, member: Membership) -> Client:
    return client_for(member.user)


def draft_of(vm: VirtualMachine, member: Membership, **answers: Any) -> Draft:
    """Return a draft with a schedule."""
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    for name, value in ({"interval": "daily", "at": time(2, 30)} | answers).items():
        setattr(draft, name, value)
    draft.save()
    return draft


def confirm(client: Client, draft: Draft, shown_hourly_micro: int = 36_000_000) -> Any:
    data = {"billing_cycle": "hourly", "shown_hourly_micro": shown_hourly_micro}
    return client.post(wizard.url(draft, "review"), data)


def text_of(page: str) -> str:
    """Return the text of the page without markup."""
    return " ".join(unescape(re.sub("<[^>]+>", " ", page[page.index('id="wizard"') :])).split())


def test_the_wizard_leads_from_a_location_to_the_first_backup(
    client: Client, member: Membership, vm: VirtualMachine
) -> None:
    step_url = NEW
    answers: list[tuple[str, dict[str, Any]]] = [
        ("Choose a Location", {"location": vm.location_id}),
        ("Assign to a Project", {"project": member.project_id}),
        ("Choose an Instance", {"vm": vm.pk}),
        (
            "Backup Schedule",
            {"interval": "weekly", "weekday": 6, "at": "23:15", "retention_count": 3, "take_one_now": "on"},
        ),
    ]
    for heading, answer in answers:
        assert heading in client.get(step_url).text
        response = client.post(step_url, answer)
        assert response.status_code == 302, response.text
        step_url = response["Location"]
    page = text_of(client.get(step_url).text)
    for text in (
        "Create Backup",
        "Every Sunday at 23:15, Asia/Yangon (UTC+06:30)",
        "3 backups",
        "Take one immediately Yes",
        "d0 (10 GB), d1 (50 GB)",
        "Hourly",
        "Fixed Prorata",
        "K 36.00 / Hour / 60 GB",
        "60 GB × K 0.6000 = K 36.00 an hour",
        "3 backups cost K 108.00 an hour together, about K 79,056.00 a month.",
    ):
        assert text in page, text

    response = client.post(step_url, {"billing_cycle": "hourly", "shown_hourly_micro": 36_000_000})

    schedule = BackupSchedule.objects.get()
    assert response["Location"] == reverse("snapshots:schedule", args=[schedule.pk]) + "#heading"
    assert (schedule.vm, schedule.interval, schedule.weekday, schedule.retention_count) == (vm, "weekly", 6, 3)
    run_active_operations()
    assert Snapshot.objects.get(kind=Kind.BACKUP).state == State.READY
    assert BackupRun.objects.get().requested_by == member.user


def test_a_backup_started_from_its_machine_opens_the_schedule_step(client: Client, vm: VirtualMachine) -> None:
    step_url = client.post(reverse("snapshots:back_up", args=[vm.pk]))["Location"]

    assert step_url == wizard.url(Draft.objects.get(), "schedule")
    page = text_of(client.get(step_url).text)
    assert "Backup Schedule" in page and "In Asia/Yangon (UTC+06:30)." in page
    # the default schedule already shows its next runs and its price
    assert "The next five runs" in page and "2 backups cost K 72.00 an hour together" in page


def test_the_preview_follows_the_answers_without_saving_them(
    client: Client, member: Membership, vm: VirtualMachine
) -> None:
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    response = client.post(
        wizard.url(draft, "schedule"),
        {
            "interval": "monthly",
            "month_day": 31,
            "at": "05:00",
            "retention_count": 1,
            "take_one_now": "on",
            "preview": "1",
        },
    )

    picture = response.context["chart"]
    draft.refresh_from_db()
    assert draft.interval == ""
    assert [row.cells.count("deleted") for row in picture.rows] == [0, 1, 1, 1, 1, 1]
    assert [row.cells.count("taken") for row in picture.rows] == [1] * 6
    assert picture.rows[0].day == "Now" and all(row.time == "05:00 UTC+06:30" for row in picture.rows[1:])
    # the last day of each month
    assert all(
        (row.at.astimezone(member.project.customer.zone) + timedelta(days=1)).day == 1 for row in picture.rows[1:]
    )
    for text in ("Taken now", "taken", "deleted", "1 kept"):
        assert text in text_of(response.text), text


def test_the_preview_chart_shows_kept_and_deleted_backups_of_each_run(
    client: Client, member: Membership, vm: VirtualMachine
) -> None:
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    picture = client.post(wizard.url(draft, "schedule"), DAILY | {"preview": "1"}).context["chart"]

    assert [row.cells for row in picture.rows] == [
        ["taken", "", "", "", ""],
        ["kept", "taken", "", "", ""],
        ["deleted", "kept", "taken", "", ""],
        ["", "deleted", "kept", "taken", ""],
        ["", "", "deleted", "kept", "taken"],
    ]
    assert [row.note for row in picture.rows] == ["1 kept", "2 kept", "2 kept", "2 kept", "2 kept"]


@pytest.mark.parametrize(
    ("wrong", "explanation"),
    [
        ({"interval": ""}, "Choose how often: daily, weekly or monthly."),
        ({"interval": "hourly"}, "Choose how often: daily, weekly or monthly."),
        ({"interval": "weekly", "weekday": "7"}, "Choose the day of the week."),
        ({"interval": "weekly"}, "Choose the day of the week."),
        ({"interval": "monthly", "month_day": "32"}, "Choose a day of the month, from 1 to 31."),
        ({"at": ""}, "Enter the time of day at which it starts."),
        ({"at": "25:00"}, "Enter a time of day, such as"),
        ({"retention_count": "0"}, "Choose a number from 1 to 365."),
        ({"retention_count": "many"}, "Enter a whole number."),
    ],
)
def test_a_wrong_answer_is_explained_and_the_form_keeps_its_values(
    client: Client, member: Membership, vm: VirtualMachine, wrong: dict[str, str], explanation: str
) -> None:
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    response = client.post(wizard.url(draft, "schedule"), DAILY | {"take_one_now": "on"} | wrong)

    assert response.status_code == 200
    assert explanation in text_of(response.text)
    assert "<title>Error: Backup Schedule" in response.text
    assert re.search(r'name="take_one_now"[^>]* checked', response.text)
    draft.refresh_from_db()
    assert draft.interval == ""


def test_fields_of_other_intervals_are_ignored(client: Client, member: Membership, vm: VirtualMachine) -> None:
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    response = client.post(wizard.url(draft, "schedule"), DAILY | {"weekday": "9", "month_day": "99"})

    assert response["Location"] == wizard.url(draft, "review")
    draft.refresh_from_db()
    assert (draft.weekday, draft.month_day) == (None, None)


def test_the_review_is_not_reached_without_a_schedule(client: Client, member: Membership, vm: VirtualMachine) -> None:
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)

    assert client.get(wizard.url(draft, "review"))["Location"] == wizard.url(draft, "schedule")


def test_the_same_draft_twice_gives_one_schedule(client: Client, member: Membership, vm: VirtualMachine) -> None:
    draft = draft_of(vm, member)
    first, second = confirm(client, draft), confirm(client, draft)

    assert first["Location"] == second["Location"]
    assert BackupSchedule.objects.count() == 1
    assert client.get(wizard.url(draft, "schedule"))["Location"] == first["Location"]


def test_a_changed_price_is_shown_again_before_anything_is_created(
    client: Client, member: Membership, vm: VirtualMachine
) -> None:
    draft = draft_of(vm, member)
    page = text_of(confirm(client, draft, shown_hourly_micro=35_000_000).text)

    assert "The price has changed to K 36.00 an hour" in page and "60 GB × K 0.6000 = K 36.00 an hour" in page
    assert not BackupSchedule.objects.exists()


def test_insufficient_credits_are_shown_at_the_instance_step(client_for: Any, vm: VirtualMachine) -> None:
    poor = MembershipFactory()
    VirtualMachine.objects.update(project=poor.project)
    vm.volumes.update(project=poor.project)
    vm.refresh_from_db()
    draft = wizard.start(poor.user, kind=Kind.BACKUP, source=vm)

    response = client_for(poor.user).post(wizard.url(draft, "instance"), {"vm": vm.pk})

    assert "Insufficient infra credit" in response.text and "K 36.00 more" in response.text


def test_a_full_quota_is_shown_at_the_instance_step(client: Client, member: Membership, vm: VirtualMachine) -> None:
    member.project.customer.snapshot_gb_quota = 59
    member.project.customer.save()
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)

    assert "Quota full" in client.post(wizard.url(draft, "instance"), {"vm": vm.pk}).text


def test_a_location_where_backups_are_not_sold_cannot_be_chosen(
    client: Client, member: Membership, vm: VirtualMachine
) -> None:
    elsewhere = LocationFactory(code="1CNG-MDY-AZ01")
    VirtualMachineFactory(project=member.project, location=elsewhere)

    assert "VM backups are not sold in 1CNG-MDY-AZ01." in client.get(NEW).text
    assert "VM backups are not sold in 1CNG-MDY-AZ01." in client.post(NEW, {"location": elsewhere.pk}).text


def test_the_estimate_includes_future_backups(client: Client, member: Membership, vm: VirtualMachine) -> None:
    """Three days of daily backups that keep one: the backups follow each other without a gap, as if they were one."""
    draft = draft_of(vm, member, retention_count=1, take_one_now=True)
    until = timezone.localdate(timezone=member.project.customer.zone) + timedelta(days=2)

    rows = client.get(f"{wizard.url(draft, 'review')}?until={until}").context["estimates"]

    end = (
        timezone.datetime.combine(until + timedelta(days=1), time(), tzinfo=member.project.customer.zone)
        - timezone.now()
    )
    hours = end.total_seconds() / 3600
    amount = float(rows[-1]["value"].removeprefix("K ").replace(",", ""))
    # each deleted backup rounds its started hour up
    assert 36 * hours <= amount <= 36 * (hours + 5)


@pytest.mark.parametrize("step", ["location", "project", "instance", "schedule", "review"])
def test_the_fragment_is_the_same_as_in_the_page(
    client: Client, member: Membership, vm: VirtualMachine, step: str
) -> None:
    draft = draft_of(vm, member)
    client.get(wizard.url(draft, step))  # a token for the forms, the same in both
    page = client.get(wizard.url(draft, step)).text
    fragment = client.get(wizard.url(draft, step), headers={"HX-Request": "true"}).text

    def without_token(text: str) -> str:
        return " ".join(" ".join(line for line in text.split("\n") if "csrfmiddlewaretoken" not in line).split())

    assert "<html" not in fragment
    assert without_token(fragment) in without_token(page)


@pytest.mark.parametrize("step", ["schedule", "review"])
def test_a_stranger_finds_no_draft_and_a_viewer_gets_an_explanation(
    client_for: Any, member: Membership, vm: VirtualMachine, step: str
) -> None:
    draft = draft_of(vm, member)
    stranger = client_for(MembershipFactory().user)
    viewer = client_for(MembershipFactory(project=member.project, role=Role.VIEWER).user)

    for response in (stranger.get(wizard.url(draft, step)), stranger.post(wizard.url(draft, step), DAILY)):
        assert response.status_code == 404
    for response in (viewer.get(wizard.url(draft, step)), viewer.post(wizard.url(draft, step), DAILY)):
        assert response.status_code == 403
    assert viewer.post(reverse("snapshots:back_up", args=[vm.pk])).status_code == 403
    assert stranger.post(reverse("snapshots:back_up", args=[vm.pk])).status_code == 404
    assert viewer.get(NEW).status_code == 403


def test_a_machine_in_another_project_cannot_be_chosen(client: Client, member: Membership, vm: VirtualMachine) -> None:
    draft = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    foreign = VirtualMachineFactory(project=ProjectFactory(), location=vm.location)

    response = client.post(wizard.url(draft, "instance"), {"vm": foreign.pk})

    assert "You can no longer use this instance." in response.text


def test_the_wallet_of_a_prepaid_customer_lasts_with_all_backups(
    client: Client, member: Membership, vm: VirtualMachine
) -> None:
    customer = member.project.customer
    customer.billing_type = "prepaid"
    customer.save()
    ten_days = 72 * 24 * 10 * 10**6  # of two backups at K 36 an hour
    buy_credits(customer=customer, amount_micro=ten_days, reason="bought", by=None, key="k")
    draft = draft_of(vm, member)

    rows = {row["label"]: row["value"] for row in client.get(wizard.url(draft, "review")).context["estimates"]}

    end = timezone.localtime(timezone.now() + timedelta(days=10), customer.zone)
    # the page may have been requested on the other side of midnight
    days = [end - timedelta(minutes=minutes) for minutes in (0, 2)]
    assert re.findall(r"\d+", rows["Your credits last with it"]) in [[f"{day:%-d}", f"{day:%Y}"] for day in days]
