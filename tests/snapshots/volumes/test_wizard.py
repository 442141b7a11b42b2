"""Create Volume: permissions, valid answers, and changes between steps."""

from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership, Role
from cng_portal.inventory.models import Location, Volume
from snapshots import services
from snapshots.damage import record_damage
from snapshots.models import DiskImage, Draft, Operation, Snapshot
from snapshots.storage.contract import GIB, NoSpace
from snapshots.storage.local import LocalDriver
from snapshots.volumes import new_volumes
from snapshots.volumes import services as volume_services
from snapshots.wizard import steps, wizard
from tests.factories import (
    DiskImageFactory,
    LocationFactory,
    MembershipFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, holds, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
NOBODYS_ID = "00000000-0000-4000-8000-000000000000"
SLUGS = ["location", "project", "size", "source", "name", "review"]
START = "/volumes/new/"
NEEDED = {"project": "size", "size": "size", "source": "size", "name": "name", "review": "review"}


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, project__name="Default")


@pytest.fixture
def location(storage_root: Path) -> Location:
    """A location that sells Block Storage for K 0.4 per GB and hour."""
    location = LocationFactory(code="1CNG-YGN-AZ01")
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    return location


@pytest.fixture
def disk(storage_root: Path, member: Membership, location: Location) -> DiskImage:
    """The disk of a captured snapshot of a volume of 3 GB."""
    volume = VolumeFactory(project=member.project, location=location, size_gb=3, name="db-01-data")
    put_volume(storage_root, volume, content(b"bytes"))
    sell_everywhere()
    snapshot = services.request_snapshot(source=volume, name="before the update", user=member.user)
    run_active_operations()
    return snapshot.disks.get()


@pytest.fixture
def client(client_for: Callable[..., Client], member: Membership) -> Client:
    return client_for(member.user)


def url(draft: Draft, step: str) -> str:
    return wizard.url(draft, step)


def draft_of(member: Membership, location: Location, **answers: Any) -> Draft:
    """Return a draft with every answer, except those that are None."""
    draft = wizard.start(member.user, kind=Draft.CREATE_VOLUME)
    customer, project = member.project.customer, member.project
    defaults = {"customer": customer, "location": location, "project": project, "size_gb": 50, "name": "data"}
    for name, value in (defaults | answers).items():
        setattr(draft, name, value)
    draft.save()
    return draft


def confirm(client: Client, draft: Draft, **fields: Any) -> Any:
    data = {"billing_cycle": "hourly", "shown_hourly_micro": 20_000_000} | fields
    return client.post(url(draft, "review"), data)


def image_of(storage_root: Path, volume: Volume) -> Path:
    return storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"


def test_the_wizard_leads_from_a_location_to_an_available_volume(
    client: Client, storage_root: Path, member: Membership, location: Location
) -> None:
    answers = {"location": location.pk, "project": member.project.pk, "size_gb": 50, "name": "  Uploads "}
    step_url = reverse("snapshots:create_volume")
    headings = ["Choose a Location", "Assign to a Project", "Choose a Size", "Choose Volume Name"]
    for heading, (field, answer) in zip(headings, answers.items(), strict=True):
        assert heading in client.get(step_url).text
        response = client.post(step_url, {field: answer})
        assert response.status_code == 302
        step_url = response["Location"]
    page = client.get(step_url).text.replace("\N{NO-BREAK SPACE}", " ")
    for text in ("Create Volume", "Uploads", "None: the volume is empty", "Hourly", "Fixed Prorata", "K 14,640.00"):
        assert text in page, text
    assert "50 GB × K 0.4000 = K 20.00 an hour" in page
    response = client.post(step_url, {"billing_cycle": "hourly", "shown_hourly_micro": 20_000_000})
    volume = Volume.objects.get()
    assert response["Location"] == reverse("snapshots:volume", args=[volume.pk]) + "#heading"
    assert (volume.name, volume.state, volume.project) == ("Uploads", Volume.State.CREATING, member.project)
    assert not UsageSegment.objects.exists()
    run_active_operations()
    volume.refresh_from_db()
    assert volume.state == Volume.State.AVAILABLE
    image = image_of(storage_root, volume)
    assert image.stat().st_size == 50 * GIB and holds(image, b"")
    segment = UsageSegment.objects.get()
    assert (segment.resource_id, segment.size_gb, segment.started_at) == (volume.pk, 50, volume.available_at)


def test_a_volume_from_a_snapshot_has_its_bytes(
    client: Client, storage_root: Path, member: Membership, location: Location, disk: DiskImage
) -> None:
    draft = draft_of(member, location, size_gb=None, name="")
    assert "before the update" in client.get(url(draft, "source")).text
    response = client.post(url(draft, "source"), {"disk": disk.pk})
    assert response["Location"] == url(draft, "size")
    page = client.get(url(draft, "size")).text
    assert 'value="3"' in page and "before the update · db-01-data" in page
    too_small = client.post(url(draft, "size"), {"size_gb": 2})
    assert "at least 3 GB, the size of the captured disk" in too_small.text
    assert client.post(url(draft, "size"), {"size_gb": 5})["Location"] == url(draft, "name")
    assert 'value="db-01-data-copy"' in client.get(url(draft, "name")).text
    client.post(url(draft, "name"), {"name": "copy"})
    confirm(client, draft, shown_hourly_micro=2_000_000)
    run_active_operations()
    volume = Volume.objects.get(name="copy")
    assert volume.state == Volume.State.AVAILABLE
    image = image_of(storage_root, volume)
    assert image.stat().st_size == 5 * GIB and holds(image, content(b"bytes"))
    segment = UsageSegment.objects.get(resource_id=volume.pk)
    assert (segment.size_gb, segment.started_at) == (5, volume.available_at)


def test_looking_at_the_first_step_leaves_no_draft(client: Client, location: Location) -> None:
    client.get(START)
    assert not Draft.objects.exists()


@pytest.mark.parametrize("step", SLUGS)
def test_the_fragment_is_the_same_as_in_the_page(
    client: Client, member: Membership, location: Location, step: str
) -> None:
    draft = draft_of(member, location)
    page = client.get(url(draft, step)).text
    fragment = client.get(url(draft, step), headers=HTMX).text
    assert "<html" in page and "<html" not in fragment

    def without_token(text: str) -> str:
        return " ".join(line for line in text.split("\n") if "csrfmiddlewaretoken" not in line and line.strip())

    assert " ".join(without_token(fragment).split()) in " ".join(without_token(page).split())


@pytest.mark.parametrize("step", SLUGS)
def test_a_stranger_finds_no_draft(
    client_for: Callable[..., Client], member: Membership, location: Location, step: str
) -> None:
    stranger = client_for(MembershipFactory().user)
    draft = draft_of(member, location)
    assert stranger.get(url(draft, step)).status_code == 404
    assert stranger.post(url(draft, step), {}).status_code == 404


def test_a_draft_of_another_wizard_is_not_found(
    client: Client, member: Membership, location: Location, disk: DiskImage
) -> None:
    draft, other = draft_of(member, location), wizard.start(member.user, source=disk.volume)
    assert client.get(reverse("snapshots:wizard", args=[draft.pk, "review"])).status_code == 404
    assert client.get(reverse("snapshots:volume_wizard", args=[other.pk, "review"])).status_code == 404
    assert client.get(url(draft, "nonsense")).status_code == 404
    assert client.get(reverse("snapshots:check_name", args=[draft.pk])).status_code == 404


def test_a_viewer_who_creates_a_volume_gets_the_reason_for_the_refusal(
    client_for: Callable[..., Client], member: Membership, location: Location
) -> None:
    viewer = client_for(MembershipFactory(project=member.project, role=Role.VIEWER).user)
    draft = draft_of(member, location)
    for response in (viewer.get(START), viewer.get(url(draft, "review")), confirm(viewer, draft)):
        assert response.status_code == 403
        assert "owner" in response.text
    assert not Volume.objects.exists()


def test_a_colleague_with_the_right_role_can_continue_the_draft(
    client_for: Callable[..., Client], member: Membership, location: Location
) -> None:
    colleague = MembershipFactory(project=member.project, role=Role.MEMBER).user
    assert confirm(client_for(colleague), draft_of(member, location)).status_code == 302
    assert Operation.objects.get().requested_by == colleague


@pytest.mark.parametrize(
    ("step", "field", "answer", "sentence"),
    [
        ("location", "location", "", "Choose a location."),
        ("location", "location", "1CNG-NOWHERE", "This location is no longer available."),
        ("location", "location", "\x00", "Null characters are not allowed."),
        ("project", "project", "", "Choose a project."),
        ("project", "project", NOBODYS_ID, "You can no longer use this project."),
        ("project", "project", "no uuid", "You can no longer use this project."),
        ("size", "size_gb", "", "Enter a size."),
        ("size", "size_gb", "a lot", "Enter the size as a whole number of GB."),
        ("size", "size_gb", "1.5", "Enter the size as a whole number of GB."),
        ("size", "size_gb", "0", "A volume has at least 1 GB."),
        ("size", "size_gb", "-5", "A volume has at least 1 GB."),
        ("size", "size_gb", "16001", "A volume has at most 16,000 GB."),
        ("source", "disk", NOBODYS_ID, "You can no longer use this snapshot."),
        ("source", "disk", "no uuid", "You can no longer use this snapshot."),
        ("name", "name", "", "Enter a name"),
        ("name", "name", "x" * 121, "The name has 121 characters; the limit is 120."),
        ("name", "name", "two\nlines", "a character that can't be displayed"),
    ],
)
def test_a_bad_answer_is_explained_and_loses_nothing(
    client: Client, member: Membership, location: Location, step: str, field: str, answer: str, sentence: str
) -> None:
    draft = draft_of(member, location)
    response = client.post(url(draft, step), {field: answer}, headers=HTMX)
    assert response.status_code == 200
    assert unescape(response.text).count(sentence) >= 2, "in the summary and beside the field"
    if step in ("size", "name") and answer.isprintable() and answer:
        assert f'value="{answer}"' in response.text
    assert draft == Draft.objects.get(size_gb=50, name="data", disk=None)


def test_a_size_beyond_the_storage_is_refused_at_the_size_step(
    client: Client, member: Membership, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = draft_of(member, location)
    monkeypatch.setattr(LocalDriver, "free_bytes", lambda driver: 0)
    assert "is too full" in client.post(url(draft, "location"), {"location": location.pk}).text
    assert "is too full" in client.get(START).text
    monkeypatch.undo()

    def refuse(driver: LocalDriver, size_gb: int) -> None:
        if size_gb > 100:
            raise NoSpace("No volume of this size can be created here.")

    monkeypatch.setattr(LocalDriver, "check_volume_size", refuse)
    assert "No volume of this size" in client.post(url(draft, "size"), {"size_gb": 101}).text
    assert client.post(url(draft, "size"), {"size_gb": 100}).status_code == 302


def test_a_location_without_storage_says_so(client: Client, location: Location) -> None:
    LocationFactory(code="1CNG-NEW-AZ01", driver="not-set-up")
    assert "The storage of 1CNG-NEW-AZ01 is not set up." in client.get(START).text
    answer = client.post(START, {"location": "1CNG-NEW-AZ01"})
    assert "The storage of 1CNG-NEW-AZ01 is not set up. Choose another location." in answer.text
    closed = LocationFactory(code="1CNG-OLD-AZ01", active=False)
    assert closed.pk not in client.get(START).text
    assert "no longer available" in client.post(START, {"location": closed.pk}).text
    assert not Draft.objects.exists()


def test_where_block_storage_is_not_sold_a_volume_costs_nothing(
    client: Client, member: Membership, storage_root: Path
) -> None:
    location = LocationFactory()
    assert "costs nothing here" in client.get(START).text
    draft = draft_of(member, location)
    for step in ("size", "name", "review"):
        page = client.get(url(draft, step)).text
        assert f"A volume in {location.code} costs nothing here" in page and "Price Summary" not in page
    assert confirm(client, draft, shown_hourly_micro=0).status_code == 302
    run_active_operations()
    assert Volume.objects.get().state == Volume.State.AVAILABLE
    assert not UsageSegment.objects.exists()


def test_a_price_is_shown_with_the_size(client: Client, member: Membership, location: Location) -> None:
    assert "K 0.4000 per GB and hour" in client.get(START).text.replace("\N{NO-BREAK SPACE}", " ")
    draft = draft_of(member, location, size_gb=None, name="")
    page = client.get(url(draft, "size")).text
    assert 'value="10"' in page and "K 4.00" in page
    preview = client.get(url(draft, "size"), {"size_gb": 25}, headers=HTMX).text
    assert "K 10.00" in preview
    wrong = client.get(url(draft, "size"), {"size_gb": 0}, headers=HTMX).text
    assert "Price Summary" not in wrong and "A volume has at least 1 GB." in wrong.partition('id="size-check"')[2]
    draft.refresh_from_db()
    assert draft.size_gb is None
    for step, has_price in [("location", False), ("project", False), ("name", True), ("review", True)]:
        assert ("Price Summary" in client.get(url(draft_of(member, location), step)).text) is has_price, step


@pytest.mark.parametrize("owner", ["customer", "project"])
def test_a_full_quota_is_shown_at_the_size_step(
    client: Client, member: Membership, location: Location, owner: str
) -> None:
    limited = member.project if owner == "project" else member.project.customer
    type(limited).objects.filter(pk=limited.pk).update(volume_gb_quota=49)
    draft = draft_of(member, location, size_gb=None, name="")
    assert "0 of 49 GB of volumes" in client.get(url(draft, "size")).text
    assert "Quota full" in client.post(url(draft, "size"), {"size_gb": 50}).text
    assert client.post(url(draft, "size"), {"size_gb": 49}).status_code == 302


def test_insufficient_credits_are_shown_at_the_size_step(
    client: Client, member: Membership, location: Location
) -> None:
    draft = draft_of(member, location)
    type(member.project.customer).objects.update(billing_type="prepaid")
    response = client.post(url(draft, "size"), {"size_gb": 50})
    assert "Insufficient infra credit" in response.text and "K 20.00 more" in response.text
    assert confirm(client, draft)["Location"] == url(draft, "size")
    assert not Volume.objects.exists()


def test_an_answer_that_was_typed_as_the_session_ended_is_there_again(
    client: Client, member: Membership, location: Location
) -> None:
    draft = draft_of(member, location, size_gb=None, name="")
    response = Client().post(url(draft, "size"), {"size_gb": 77})
    assert response.status_code == 302 and "size_gb%3D77" in response["Location"]
    assert 'value="77"' in client.get(url(draft, "size"), {"size_gb": 77}).text


def test_only_usable_snapshots_of_the_location_that_the_user_may_use_are_offered(
    client: Client, member: Membership, location: Location, disk: DiskImage
) -> None:
    shared = {"location": location, "project": member.project}
    viewed = MembershipFactory(user=member.user, project__customer=member.project.customer, role=Role.VIEWER).project
    others = [
        SnapshotFactory(volume=disk.volume, name="damaged one", damaged=True),
        SnapshotFactory(volume=disk.volume, name="failed one", failed=True),
        SnapshotFactory(volume__project=member.project, volume__location=LocationFactory(), name="elsewhere"),
        SnapshotFactory(volume__project=viewed, volume__location=location, name="only viewed"),
        SnapshotFactory(volume__location=location, name="foreign"),
    ]
    draft = draft_of(member, location, size_gb=None)
    page = client.get(url(draft, "source")).text
    assert "before the update" in page and "Empty volume" in page
    for snapshot in others:
        assert snapshot.name not in page
        image = snapshot.disks.first() or DiskImageFactory(snapshot=snapshot, **{"volume": snapshot.volume})
        assert "You can no longer use this snapshot." in client.post(url(draft, "source"), {"disk": image.pk}).text
    vm = VMSnapshotFactory(vm__project=member.project, vm__location=location, name="whole machine")
    for position, name in enumerate(("root", "logs")):
        volume = VolumeFactory(name=name, vm=vm.vm, **shared)
        DiskImageFactory(id=None, snapshot=vm, volume=volume, volume_name=name, position=position, size_gb=7)
    page = client.get(url(draft, "source")).text
    assert page.count("whole machine") == 2 and "logs, 7 GB" in page
    results = client.get(url(draft, "source"), {"q": "MACHINE"}).text
    assert "whole machine" in results and "before the update" not in results
    nothing = client.get(url(draft, "source"), {"q": "<nothing>"}).text
    assert "No snapshot or backup matches “&lt;nothing&gt;”" in nothing and "Empty volume" in nothing


def test_the_source_can_be_changed_and_left_out_again(
    client: Client, member: Membership, location: Location, disk: DiskImage
) -> None:
    draft = draft_of(member, location)
    client.post(url(draft, "source"), {"disk": ""})
    draft.refresh_from_db()
    assert (draft.size_gb, draft.name) == (50, "data"), "nothing has changed"
    client.post(url(draft, "source"), {"disk": disk.pk})
    draft.refresh_from_db()
    assert (draft.disk, draft.size_gb, draft.name) == (disk, None, "")
    assert client.get(url(draft, "review"))["Location"] == url(draft, "size")
    client.post(url(draft, "source"), {"disk": ""})
    draft.refresh_from_db()
    assert draft.disk is None


def test_changing_the_location_clears_the_source_and_its_size(
    client: Client, member: Membership, location: Location, disk: DiskImage
) -> None:
    elsewhere = LocationFactory(code="1CNG-MDY-AZ01")
    draft = draft_of(member, location, disk=disk)
    client.post(url(draft, "location"), {"location": elsewhere.pk})
    draft.refresh_from_db()
    assert (draft.disk, draft.size_gb, draft.name, draft.project) == (None, None, "", member.project)
    empty = draft_of(member, location)
    client.post(url(empty, "location"), {"location": elsewhere.pk})
    empty.refresh_from_db()
    assert (empty.size_gb, empty.name) == (50, "data")


def test_changing_to_a_project_of_another_account_clears_the_source(
    client: Client, member: Membership, location: Location, disk: DiskImage
) -> None:
    other = MembershipFactory(user=member.user).project
    draft = draft_of(member, location, disk=disk)
    client.post(url(draft, "project"), {"project": other.pk})
    draft.refresh_from_db()
    assert (draft.disk, draft.size_gb, draft.customer) == (None, None, other.customer)


def test_a_source_that_was_damaged_meanwhile_is_noticed_at_the_size(
    client: Client, member: Membership, location: Location, disk: DiskImage
) -> None:
    draft = draft_of(member, location, disk=disk)
    record_damage(disk.snapshot, {disk: "A block differs."}, timezone.now())
    response = confirm(client, draft)
    assert response["Location"] == url(draft, "size")
    page = unescape(client.get(url(draft, "size")).text)
    assert "The snapshot “before the update” can no longer be used." in page and url(draft, "source") in page
    assert not Volume.objects.filter(name="data").exists()


def test_the_review_says_who_will_be_able_to_read_the_data(
    client: Client, member: Membership, location: Location, disk: DiskImage
) -> None:
    other = MembershipFactory(user=member.user, project__customer=member.project.customer).project
    MembershipFactory(project=other, user__name="Thiri Win", role=Role.VIEWER)
    draft = draft_of(member, location, disk=disk, project=other)
    page = client.get(url(draft, "review")).text
    assert "Who can read it" in page and "Thiri Win" in page


def test_the_review_says_nothing_of_a_project_that_the_user_does_not_see(
    client_for: Callable[..., Client], member: Membership, location: Location, disk: DiskImage
) -> None:
    keeper = MembershipFactory(project__customer=member.project.customer, project__name="Archive")
    Snapshot.objects.update(project=keeper.project)
    draft = draft_of(keeper, location, disk=disk)
    page = client_for(keeper.user).get(url(draft, "review")).text
    assert "before the update" in page and "Who can read it" not in page


@pytest.mark.parametrize("with_source", [False, True])
def test_a_price_that_moved_is_shown_before_it_is_charged(
    client: Client, member: Membership, location: Location, disk: DiskImage, with_source: bool
) -> None:
    draft = draft_of(member, location, disk=disk if with_source else None)
    response = confirm(client, draft, shown_hourly_micro=19_000_000)
    assert response.status_code == 200
    assert "The price has changed to K 20.00 an hour since it was shown." in response.text
    assert not Volume.objects.filter(name="data").exists()
    assert confirm(client, draft).status_code == 302


def test_a_price_that_appeared_is_shown_before_it_is_charged(
    client: Client, member: Membership, storage_root: Path
) -> None:
    draft = draft_of(member, LocationFactory())
    assert "costs nothing here" in client.get(url(draft, "review")).text
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    response = confirm(client, draft, shown_hourly_micro=0)
    assert "The price has changed to K 20.00 an hour since it was shown." in response.text
    assert not Volume.objects.exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"billing_cycle": "monthly"}, "support only Hourly billing cycles"),
        ({"shown_hourly_micro": "free"}, "The price is missing."),
    ],
)
def test_a_tampered_review_is_explained(
    client: Client, member: Membership, location: Location, fields: dict[str, str], sentence: str
) -> None:
    response = confirm(client, draft_of(member, location), **fields)
    assert response.status_code == 200 and sentence in response.text
    assert not Volume.objects.exists()


@pytest.mark.parametrize("with_source", [False, True])
def test_a_double_click_creates_one_volume(
    client: Client, member: Membership, location: Location, disk: DiskImage, with_source: bool
) -> None:
    draft = draft_of(member, location, disk=disk if with_source else None)
    done = confirm(client, draft)["Location"]
    volume = Volume.objects.get(name="data")
    assert confirm(client, draft)["Location"] == done == reverse("snapshots:volume", args=[volume.pk]) + "#heading"
    assert client.get(url(draft, "name"))["Location"] == done
    assert client.post(url(draft, "review"), {}, headers=HTMX)["HX-Redirect"] == done
    answers = {"project": member.project, "size_gb": 50, "name": "data", "user": member.user, "draft": draft}
    if with_source:
        again = new_volumes.request_new_volume(snapshot=disk.snapshot, disk=disk, **answers).volume
    else:
        again = volume_services.request_volume(location=location, **answers)
    assert again == volume
    assert Volume.objects.filter(name="data").count() == 1


def test_an_answer_from_another_tab_does_not_reopen_a_confirmed_draft(
    client: Client, member: Membership, location: Location
) -> None:
    draft = draft_of(member, location)
    read_before = Draft.objects.get(pk=draft.pk)
    confirm(client, draft)
    read_before.name = "again"
    steps.save(read_before)
    confirm(client, draft)
    assert [volume.name for volume in Volume.objects.all()] == ["data"]


def test_a_lost_role_is_noticed(client_for: Callable[..., Client], member: Membership, location: Location) -> None:
    draft = draft_of(member, location)
    MembershipFactory(user=member.user, project=ProjectFactory(customer=member.project.customer))
    member.role = Role.VIEWER
    member.save()
    assert confirm(client_for(member.user), draft)["Location"] == url(draft, "project")
    assert not Volume.objects.exists()


def test_names_that_are_suggested_differ(client: Client, member: Membership, location: Location) -> None:
    day = timezone.localtime(timezone.now(), member.user.zone).date().isoformat()
    draft = draft_of(member, location, name="")
    assert f'value="volume-{day}"' in client.get(url(draft, "name")).text
    VolumeFactory(project=member.project, name=f"Volume-{day}")
    assert f'value="volume-{day}-2"' in client.get(url(draft, "name")).text


def test_a_user_without_projects_gets_an_explanation(client_for: Callable[..., Client]) -> None:
    assert client_for(UserFactory()).get(START).status_code == 403
