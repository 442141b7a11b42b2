"""The list of volumes and the page of a volume."""

import unicodedata
from collections.abc import Callable
from datetime import timedelta
from html import unescape

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role
from cng_portal.inventory.models import Volume
from snapshots.models import Operation, Snapshot
from snapshots.wizard import offers
from tests.factories import (
    BackupFactory,
    DiskImageFactory,
    DraftFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.test_list import HTMX, names, part_of

pytestmark = pytest.mark.django_db

LIST = "/volumes/"


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Software")


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


@pytest.fixture
def viewer(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))


def url(volume: Volume) -> str:
    return reverse("snapshots:volume", args=[volume.pk])


def take_url(volume: Volume) -> str:
    return reverse("snapshots:take_snapshot", args=[volume.pk])


def test_a_row_says_what_protects_the_volume(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, name="web-01-root", size_gb=50, attached=True, vm__name="web-01")
    ready = SnapshotFactory(volume=volume)
    SnapshotFactory(volume=volume, failed=True)
    SnapshotFactory(volume=volume, deleted=True)

    response = client.get(LIST)
    row = response.context["rows"][0]

    assert (row.snapshot_count, row.point) == (2, ready)
    page = response.content.decode()
    for word in ("web-01-root", "50 GB", "Software", volume.location_id, "web-01", "1 volume<"):
        assert word in page
    assert f'href="/snapshots/?volume={volume.pk}"' in page


def test_a_free_volume_without_snapshots_says_so(client: Client, project: Project) -> None:
    VolumeFactory(project=project)

    page = client.get(LIST).content.decode()

    assert '<td class="is-name" data-label="Attached to">–</td>' in page
    assert "Never" in page


def test_an_attached_volume_is_in_use(client: Client, project: Project) -> None:
    attached, free = VolumeFactory(project=project, attached=True), VolumeFactory(project=project)

    assert "<span>In use</span>" in client.get(url(attached)).text
    assert "<span>Available</span>" in client.get(url(free)).text


def test_the_newest_restorable_point_of_any_kind_protects_a_volume(client: Client, project: Project) -> None:
    """The list, its filter and the dashboard agree."""
    volume = VolumeFactory(project=project, attached=True)
    SnapshotFactory(volume=volume, ready_at=timezone.now() - timedelta(days=2))
    backup = BackupFactory(vm=volume.vm, name="nightly")
    DiskImageFactory(snapshot=backup, volume=volume, volume_name=volume.name)
    SnapshotFactory(volume=volume, damaged=True)

    response = client.get(LIST)

    assert response.context["rows"][0].point == backup
    assert f'<a href="{reverse("snapshots:snapshot", args=[backup.pk])}">nightly</a>' in response.text
    assert names(client.get(LIST, {"show": "unprotected"})) == []
    assert client.get("/").context["unprotected_count"] == 0


def test_a_long_name_gets_a_line_of_its_own_on_a_phone(client: Client, project: Project) -> None:
    VolumeFactory(project=project, attached=True, vm__name="mail-server-of-the-whole-company")

    assert '<td class="is-name is-wide" data-label="Attached to">' in client.get(LIST).content.decode()


def test_only_existing_volumes_of_the_users_projects_are_listed(client: Client, project: Project) -> None:
    mine = VolumeFactory(project=project)
    VolumeFactory(project=project, gone=True)
    VolumeFactory()

    assert names(client.get(LIST), "volume") == [mine.name]


def test_a_snapshot_is_taken_from_a_row_by_members(client: Client, viewer: Client, project: Project) -> None:
    volume = VolumeFactory(project=project)

    page = client.get(LIST).content.decode()
    assert f'form="take-snapshot" formaction="{take_url(volume)}"' in page
    assert '<form id="take-snapshot" method="post">' in page
    assert take_url(volume) not in viewer.get(LIST).content.decode()
    assert viewer.post(take_url(volume)).status_code == 403


def test_a_volume_that_is_being_created_offers_no_snapshot(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, state=Volume.State.CREATING)

    assert take_url(volume) not in client.get(LIST).content.decode()


def test_search_and_filters_narrow_the_list(client: Client, project: Project) -> None:
    attached = VolumeFactory(project=project, name="web-01-root", attached=True, vm__name="machine-7")
    free = VolumeFactory(project=project, name="archive")
    SnapshotFactory(volume=attached)
    SnapshotFactory(volume=free, failed=True)
    expected = {
        "q=WEB": attached,
        "q=machine-7": attached,
        f"q={free.pk}": free,
        f"q={free.pk.hex}": free,
        f"location={free.location_id}": free,
        "show=attached": attached,
        "show=free": free,
        "show=unprotected": free,
    }

    for query, volume in expected.items():
        assert names(client.get(f"{LIST}?{query}"), "volume") == [volume.name], query


def test_an_unknown_filter_is_ignored_and_reported(client: Client, project: Project) -> None:
    VolumeFactory(project=project)

    response = client.get(LIST, {"show": "bogus", "project": str(ProjectFactory().pk)})

    assert len(names(response, "volume")) == 1
    assert "were ignored:" in response.content.decode()


def test_no_match_and_no_volume_have_different_messages(client: Client, viewer: Client, project: Project) -> None:
    assert "Create your first volume" in client.get(LIST).content.decode()
    assert "No volumes here yet" in viewer.get(LIST).content.decode()
    VolumeFactory(project=project)
    assert "No volume matches" in client.get(LIST, {"q": "nothing like it"}).content.decode()


@pytest.mark.both_databases
def test_pages_go_by_name_and_neither_skip_nor_repeat(client: Client, project: Project) -> None:
    for n in range(45):
        VolumeFactory(project=project, name=f"disk-{n % 4}")

    listed, next_url = [], LIST
    while next_url:
        response = client.get(next_url)
        listed += [row.volume.pk for row in response.context["rows"]]
        next_url = response.context["pages"]["next_url"]

    assert listed == list(Volume.objects.order_by("name", "pk").values_list("pk", flat=True))


def test_the_fragment_equals_the_same_part_of_the_page(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project)
    client.get(LIST)  # a token for the forms, the same in both

    page = client.get(LIST).content.decode()
    fragment = client.get(LIST, headers=HTMX).content.decode()

    assert without_tokens(fragment).strip() == without_tokens(part_of(page, "volume-list"))


def without_tokens(html: str) -> list[str] | str:
    """Remove the CSRF tokens, which each response masks differently."""
    return "\n".join(line for line in html.splitlines() if "csrfmiddlewaretoken" not in line)


def test_the_page_has_facts_snapshots_and_operations(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, name="web-01-root", size_gb=50, attached=True)
    snapshot = SnapshotFactory(volume=volume)
    restore = OperationFactory(restore=True, succeeded=True, snapshot=snapshot)

    page = unescape(client.get(url(volume)).content.decode())

    for word in (">web-01-root</h1>", "50 GB", "Software", snapshot.name, str(volume.pk), "Restore", "Undo restore"):
        assert word in page
    assert reverse("snapshots:restore", args=[restore.safety_snapshot_id]) in page
    assert take_url(volume) in page


def test_a_deleted_volume_keeps_its_page_and_snapshots(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, gone=True)
    snapshot = SnapshotFactory(volume=volume)

    page = client.get(url(volume)).content.decode()

    assert "This volume is deleted" in page
    assert snapshot.name in page
    assert take_url(volume) not in page


def test_a_volume_that_only_copies_of_its_machine_hold_is_not_called_unprotected(
    client: Client, project: Project
) -> None:
    vm = VirtualMachineFactory(project=project, name="db-01")
    volume = VolumeFactory(project=project, location=vm.location, vm=vm)
    page = reverse("snapshots:volume", args=[volume.pk])
    assert "No snapshot or backup protects this volume" in client.get(page).text
    DiskImageFactory(snapshot=VMSnapshotFactory(vm=vm), volume=volume, volume_name=volume.name, size_gb=1)
    html = client.get(page).text
    assert "No snapshot or backup protects this volume" not in html
    assert "See db-01" in html


def test_a_failed_volume_shows_the_reason_and_is_retried(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, new_volume=True, failed=True, error="Out of room.")
    volume = operation.volume
    Volume.objects.filter(pk=volume.pk).update(state=Volume.State.ERROR, deleted_at=timezone.now())

    page = client.get(url(volume)).content.decode()

    assert "This volume couldn't be created" in page
    assert "Out of room." in page
    assert page.count(reverse("snapshots:retry", args=[operation.pk])) == 1


def test_a_viewer_sees_the_page_with_a_reason_instead_of_buttons(viewer: Client, project: Project) -> None:
    volume = SnapshotFactory(volume__project=project).volume

    page = viewer.get(url(volume)).content.decode()

    assert "you need to be a member or owner" in page
    assert take_url(volume) not in page


def test_a_stranger_gets_404_and_a_signed_out_person_signs_in(client: Client) -> None:
    volume = VolumeFactory()

    assert client.get(url(volume)).status_code == 404
    assert Client().get(url(volume)).status_code == 302
    assert Client().get(LIST).status_code == 302


def test_the_page_polls_until_the_volume_is_made(client: Client, project: Project) -> None:
    operation = OperationFactory(snapshot__volume__project=project, new_volume=True, running=True, bytes_total=100)
    volume = operation.volume
    page = client.get(url(volume))
    assert 'hx-trigger="every 2s, ' in page.content.decode()
    seen = {"seen": page.context["version"]}

    Operation.objects.update(bytes_done=40)
    progress = client.get(url(volume), seen, headers=HTMX)
    assert "40 %" in progress.content.decode()
    assert "HX-Retarget" not in progress

    Operation.objects.update(state="succeeded", finished_at=timezone.now())
    Volume.objects.filter(pk=volume.pk).update(state=Volume.State.AVAILABLE)
    settled = client.get(url(volume), seen, headers=HTMX)
    assert settled["HX-Retarget"] == "#volume"
    assert "hx-trigger" not in settled.content.decode()
    assert f"Volume {volume.name}: Available" in settled.content.decode()


def test_the_page_shows_the_newest_snapshots_and_links_to_all(
    client: Client, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapshots.views.volumes.SNAPSHOTS_SHOWN", 2)
    volume = VolumeFactory(project=project)
    SnapshotFactory.create_batch(3, volume=volume)

    response = client.get(url(volume))

    assert len(response.context["rows"]) == 2
    assert "All 3" in response.content.decode()


def test_snapshots_of_invisible_projects_stay_hidden(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project)
    hidden = SnapshotFactory(volume=volume, project=ProjectFactory(customer=project.customer))

    assert hidden.name not in client.get(url(volume)).content.decode()
    assert Snapshot.objects.count() == 1


@pytest.mark.parametrize("query", ["STRASSE", "stra\u200bße", "straße  1", unicodedata.normalize("NFD", "größe")])
def test_search_finds_names_however_they_are_typed(query: str, client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, name="Straße 1 Größe", vm=VirtualMachineFactory(project=project))
    machine = VirtualMachineFactory(project=project, name="Straße 1 Größe")
    VolumeFactory(project=project, name="other")

    assert names(client.get(LIST, {"q": query}), "volume") == [volume.name]
    assert names(client.get(reverse("snapshots:machines"), {"q": query}), "vm") == [machine.name]
    draft = DraftFactory(
        created_by=UserFactory(member_of=project), project=project, location=volume.location, kind="volume"
    )
    assert list(offers.offered_sources(draft.created_by, draft, q=query)) == [volume]
