"""Planned drills, their pages, and the evidence as CSV and PDF."""

import csv
import io
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Role
from cng_portal.inventory.models import Volume
from snapshots.drills import plans
from snapshots.drills.proof import last_proven_at
from snapshots.models import Drill, DrillPlan, Snapshot
from tests.factories import (
    BackupFactory,
    BackupRunFactory,
    MembershipFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
)
from tests.snapshots.drills.records import FAILED, record_drill

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def snapshot(storage_root: object) -> Snapshot:
    return SnapshotFactory(volume__name="precious", ready_at=timezone.now() - 3 * DAY)


@pytest.fixture
def browser(client: Client, snapshot: Snapshot) -> Client:
    client.force_login(UserFactory(member_of=snapshot.project))
    return client


def page_of(volume: Volume | None) -> str:
    assert volume
    return reverse("snapshots:volume_drills", args=[volume.pk])


def test_a_plan_drills_the_newest_snapshot_once_when_it_is_due(browser: Client, snapshot: Snapshot) -> None:
    newest = SnapshotFactory(volume=snapshot.volume, ready_at=timezone.now() - DAY)
    SnapshotFactory(volume=snapshot.volume, damaged=True)
    browser.post(page_of(snapshot.volume), {"interval": "weekly", "pick": "newest"})
    plan = DrillPlan.objects.get()
    now = timezone.now()
    assert now < plan.next_at <= now + 7 * DAY
    assert plans.start_due(now) == 0
    assert plans.start_due(plan.next_at) == 1
    assert plans.start_due(plan.next_at) == 0, "it is due again a week later"
    drill = Drill.objects.get()
    assert (drill.snapshot, drill.requested_by) == (newest, None)
    before, plan = plan.next_at, DrillPlan.objects.get()
    assert plan.next_at == before + 7 * DAY
    browser.post(page_of(snapshot.volume), {"interval": "", "pick": "newest"})
    assert not DrillPlan.objects.exists()


def test_the_newest_that_the_user_may_change_is_drilled_now(client: Client, snapshot: Snapshot) -> None:
    user = UserFactory(member_of=snapshot.project)
    elsewhere = ProjectFactory(customer=snapshot.customer)
    MembershipFactory(user=user, project=elsewhere, role=Role.VIEWER)
    SnapshotFactory(volume=snapshot.volume, project=elsewhere, ready_at=timezone.now() - DAY)
    client.force_login(user)
    client.post(page_of(snapshot.volume), {"now": "yes"})
    assert Drill.objects.get().snapshot == snapshot


def test_a_random_one_is_none_of_before_the_last_days(browser: Client, snapshot: Snapshot) -> None:
    recent = [SnapshotFactory(volume=snapshot.volume, ready_at=timezone.now() - DAY) for _number in range(2)]
    answers = {"interval": "monthly", "pick": "random", "random_days": "2"}
    browser.post(page_of(snapshot.volume), answers)
    plan = DrillPlan.objects.get()
    chosen = {plans.choose(plan, timezone.now()) for _try in range(40)}
    assert chosen == set(recent)


def test_what_was_moved_to_another_project_is_not_drilled_by_the_plan(browser: Client, snapshot: Snapshot) -> None:
    elsewhere = ProjectFactory(customer=snapshot.customer)
    moved = SnapshotFactory(volume=snapshot.volume, project=elsewhere, ready_at=timezone.now() - DAY)
    plan = DrillPlan.objects.create(volume=snapshot.volume, interval="weekly", next_at=timezone.now())
    assert plans.choose(plan, timezone.now()) == snapshot
    plan.random_days = 30
    assert {plans.choose(plan, timezone.now()) for _try in range(20)} == {snapshot}
    Volume.objects.filter(pk=snapshot.volume_id).update(project=elsewhere)
    plan = DrillPlan.objects.get()
    assert plans.choose(plan, timezone.now()) == moved, "the plan is its project's once the volume was moved there"


def test_a_machine_and_a_schedule_are_drilled_too(snapshot: Snapshot) -> None:
    backup = BackupFactory()
    run = BackupRunFactory(snapshot=backup, schedule__vm=backup.vm)
    assert list(plans.snapshots_of(backup.vm)) == [backup]
    assert list(plans.snapshots_of(run.schedule)) == [backup]
    now = timezone.now()
    DrillPlan.objects.create(vm=backup.vm, interval="weekly", next_at=now)
    DrillPlan.objects.create(schedule=run.schedule, interval="monthly", next_at=now)
    assert {plans.choose(plan, now) for plan in DrillPlan.objects.all()} == {backup}
    assert plans.start_due(now) == 0, "it has no disks"


def test_bad_answers_explain_themselves_and_lose_nothing(browser: Client, snapshot: Snapshot) -> None:
    response = browser.post(page_of(snapshot.volume), {"interval": "monthly", "pick": "random", "random_days": ""})
    page = response.content.decode()
    assert "how many days back" in page and not DrillPlan.objects.exists()
    assert page.count("checked") == 2, "both choices are kept"


def test_strangers_see_no_plan_and_viewers_change_none(client: Client, snapshot: Snapshot) -> None:
    drill = record_drill(snapshot)
    evidence = [reverse(f"snapshots:{name}", args=[drill.pk]) for name in ("drill_csv", "drill_pdf")]
    client.force_login(UserFactory(member_of=ProjectFactory()))
    for address in [page_of(snapshot.volume), *evidence]:
        assert client.get(address).status_code == 404
    assert "precious" not in client.get(reverse("snapshots:drills")).content.decode()
    client.force_login(UserFactory(member_of=snapshot.project, member_of__role=Role.VIEWER))
    for address in [page_of(snapshot.volume), *evidence]:
        assert client.get(address).status_code == 200
    assert client.post(page_of(snapshot.volume), {"interval": "weekly", "pick": "newest"}).status_code == 403


def test_the_newest_proof_is_on_the_pages_of_the_volume_and_the_dashboard(browser: Client, snapshot: Snapshot) -> None:
    assert snapshot.volume
    addresses = [reverse("snapshots:volume", args=[snapshot.volume_id]), reverse("dashboard")]
    assert all("Last proven restorable" in browser.get(address).content.decode() for address in addresses)
    record_drill(snapshot, finished_at=timezone.now() - 5 * DAY)
    record_drill(snapshot, checks=FAILED)
    at = last_proven_at(plans.drills_of(snapshot.volume))
    assert at and timedelta(days=4) < timezone.now() - at < timedelta(days=6), "the failed one proves nothing"
    for address in addresses:
        assert f'datetime="{at.isoformat(timespec="seconds")}"' in browser.get(address).content.decode()


def test_the_evidence_is_exported(browser: Client, snapshot: Snapshot) -> None:
    drill = record_drill(snapshot, checks=FAILED)
    for address in (reverse("snapshots:drills_csv"), reverse("snapshots:drill_csv", args=[drill.pk])):
        text = b"".join(browser.get(address).streaming_content).decode("utf-8-sig")  # type: ignore[attr-defined]
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["outcome"] for row in rows] == ["passed", "passed", "passed", "failed"]
        assert {(row["drill_uuid"], row["result"]) for row in rows} == {(str(drill.pk), "failed")}
    response = browser.get(reverse("snapshots:drill_pdf", args=[drill.pk]))
    assert response.content.startswith(b"%PDF-") and response["Content-Type"] == "application/pdf"
    assert str(drill.pk) in browser.get(reverse("snapshots:drills")).content.decode()


@pytest.mark.both_databases
def test_a_plan_has_one_target(snapshot: Snapshot) -> None:
    fields = {"interval": "weekly", "next_at": timezone.now()}
    DrillPlan.objects.create(volume=snapshot.volume, **fields)
    vm = BackupFactory().vm
    for wrong in [{}, {"volume": snapshot.volume}, {"vm": vm, "random_days": 0}, {"vm": vm, "interval": "daily"}]:
        with pytest.raises(IntegrityError), transaction.atomic():
            DrillPlan.objects.create(**fields | wrong)
