"""The page of a snapshot: facts, cost, operations that refresh themselves, and permissions."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.usage import close_segment, open_segment
from cng_portal.accounts.models import Project, Role
from cng_portal.inventory.models import Location
from snapshots.models import DiskImage, Operation, Snapshot
from tests.factories import (
    DiskImageFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.test_list import HTMX, part_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project, name="Aye Aye"))


@pytest.fixture
def viewer(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))


def url(snapshot: Snapshot) -> str:
    return reverse("snapshots:snapshot", args=[snapshot.pk])


def text_of(client: Client, snapshot: Snapshot) -> str:
    return unescape(client.get(url(snapshot)).text).replace("\N{NO-BREAK SPACE}", " ")


def charged(project: Project, hours: float, size_gb: int = 50) -> Snapshot:
    """Return a snapshot that has been ready and charged for that long."""
    ready_at = timezone.now() - timedelta(hours=hours)
    snapshot = SnapshotFactory(volume__project=project, volume__size_gb=size_gb, ready_at=ready_at)
    sell_everywhere(400_000)
    open_segment(
        resource_id=snapshot.pk,
        kind=snapshot.service_kind,
        name=snapshot.name,
        project=project,
        location=snapshot.location,
        size_gb=size_gb,
        at=ready_at,
    )
    return snapshot


def test_the_pages_say_what_the_provider_entered_about_encryption(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    pages = [url(snapshot), reverse("snapshots:volume", args=[snapshot.volume_id])]
    for page in pages:
        assert "ncryption" not in client.get(page).text, "nothing is promised where nothing is entered"
    Location.objects.update(encryption="LUKS on every disk <below>")
    for page in pages:
        text = client.get(page).text
        assert "Encryption at rest" in text and "LUKS on every disk &lt;below&gt;" in text


def test_the_page_states_the_facts(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(
        name="before-upgrade",
        volume=VolumeFactory(project=project, size_gb=50, name="web-01-root"),
        requested_by=project.memberships.get().user,
    )
    DiskImage.objects.update(allocated_bytes=3 * 1024**3, checksum="ab" * 32, verified_at=timezone.now())

    page = text_of(client, snapshot)

    for fact in (">before-upgrade</h1>", "web-01-root", "50 GB", "3 GB", "by Aye Aye", "ab" * 32, str(snapshot.pk)):
        assert fact in page
    assert f'data-copy="{"ab" * 32}"' in page


def test_a_checksum_that_follows_says_so(client: Client, project: Project) -> None:
    assert "Computed soon after the capture" in text_of(client, SnapshotFactory(volume__project=project))


def test_damage_is_shown_prominently(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, damaged=True)
    DiskImage.objects.update(damage="Block 12 does not have the bytes that were captured.")

    page = text_of(client, snapshot)

    assert "This snapshot is damaged" in page
    assert "Block 12 does not have the bytes that were captured." in page


# Hours in two months would be two lines.
@time_machine.travel(datetime(2026, 11, 18, 9, tzinfo=UTC), tick=False)
def test_the_price_is_shown_with_its_formula_and_the_cost_so_far(
    project: Project, client_for: Callable[..., Client]
) -> None:
    page = text_of(client_for(UserFactory(member_of=project)), charged(project, hours=2.75))

    assert '<span class="price-amount">K 20.00</span>' in page
    assert "50 GB × K 0.4000 = K 20.00 an hour" in page
    assert "K 14,640.00" in page
    assert "K 60.00" in page
    assert "3 started hours" in page
    assert "3 hours × 50 GB × K 0.4000 = K 60.00" in page


def test_a_snapshot_that_was_never_ready_costs_nothing(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, failed=True)
    sell_everywhere()

    page = text_of(client, snapshot)

    assert "K 0.00" in page
    assert "Price Summary" not in page
    assert "The storage ran out of room." in page


def test_a_deleted_snapshot_stays_as_a_record_without_actions(client: Client, project: Project) -> None:
    snapshot = charged(project, hours=1.5)
    now = timezone.now()
    close_segment(resource_id=snapshot.pk, kind=snapshot.service_kind, at=now)
    Snapshot.objects.update(state="deleted", delete_requested_at=now, deleted_at=now, deletion_cause="user")

    page = text_of(client, snapshot)

    assert "This snapshot is deleted" in page
    assert "Final cost" in page
    assert "K 40.00" in page
    assert 'id="act-' not in page
    for action in ("rename", "delete", "restore", "new_volume", "verify"):
        assert client.get(reverse(f"snapshots:{action}", args=[snapshot.pk])).status_code == 404


def test_a_viewer_sees_everything_and_why_there_are_no_buttons(viewer: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)

    page = text_of(viewer, snapshot)

    assert snapshot.name in page
    assert 'id="act-' not in page
    assert "you need to be a member or owner" in page


def test_a_stranger_gets_404_and_a_signed_out_person_signs_in(client: Client) -> None:
    snapshot = SnapshotFactory()

    assert client.get(url(snapshot)).status_code == 404
    response = Client().get(url(snapshot))
    assert parse_qs(urlsplit(response["Location"]).query)["next"] == [url(snapshot)]


@pytest.mark.parametrize(
    ("state", "actions"),
    [
        (
            None,
            [
                "new_volume",
                "restore",
                "files",
                "lock",
                "rename",
                "labels",
                "expiry",
                "verify",
                "request_drill",
                "delete",
            ],
        ),
        ("failed", ["rename", "labels", "expiry", "delete"]),
        ("creating", ["cancel_snapshot", "rename", "labels", "expiry"]),
        ("deleting", []),
    ],
)
def test_only_possible_actions_are_offered(
    state: str | None, actions: list[str], client: Client, project: Project
) -> None:
    snapshot = SnapshotFactory(volume__project=project, **({state: True} if state else {}))

    assert [action.name for action in client.get(url(snapshot)).context["actions"]] == actions


def test_the_snapshot_of_a_volume_that_is_gone_can_become_a_new_volume(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume=VolumeFactory(project=project, gone=True))

    response = client.get(url(snapshot))

    assert "Deleted volume" in response.content.decode()
    actions = [action.name for action in response.context["actions"]]
    assert actions == ["new_volume", "files", "lock", "rename", "labels", "expiry", "verify", "request_drill", "delete"]


def test_operations_show_requester_time_progress_and_reason(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    user = project.memberships.get().user
    OperationFactory(snapshot=snapshot, running=True, requested_by=user, bytes_done=1024**3, bytes_total=4 * 1024**3)
    OperationFactory(snapshot=snapshot, failed=True, error="The engine does not answer.")

    page = text_of(client, snapshot)

    for word in ("Verify", "by Aye Aye", "1 GB of 4 GB · 25 %", "The engine does not answer.", "by the portal"):
        assert word in page


def test_a_failed_capture_can_be_retried(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, snapshot__failed=True, capture=True, failed=True)

    page = text_of(client, operation.snapshot)

    assert page.count(f'action="{reverse("snapshots:retry", args=[operation.pk])}"') == 1


def test_only_the_newest_failure_of_a_kind_can_be_retried(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    old = OperationFactory(snapshot=snapshot, failed=True, created_at=timezone.now() - timedelta(hours=1))
    OperationFactory(snapshot=snapshot, succeeded=True)

    assert str(old.pk) + "/retry" not in text_of(client, snapshot)


def test_a_viewer_cannot_retry(viewer: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, failed=True)

    assert reverse("snapshots:retry", args=[operation.pk]) not in text_of(viewer, operation.snapshot)


def test_a_restore_is_undone_from_its_safety_snapshot(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, restore=True, succeeded=True)
    undo = reverse("snapshots:restore", args=[operation.safety_snapshot_id])

    assert f'href="{undo}"' in text_of(client, operation.snapshot)
    assert "Undo restore" in text_of(client, operation.safety_snapshot)


def test_a_failed_restore_starts_again_from_its_confirmation(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, restore=True, failed=True)

    page = text_of(client, operation.snapshot)

    assert "Restore again" in page
    assert "Undo restore" not in page


def test_the_page_polls_only_while_an_operation_is_active(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, creating=True)
    operation = OperationFactory(snapshot=snapshot, capture=True, running=True)

    def main() -> str:
        # outside it are the bell and the search
        return text_of(client, snapshot).partition("<main")[2].partition("</main>")[0]

    assert 'hx-trigger="every 2s, ' in main()

    Snapshot.objects.update(state="ready", ready_at=timezone.now())
    Operation.objects.filter(pk=operation.pk).update(state="succeeded", finished_at=timezone.now())
    assert "hx-trigger" not in main()


def test_a_poll_with_only_new_progress_sends_only_the_operations(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, creating=True)
    OperationFactory(snapshot=snapshot, capture=True, running=True, bytes_total=100)
    page = client.get(url(snapshot))
    Operation.objects.update(bytes_done=50)

    polled = client.get(url(snapshot), {"seen": page.context["version"]}, headers=HTMX)

    assert polled.content.decode().strip().startswith('<section id="work"')
    assert "50 %" in polled.content.decode()
    assert "HX-Retarget" not in polled


def test_a_settled_snapshot_refreshes_the_page_once_with_an_announcement(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, creating=True)
    OperationFactory(snapshot=snapshot, capture=True, running=True)
    version = client.get(url(snapshot)).context["version"]
    Snapshot.objects.update(state="ready", ready_at=timezone.now())
    Operation.objects.update(state="succeeded", finished_at=timezone.now())

    polled = client.get(url(snapshot), {"seen": version}, headers=HTMX)

    assert polled["HX-Retarget"] == "#snapshot"
    assert polled["HX-Reswap"] == "outerHTML"
    fragment = polled.content.decode()
    assert "hx-trigger" not in fragment
    assert f"{snapshot.name}: Ready" in fragment
    page = client.get(url(snapshot)).content.decode()
    assert fragment.strip().startswith(part_of(page, "snapshot"))


def test_a_stranger_cannot_poll(client: Client) -> None:
    assert client.get(url(SnapshotFactory()), headers=HTMX).status_code == 404


def test_the_outcome_of_a_restore_replaces_its_message(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, restore=True, running=True)
    seen = {"seen": client.get(url(operation.snapshot)).context["version"]}
    assert 'id="messages"' not in client.get(url(operation.snapshot), seen, headers=HTMX).text

    Operation.objects.update(state=Operation.State.SUCCEEDED, finished_at=timezone.now())

    ended = client.get(url(operation.snapshot), seen, headers=HTMX).text
    messages = ended.split('<div id="messages"')[1]
    assert messages.startswith(' class="messages" hx-swap-oob="true"')
    assert "Restored" in messages


def test_a_snapshot_that_is_being_taken_can_be_cancelled_in_one_place(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, snapshot__creating=True, capture=True, running=True)

    page = client.get(url(operation.snapshot)).text

    assert page.count("Cancel</a>") == 1
    assert reverse("snapshots:delete", args=[operation.snapshot_id]) not in page


def test_the_disks_of_a_machine_are_a_table(client: Client, project: Project) -> None:
    vm = VirtualMachineFactory(project=project)
    snapshot = VMSnapshotFactory(vm=vm)
    for position, name in enumerate(("root", "data")):
        volume = VolumeFactory(project=project, vm=vm, name=name)
        DiskImageFactory(id=None, snapshot=snapshot, volume=volume, volume_name=name, position=position)

    page = client.get(url(snapshot)).text

    table = page.split('id="disks-title"')[1].split("</table>")[0]
    assert "root" in table and "data" in table
    assert table.count("Never verified") == 2
