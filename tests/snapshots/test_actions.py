"""Actions on a snapshot: each works with real storage, explains refusals, and is a 404 for strangers."""

from collections.abc import Callable
from datetime import timedelta
from html import unescape
from pathlib import Path

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.balance import get_balance
from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Project, Role
from cng_portal.common.money import MICRO
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import services
from snapshots.errors import InvalidState
from snapshots.models import Operation, Snapshot, State
from snapshots.volumes import new_volumes
from tests.factories import (
    CustomerFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, largest_file, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

ACTIONS = ["rename", "delete", "restore", "new_volume", "verify"]
BEFORE, AFTER = content(b"before "), content(b"after  ")


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer=CustomerFactory(postpaid=True))


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


def url(action: str, snapshot: Snapshot) -> str:
    return reverse(f"snapshots:{action}", args=[snapshot.pk])


def page_of(snapshot: Snapshot) -> str:
    return reverse("snapshots:snapshot", args=[snapshot.pk])


def messages_of(response: object) -> str:
    return " ".join(str(message) for message in get_messages(response.wsgi_request))  # type: ignore[attr-defined]


def errors_of(response: object) -> str:
    """Return the form's errors, after checking that the page shows them."""
    assert response.status_code == 200  # type: ignore[attr-defined]
    text = unescape(response.content.decode())  # type: ignore[attr-defined]
    assert "There is a problem" in text
    return " ".join(
        message
        for messages in response.context["form"].errors.values()  # type: ignore[attr-defined]
        for message in messages
        if message in text
    )


@pytest.fixture
def snapshot(project: Project, storage_root: Path) -> Snapshot:
    """A snapshot of a disk that has changed since."""
    volume = VolumeFactory(project=project, name="web-01-root", attached_stopped=True)
    sell_everywhere()
    path = put_volume(storage_root, volume, BEFORE)
    snapshot = services.request_snapshot(source=volume, name="before-upgrade", user=project.memberships.first().user)
    run_active_operations()
    with open(path, "r+b") as file:
        file.write(AFTER)
    snapshot.refresh_from_db()
    return snapshot


def start_of(root: Path, volume: Volume) -> bytes:
    with open(root / volume.location_id / "volumes" / f"{volume.pk}.img", "rb") as file:
        return file.read(len(BEFORE))


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("action", ACTIONS)
def test_strangers_viewers_and_signed_out_people_change_nothing(
    action: str, method: str, project: Project, client_for: Callable[..., Client]
) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    stranger = client_for(UserFactory(member_of=ProjectFactory()))
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))
    answers = {"name": "other", "confirmation": snapshot.name, "size_gb": 1, "project": project.pk}

    assert getattr(stranger, method)(url(action, snapshot), answers).status_code == 404
    refused = getattr(viewer, method)(url(action, snapshot), answers)
    assert refused.status_code == 403
    assert "does not allow changes" in unescape(refused.content.decode())
    signed_out = getattr(Client(), method)(url(action, snapshot), answers)
    assert signed_out.status_code == 302
    assert "/accounts/login/?next=" in signed_out["Location"]
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    assert not Operation.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_a_form_without_javascript(action: str, client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    sell_everywhere()

    page = client.get(url(action, snapshot)).content.decode()

    assert f'method="post" action="{url(action, snapshot)}"' in page
    assert "csrfmiddlewaretoken" in page


def test_renaming_a_snapshot_renames_its_usage(client: Client, snapshot: Snapshot) -> None:
    response = client.post(url("rename", snapshot), {"name": "  Known good  "})

    snapshot.refresh_from_db()
    assert response["Location"] == page_of(snapshot)
    assert snapshot.name == "Known good"
    assert UsageSegment.objects.get().resource_name == "Known good"
    assert "Known good" in messages_of(response)


def test_the_form_starts_with_the_present_name(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, name="nightly")

    assert 'value="nightly"' in client.get(url("rename", snapshot)).content.decode()


def test_a_taken_name_is_explained_and_a_free_one_offered(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    SnapshotFactory(volume__project=project, name="nightly")

    response = client.post(url("rename", snapshot), {"name": "NIGHTLY"})

    assert "“NIGHTLY-2” is free" in errors_of(response)
    page = unescape(response.content.decode())
    assert 'value="NIGHTLY"' in page
    assert "Use “NIGHTLY-2”" in page
    client.post(url("rename", snapshot), {"name": "NIGHTLY", "use": "NIGHTLY-2"})
    snapshot.refresh_from_db()
    assert snapshot.name == "NIGHTLY-2"


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, "two\nlines"])
def test_an_unusable_name_is_explained(name: str, client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, name="nightly")

    assert errors_of(client.post(url("rename", snapshot), {"name": name}))
    snapshot.refresh_from_db()
    assert snapshot.name == "nightly"


def test_a_snapshot_that_is_being_deleted_cannot_be_renamed(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, deleting=True)

    assert "being deleted" in errors_of(client.post(url("rename", snapshot), {"name": "other"}))


def test_deleting_a_snapshot_ends_its_charge_and_removes_its_file(
    client: Client, snapshot: Snapshot, storage_root: Path
) -> None:
    response = client.post(url("delete", snapshot), {"confirmation": "before-upgrade", "is_last": "on"})

    snapshot.refresh_from_db()
    assert response["Location"] == page_of(snapshot)
    assert snapshot.state == State.DELETING
    assert UsageSegment.objects.get().ended_at == snapshot.delete_requested_at
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.DELETED
    assert not list((storage_root / snapshot.location_id / "snapshots").glob(f"{snapshot.pk}*"))


def test_the_confirmation_explains_deleting_and_its_savings(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, volume__size_gb=50)
    sell_everywhere(400_000)

    page = unescape(client.get(url("delete", snapshot)).content.decode())

    assert "can't be undone" in page
    assert "You stop paying K 20.00 an hour, about K 14,640.00 a month." in page


def test_deleting_the_last_copy_of_a_deleted_volume_shows_a_warning(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume=VolumeFactory(project=project, gone=True))

    assert "may be the last copy" in client.get(url("delete", snapshot)).content.decode()


@pytest.mark.parametrize("typed", ["", "something else"])
def test_without_the_name_nothing_is_deleted(typed: str, client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)

    assert errors_of(client.post(url("delete", snapshot), {"confirmation": typed, "is_last": "on"}))
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY


def test_a_snapshot_in_use_is_not_deleted(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, restore=True)

    response = client.post(
        url("delete", operation.snapshot), {"confirmation": operation.snapshot.name, "is_last": "on"}
    )

    assert "in use (Restore)" in errors_of(response)


def test_deleting_twice_is_deleting_once(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    for _ in range(2):
        assert client.post(url("delete", snapshot), {"confirmation": snapshot.name, "is_last": "on"}).status_code == 302

    assert Operation.objects.get().kind == Operation.Kind.DELETE


def test_a_restore_brings_the_bytes_back_and_can_be_undone(
    client: Client, snapshot: Snapshot, storage_root: Path
) -> None:
    response = client.post(url("restore", snapshot), {"confirmation": "web-01-root"})

    assert response["Location"] == page_of(snapshot)
    run_active_operations()
    assert start_of(storage_root, snapshot.volume) == BEFORE
    operation = snapshot.operations.get(kind=Operation.Kind.RESTORE)
    assert operation.state == Operation.State.SUCCEEDED
    safety = operation.safety_snapshot
    assert safety.name == "before-restore-of-web-01-root"

    undo = unescape(client.get(url("restore", safety)).content.decode())
    assert "Undo restore" in undo
    assert "before it was restored from “before-upgrade”" in undo
    client.post(url("restore", safety), {"confirmation": "web-01-root"})
    run_active_operations()
    assert start_of(storage_root, snapshot.volume) == AFTER


def test_the_confirmation_says_what_is_lost_and_what_the_safety_snapshot_costs(
    client: Client, snapshot: Snapshot
) -> None:
    page = unescape(client.get(url("restore", snapshot)).content.decode())

    assert "Everything written to “web-01-root” since then will be lost" in page
    assert "“before-restore-of-web-01-root”" in page
    assert "It costs K 0.40 an hour" in page
    assert "which is stopped" in page


def test_a_volume_that_has_grown_is_warned_about_its_end(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    Volume.objects.update(size_gb=5)
    sell_everywhere()

    page = unescape(client.get(url("restore", snapshot)).content.decode())

    assert "keeps its 5 GB; everything beyond the captured 1 GB is erased." in page


def test_restoring_from_a_damaged_snapshot_is_warned(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, damaged=True)
    sell_everywhere()

    page = client.get(url("restore", snapshot)).content.decode()

    assert "This snapshot is damaged, so restored data may be wrong." in page
    assert "Block 12 is not what was captured." in page


def test_while_the_machine_runs_a_reason_replaces_the_form(client: Client, snapshot: Snapshot) -> None:
    VirtualMachine.objects.update(state=VirtualMachine.State.RUNNING)

    page = unescape(client.get(url("restore", snapshot)).content.decode())

    assert "is running. Stop the instance first" in page
    assert "confirmation" not in page
    response = client.post(url("restore", snapshot), {"confirmation": "web-01-root"})
    assert unescape(response.text).count("is running. Stop the instance first") == 1
    assert not snapshot.operations.filter(kind=Operation.Kind.RESTORE).exists()


@pytest.mark.parametrize("typed", ["", "WEB-01-ROO", "web-01"])
def test_without_the_volume_s_name_nothing_is_overwritten(typed: str, client: Client, snapshot: Snapshot) -> None:
    response = client.post(url("restore", snapshot), {"confirmation": typed})

    assert "ype" in errors_of(response)
    assert f'value="{typed}"' in response.content.decode() or not typed
    assert not snapshot.operations.filter(kind=Operation.Kind.RESTORE).exists()


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("web-01", "WEB-01"),
        ("two blanks", "two  blanks"),
        ("café", "cafe\u0301"),
        ("no break", "no\xa0break"),
        ("မြန်\u200bမာ", "မြန်မာ"),
    ],
)
def test_a_restore_is_confirmed_by_typing_the_displayed_name(
    name: str, typed: str, client: Client, snapshot: Snapshot
) -> None:
    Volume.objects.update(name=name)
    assert client.post(url("restore", snapshot), {"confirmation": typed})["Location"] == page_of(snapshot)


@pytest.mark.parametrize(
    ("situation", "reason"),
    [
        ({"volume__gone": True}, "has been deleted"),
        ({"failed": True}, "is not ready (Failed)"),
        ({"volume__state": Volume.State.CREATING}, "is not usable yet"),
    ],
)
def test_the_page_says_why_a_snapshot_cannot_be_restored(
    situation: dict, reason: str, client: Client, project: Project
) -> None:
    snapshot = SnapshotFactory(volume__project=project, **situation)

    assert reason in unescape(client.get(url("restore", snapshot)).content.decode())


def test_a_restore_needs_credits_for_its_safety_snapshot(client_for: Callable[..., Client]) -> None:
    poor = ProjectFactory(customer=CustomerFactory())
    snapshot = SnapshotFactory(volume__project=poor)
    sell_everywhere()

    page = client_for(UserFactory(member_of=poor)).get(url("restore", snapshot)).content.decode()

    assert "Insufficient infra credit" in page


@pytest.fixture
def machine(project: Project, storage_root: Path) -> Snapshot:
    """A snapshot of a stopped machine with two disks."""
    vm = VirtualMachineFactory(project=project, name="db-01", stopped=True)
    for position, name in enumerate(["db-01-root", "db-01-data"]):
        volume = VolumeFactory(project=project, location=vm.location, vm=vm, position=position, name=name)
        put_volume(storage_root, volume, BEFORE)
    sell_everywhere(kind=ServiceKind.VM_SNAPSHOT, rate_micro=1_000_000)
    snapshot = services.request_snapshot(source=vm, name="machine", user=project.memberships.first().user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    return snapshot


def test_a_machine_is_restored_after_its_name_is_typed(client: Client, machine: Snapshot, storage_root: Path) -> None:
    root = machine.vm.volumes.get(position=0)
    put_volume(storage_root, root, AFTER)

    page = unescape(client.get(url("restore", machine)).content.decode())
    assert "Overwrite the disks of “db-01”?" in page
    assert "db-01-root, db-01-data" in page
    assert errors_of(client.post(url("restore", machine), {"confirmation": "db-01-root"}))
    assert client.post(url("restore", machine), {"confirmation": "db-01"})["Location"] == page_of(machine)

    run_active_operations()
    assert start_of(storage_root, root) == BEFORE
    assert "into db-01" in client.get(page_of(machine)).content.decode()


def test_a_new_machine_is_created_from_a_machines_snapshot(client: Client, machine: Snapshot, project: Project) -> None:
    assert "db-01-data" in client.get(url("new_machine", machine)).content.decode()

    response = client.post(url("new_machine", machine), {"name": "db-02", "project": project.pk})

    assert response["Location"] == page_of(machine)
    run_active_operations()
    created = VirtualMachine.objects.get(name="db-02")
    assert created.state == VirtualMachine.State.STOPPED
    assert {volume.state for volume in created.volumes.all()} == {Volume.State.AVAILABLE}
    assert created.volumes.count() == 2


def test_a_new_volume_is_made_of_the_chosen_disk_of_a_machine(
    client: Client, machine: Snapshot, project: Project
) -> None:
    disk = machine.disks.get(position=1)
    answers = {"disk": str(disk.pk), "name": "copy", "size_gb": 1, "project": project.pk}

    assert client.post(url("new_volume", machine), answers).status_code == 302

    assert Operation.objects.get(kind=Operation.Kind.NEW_VOLUME).disk == disk
    strange = client.post(url("new_volume", machine), answers | {"disk": "bogus"})
    assert "does not have this disk" in errors_of(strange)


def test_a_new_volume_from_a_machines_snapshot_requires_a_disk(
    client: Client, machine: Snapshot, project: Project
) -> None:
    owner = UserFactory(member_of=project)
    answers = {"name": "copy", "size_gb": 1, "project": project.pk}
    assert "Choose the disk" in errors_of(client.post(url("new_volume", machine), answers))
    with pytest.raises(InvalidState, match="has several disks. Choose"):
        new_volumes.request_new_volume(snapshot=machine, user=owner, project=project, name="copy", size_gb=1)
    machine.disks.all().delete()
    with pytest.raises(InvalidState, match="has no disks"):
        new_volumes.request_new_volume(snapshot=machine, user=owner, project=project, name="copy", size_gb=1)


def test_the_snapshot_of_a_volume_makes_no_machine(client: Client, project: Project) -> None:
    assert client.get(url("new_machine", SnapshotFactory(volume__project=project))).status_code == 404


def test_a_new_volume_larger_than_the_storage_can_hold_is_refused_at_once(
    client: Client, snapshot: Snapshot, project: Project
) -> None:
    answers = {"name": "copy", "size_gb": 1_000, "project": project.pk}
    with largest_file(size_gb=100):
        response = client.post(url("new_volume", snapshot), answers)
    assert "cannot hold a volume as large as this" in errors_of(response)
    assert not Volume.objects.filter(name="copy").exists()

    client.post(url("new_volume", snapshot), answers)
    with largest_file(size_gb=100):
        run_active_operations()
    operation = Operation.objects.get(kind=Operation.Kind.NEW_VOLUME)
    assert (operation.state, operation.attempt, operation.cause) == (Operation.State.FAILED, 1, "TooLarge")
    assert "Choose a smaller size" in operation.error and "Try again later" not in operation.error


def test_a_new_volume_has_the_snapshots_bytes_and_the_requested_size(
    client: Client, snapshot: Snapshot, project: Project, storage_root: Path
) -> None:
    answers = {"name": "web-01-copy", "size_gb": 2, "project": project.pk}

    response = client.post(url("new_volume", snapshot), answers)

    volume = Volume.objects.get(name="web-01-copy")
    assert response["Location"] == reverse("snapshots:volume", args=[volume.pk])
    assert volume.state == Volume.State.CREATING
    run_active_operations()
    volume.refresh_from_db()
    assert volume.state == Volume.State.AVAILABLE
    assert volume.size_gb == 2
    assert volume.location_id == snapshot.location_id
    assert start_of(storage_root, volume) == BEFORE
    assert start_of(storage_root, snapshot.volume) == AFTER


def test_the_form_suggests_name_size_and_project(client: Client, snapshot: Snapshot) -> None:
    form = client.get(url("new_volume", snapshot)).context["form"]

    assert form.initial["name"] == "web-01-root-copy"
    assert form.initial["size_gb"] == 1
    assert form.initial["project"] == snapshot.project_id


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"name": ""}, "Enter a name."),
        ({"name": "x" * 121}, "the limit is 120"),
        ({"name": "two\nlines"}, "can't be displayed"),
        ({"size_gb": ""}, "Enter a size"),
        ({"size_gb": "much"}, "whole number of GB"),
        ({"size_gb": "0"}, "at least 1 GB"),
        ({"size_gb": "-3"}, "at least 1 GB"),
        ({"size_gb": "99999999999999999999"}, "Choose a smaller size"),
        ({"project": ""}, "Choose a project."),
        ({"project": "bogus"}, "can't create anything in this project"),
    ],
)
def test_an_invalid_field_is_explained_and_the_others_keep_their_values(
    answer: dict, sentence: str, client: Client, project: Project
) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    answers = {"name": "web-01-copy", "size_gb": "1", "project": str(project.pk)} | answer

    response = client.post(url("new_volume", snapshot), answers)

    assert sentence in errors_of(response)
    shown_values = {name: response.context["form"][name].value() for name in answers}
    assert shown_values == answers
    assert Volume.objects.count() == 1


def test_the_project_must_be_changeable_and_of_the_same_customer(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    user = project.memberships.get().user
    only_seen = ProjectFactory(customer=project.customer)
    MembershipFactory(project=only_seen, user=user, role=Role.VIEWER)
    elsewhere = ProjectFactory()
    MembershipFactory(project=elsewhere, user=user)

    for other in (only_seen, elsewhere, ProjectFactory()):
        response = client.post(url("new_volume", snapshot), {"name": "copy", "size_gb": 1, "project": other.pk})
        assert "can't create anything in this project" in errors_of(response)


def test_no_volume_is_created_from_a_snapshot_that_is_not_ready(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, creating=True)

    assert "is not ready" in client.get(url("new_volume", snapshot)).content.decode()
    response = client.post(url("new_volume", snapshot), {"name": "copy", "size_gb": 1, "project": project.pk})
    assert response.text.count("is not ready") == 1


def test_a_snapshot_is_verified(client: Client, snapshot: Snapshot) -> None:
    response = client.post(url("verify", snapshot))

    assert response["Location"] == page_of(snapshot)
    run_active_operations()
    assert snapshot.disks.get().verified_at is not None
    assert "Never verified" not in client.get(page_of(snapshot)).content.decode()


def test_damage_that_verifying_finds_is_shown(client: Client, snapshot: Snapshot, storage_root: Path) -> None:
    path = storage_root / snapshot.location_id / "snapshots" / str(snapshot.pk) / "disk.img"
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.write(b"rot")
    client.post(url("verify", snapshot))
    run_active_operations()

    page = client.get(page_of(snapshot)).content.decode()

    assert "This snapshot is damaged" in page


def test_a_snapshot_that_is_not_ready_is_not_verified(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, creating=True)

    response = client.post(url("verify", snapshot))

    assert response.status_code == 200
    assert "is not ready" in response.content.decode()


def retry_url(operation: Operation) -> str:
    return reverse("snapshots:retry", args=[operation.pk])


def test_a_failed_capture_is_retried_and_succeeds(client: Client, project: Project, storage_root: Path) -> None:
    volume = VolumeFactory(project=project)
    sell_everywhere()
    path = put_volume(storage_root, volume, BEFORE)
    snapshot = services.request_snapshot(source=volume, name="nightly", user=project.memberships.get().user)
    path.unlink()
    run_active_operations()
    failed = snapshot.operations.get()
    assert failed.state == Operation.State.FAILED
    assert not UsageSegment.objects.exists()

    put_volume(storage_root, volume, BEFORE)
    response = client.post(retry_url(failed))

    assert response["Location"] == page_of(snapshot)
    assert "being retried" in messages_of(response)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY


def test_the_page_says_why_an_operation_cannot_be_retried(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, succeeded=True)

    response = client.post(retry_url(operation))

    assert response["Location"] == page_of(operation.snapshot)
    assert "nothing to retry" in messages_of(response)


def test_a_failed_new_volume_is_retried_from_its_own_page(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    operation = OperationFactory(snapshot=snapshot, new_volume=True, failed=True)
    volume = operation.volume
    Volume.objects.filter(pk=volume.pk).update(state=Volume.State.ERROR, deleted_at=timezone.now())

    response = client.post(retry_url(operation))

    assert response["Location"] == reverse("snapshots:volume", args=[volume.pk])
    volume.refresh_from_db()
    assert volume.state == Volume.State.CREATING


def test_retrying_needs_the_right_to_change(project: Project, client_for: Callable[..., Client]) -> None:
    operation = OperationFactory(snapshot__volume__project=project, failed=True)
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))

    assert viewer.post(retry_url(operation)).status_code == 403
    assert client_for(UserFactory()).post(retry_url(operation)).status_code == 404
    assert Client().post(retry_url(operation)).status_code == 302
    assert Operation.objects.count() == 1


def test_signing_in_meanwhile_leads_back_to_the_page(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, failed=True)

    assert client.get(retry_url(operation))["Location"] == page_of(operation.snapshot)
    assert Operation.objects.count() == 1


def test_a_prepaid_customer_without_credits_gets_an_explanation(client_for: Callable[..., Client]) -> None:
    poor = ProjectFactory()
    operation = OperationFactory(snapshot__volume__project=poor, snapshot__failed=True, capture=True, failed=True)
    sell_everywhere(rate_micro=MICRO)
    assert get_balance(customer=poor.customer, at=timezone.now() + timedelta(seconds=1)) == 0

    response = client_for(UserFactory(member_of=poor)).post(retry_url(operation))

    assert response.status_code == 302
    operation.snapshot.refresh_from_db()
    assert operation.snapshot.state == State.FAILED
