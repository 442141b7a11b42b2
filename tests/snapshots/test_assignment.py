"""The project that a snapshot is assigned to, in the wizard and the services, and who sees it."""

from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.test import Client
from django.utils import timezone

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership, Project, Role
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import services
from snapshots.errors import InvalidState, QuotaExceeded
from snapshots.models import Draft, Kind, Snapshot, State
from snapshots.wizard import wizard
from tests.factories import (
    MembershipFactory,
    ProjectFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db


@pytest.fixture
def member() -> Membership:
    """The owner of the project “Web”, to which the volume belongs."""
    member = MembershipFactory(project__customer__postpaid=True, project__name="Web", user__name="Aye")
    member.user.customer = member.project.customer
    member.user.save()
    return member


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, size_gb=50, name="db-01-data")
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


@pytest.fixture
def archive(member: Membership) -> Project:
    """Another project of the customer, which the owner of “Web” owns, too."""
    return MembershipFactory(
        user=member.user, project__customer=member.project.customer, project__name="Archive"
    ).project


@pytest.fixture
def client(client_for: Any, member: Membership) -> Client:
    return client_for(member.user)


def draft_for(volume: Volume, project: Project, member: Membership, /, **answers: Any) -> Draft:
    draft = wizard.start(member.user, source=volume)
    draft.project = project
    for name, value in answers.items():
        setattr(draft, name, value)
    draft.save()
    return draft


def test_a_project_without_volumes_is_chosen_and_gets_the_snapshot(
    client: Client, volume: Volume, archive: Project
) -> None:
    step_url = "/snapshots/new/"
    for answer in (
        {"location": volume.location_id},
        {"project": archive.pk},
        {"volume": volume.pk},
        {"name": "before the update"},
    ):
        response = client.post(step_url, answer)
        assert response.status_code == 302, response.text
        step_url = response["Location"]
    client.post(step_url, {"billing_cycle": "hourly", "shown_hourly_micro": 20_000_000})
    run_active_operations()

    snapshot = Snapshot.objects.get()
    assert (snapshot.project, snapshot.volume, snapshot.state) == (archive, volume, State.READY)
    assert UsageSegment.objects.get(resource_id=snapshot.pk).project == archive


def test_the_projects_own_volumes_come_first_and_the_others_under_their_projects_name(
    client: Client, member: Membership, volume: Volume, archive: Project
) -> None:
    VolumeFactory(project=archive, location=volume.location, name="zz-own")
    elsewhere = VolumeFactory(name="of-another-customer", location=volume.location)
    unseen = VolumeFactory(project=ProjectFactory(customer=archive.customer), location=volume.location, name="unseen")
    page = client.get(wizard.url(draft_for(volume, archive, member, volume=None), "volume"))
    assert [(group.project_name, [choice.title for choice in group.choices]) for group in page.context["groups"]] == [
        ("Archive", ["zz-own"]),
        ("Web", ["db-01-data"]),
    ]
    assert "Project “Web”" in page.text
    assert elsewhere.name not in page.text and unseen.name not in page.text


def test_a_project_without_volumes_says_that_another_projects_can_be_chosen(
    client: Client, member: Membership, volume: Volume, archive: Project
) -> None:
    draft = draft_for(volume, archive, member, volume=None)
    assert "“Archive” has no volume here." in client.get(wizard.url(draft, "volume")).text
    results = client.get(wizard.url(draft, "volume"), {"q": "db-01"}).text
    assert "“Archive” has no volume here." not in results and "Project “Web”" in results


def test_changing_the_project_keeps_the_volume(
    client: Client, member: Membership, volume: Volume, archive: Project
) -> None:
    draft = draft_for(volume, member.project, member, name="nightly")
    client.post(wizard.url(draft, "project"), {"project": archive.pk})
    draft.refresh_from_db()
    assert (draft.project, draft.volume, draft.name) == (archive, volume, "nightly")


def test_a_volume_that_the_user_cannot_change_is_not_offered(
    client: Client, client_for: Any, member: Membership, volume: Volume, archive: Project
) -> None:
    colleague = MembershipFactory(project=archive, user__customer=archive.customer).user
    MembershipFactory(project=member.project, user=colleague, role=Role.VIEWER)
    VolumeFactory(project=archive, location=volume.location)
    draft = draft_for(volume, archive, member, created_by=colleague)
    page = client_for(colleague).get(wizard.url(draft, "name"), follow=True)
    assert page.redirect_chain[-1][0] == wizard.url(draft, "volume")
    assert "You can no longer take a snapshot of this volume." in page.text


def test_a_draft_with_a_volume_that_the_colleague_does_not_see_is_not_found(
    client_for: Any, member: Membership, volume: Volume, archive: Project
) -> None:
    colleague = MembershipFactory(project=archive).user
    draft = draft_for(volume, archive, member)
    assert client_for(colleague).get(wizard.url(draft, "project")).status_code == 404


def test_an_archived_project_cannot_be_chosen(
    client: Client, member: Membership, volume: Volume, archive: Project
) -> None:
    draft = draft_for(volume, archive, member, name="nightly")
    Project.objects.filter(pk=archive.pk).update(archived_at=timezone.now())
    page = client.post(wizard.url(draft, "project"), {"project": archive.pk}).text
    assert "You can no longer use this project." in page
    assert client.get(wizard.url(draft, "review"))["Location"] == wizard.url(draft, "project")
    with pytest.raises(PermissionDenied):
        services.request_snapshot(source=volume, name="n", user=member.user, project=archive)
    assert not Snapshot.objects.exists()


def test_a_project_whose_customer_has_nothing_in_the_location_says_so(
    client: Client, member: Membership, volume: Volume
) -> None:
    foreign = MembershipFactory(user=member.user, project__customer__name="Other Co.").project
    draft = draft_for(volume, member.project, member)
    assert "Other Co. has no volume in" in client.get(wizard.url(draft, "project")).text
    answer = client.post(wizard.url(draft, "project"), {"project": foreign.pk}).text
    assert f"Other Co. has no volume in {volume.location_id}. Choose another project." in answer


def test_the_review_names_who_will_be_able_to_read_the_data(
    client: Client, member: Membership, volume: Volume, archive: Project
) -> None:
    draft = draft_for(volume, archive, member, name="nightly")

    def review() -> str:
        return unescape(client.get(wizard.url(draft, "review")).text)

    assert "Every member of “Archive” has a role in “Web” too" in review() and "Volume's project" in review()
    MembershipFactory(project=archive, user__name="Ba", role=Role.VIEWER)
    MembershipFactory(project=archive, user__name="Gone", user__is_active=False)
    assert "This member of “Archive” has no role in “Web”, but will be able to read the data: Ba." in review()
    for name in ("Chit", "Dwe", "Ei", "Hla", "Ko", "Mya"):
        MembershipFactory(project=archive, user__name=name)
    assert "will be able to read the data: Ba, Chit, Dwe, Ei, Hla and 2 more." in review()


def test_nobody_is_named_where_the_project_is_the_volumes(client: Client, member: Membership, volume: Volume) -> None:
    MembershipFactory(project=member.project, user__name="Ba", role=Role.VIEWER)
    page = client.get(wizard.url(draft_for(volume, member.project, member, name="nightly"), "review")).text
    assert "Who can read it" not in page


def test_a_disk_of_a_third_project_counts(
    client: Client, storage_root: Path, member: Membership, archive: Project
) -> None:
    vm = VirtualMachineFactory(project=member.project)
    third = ProjectFactory(customer=archive.customer, name="Third")
    for project in (member.project, third):
        put_volume(storage_root, VolumeFactory(project=project, location=vm.location, vm=vm), content(b"x"))
    sell_everywhere(kind="vm_snapshot")
    draft = wizard.start(member.user, source=vm)
    draft.project, draft.name = archive, "nightly"
    draft.save()
    page = client.get(wizard.url(draft, "review")).text
    assert "This member of “Archive” has no role in “Third, Web”, but will be able to read the data: Aye." in page


def test_the_quota_is_that_of_the_snapshots_project(member: Membership, volume: Volume, archive: Project) -> None:
    Project.objects.filter(pk=volume.project_id).update(snapshot_quota=0)
    services.request_snapshot(source=volume, name="one", user=member.user, project=archive)
    Project.objects.filter(pk=archive.pk).update(snapshot_quota=1)
    with pytest.raises(QuotaExceeded):
        services.request_snapshot(source=volume, name="two", user=member.user, project=archive)


def test_the_right_to_change_both_projects_is_needed(member: Membership, volume: Volume, archive: Project) -> None:
    for there, here in [(Role.VIEWER, Role.OWNER), (Role.OWNER, Role.VIEWER), (Role.OWNER, None)]:
        user = UserFactory()
        MembershipFactory(user=user, project=archive, role=there)
        if here:
            MembershipFactory(user=user, project=volume.project, role=here)
        with pytest.raises(PermissionDenied):
            services.request_snapshot(source=volume, name="n", user=user, project=archive)
    assert not Snapshot.objects.exists()


def test_another_customers_project_is_refused(member: Membership, volume: Volume) -> None:
    foreign = MembershipFactory(user=member.user).project
    with pytest.raises(InvalidState, match="belongs to another account"):
        services.request_snapshot(source=volume, name="n", user=member.user, project=foreign)


def test_a_machines_snapshot_is_assigned_too(storage_root: Path, member: Membership, archive: Project) -> None:
    vm: VirtualMachine = VirtualMachineFactory(project=member.project)
    put_volume(storage_root, VolumeFactory(project=member.project, location=vm.location, vm=vm), content(b"x"))
    sell_everywhere(kind="vm_snapshot")
    snapshot = services.request_snapshot(source=vm, name="n", user=member.user, project=archive)
    assert (snapshot.project, snapshot.kind) == (archive, Kind.VM)
