"""The list of instances and the page of an instance."""

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse

from cng_portal.accounts.models import Project, Role
from cng_portal.inventory.models import VirtualMachine
from snapshots.models import Draft, Kind
from tests.factories import (
    OperationFactory,
    ProjectFactory,
    UserFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.test_list import HTMX, names, part_of
from tests.snapshots.test_volumes import without_tokens

pytestmark = pytest.mark.django_db

LIST = "/instances/"


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Software")


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


@pytest.fixture
def viewer(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))


@pytest.fixture
def vm(project: Project) -> VirtualMachine:
    vm = VirtualMachineFactory(
        project=project, name="db-01", vcpus=4, memory_mb=8192, hourly_price_micro=24_000_000, stopped=True
    )
    for position, (name, size_gb) in enumerate([("db-01-root", 10), ("db-01-data", 1030)]):
        VolumeFactory(project=project, location=vm.location, vm=vm, position=position, name=name, size_gb=size_gb)
    return vm


def url(vm: VirtualMachine) -> str:
    return reverse("snapshots:machine", args=[vm.pk])


def take_url(vm: VirtualMachine) -> str:
    return reverse("snapshots:take_snapshot_of_machine", args=[vm.pk])


def test_the_menu_leads_to_the_instances(client: Client) -> None:
    assert '<a class="side-item" href="/instances/" aria-current="page">' in client.get(LIST).text


def test_a_row_shows_the_machine_its_price_and_its_protection(client: Client, vm: VirtualMachine) -> None:
    protecting = VMSnapshotFactory(vm=vm)

    response = client.get(LIST)

    assert response.context["rows"][0].protected_at == protecting.ready_at
    for text in ("db-01", "Stopped", "4 vCPUs · 8 GB", "2 · ", "1,040 GB", "Software", "K 24.00", "1 instance<"):
        assert text in response.text, text


def test_a_failed_snapshot_protects_nothing(client: Client, vm: VirtualMachine) -> None:
    VMSnapshotFactory(vm=vm, state="failed", ready_at=None)

    assert client.get(LIST).context["rows"][0].protected_at is None


def test_only_existing_machines_of_the_users_projects_are_listed(client: Client, vm: VirtualMachine) -> None:
    VirtualMachineFactory(project=vm.project, deleted_at=vm.created_at)
    VirtualMachineFactory()

    assert names(client.get(LIST), "vm") == ["db-01"]


def test_search_and_filters_narrow_the_list(client: Client, vm: VirtualMachine) -> None:
    other = VirtualMachineFactory(project=vm.project, name="web-01")
    expected = {
        "q=DB": vm,
        f"q={other.pk}": other,
        f"location={vm.location_id}": vm,
        "state=running": other,
        "state=stopped": vm,
    }
    for query, machine in expected.items():
        assert names(client.get(f"{LIST}?{query}"), "vm") == [machine.name], query


def test_an_unknown_filter_is_ignored_and_reported(client: Client, vm: VirtualMachine) -> None:
    response = client.get(f"{LIST}?state=asleep")

    assert names(response, "vm") == ["db-01"]
    assert "were ignored:" in response.text


def test_the_empty_list_explains_machines(client: Client) -> None:
    assert "No instances here yet" in client.get(LIST).text


def test_pages_follow_each_other_without_a_gap(client: Client, project: Project) -> None:
    for n in range(45):
        VirtualMachineFactory(project=project, name=f"vm-{n:02d}")
    page_url, listed = LIST, []
    while page_url:
        response = client.get(page_url)
        listed += names(response, "vm")
        page_url = response.context["pages"]["next_url"]

    assert listed == [f"vm-{n:02d}" for n in range(45)]


def test_the_fragment_is_the_same_as_in_the_page(client: Client, vm: VirtualMachine) -> None:
    fragment, page = client.get(LIST, headers=HTMX).text, client.get(LIST).text

    assert without_tokens(fragment).strip() == without_tokens(part_of(page, "machine-list"))


def test_the_page_shows_the_disks_in_their_order_and_the_snapshots(client: Client, vm: VirtualMachine) -> None:
    VMSnapshotFactory(vm=vm, name="before the upgrade")

    page = client.get(url(vm)).text

    assert page.index(">db-01-root</a>") < page.index("root volume") < page.index(">db-01-data</a>")
    for text in ("4 vCPUs · 8 GB", "K 24.00", "Stopped", vm.location_id, "before the upgrade", str(vm.pk)):
        assert text in page, text


def test_a_machine_of_another_customer_is_a_404(vm: VirtualMachine, client_for: Callable[..., Client]) -> None:
    stranger = client_for(UserFactory(member_of=ProjectFactory()))

    assert stranger.get(url(vm)).status_code == 404
    assert stranger.post(take_url(vm)).status_code == 404


def test_a_viewer_sees_the_machine_and_which_role_is_missing(viewer: Client, vm: VirtualMachine) -> None:
    page = viewer.get(url(vm)).text

    assert "You have view-only access." in page
    assert take_url(vm) not in page
    assert viewer.post(take_url(vm)).status_code == 403


def test_snapshots_in_other_projects_are_not_shown(client: Client, vm: VirtualMachine) -> None:
    elsewhere = ProjectFactory(customer=vm.project.customer)
    VMSnapshotFactory(vm=vm, name="moved", project=elsewhere, customer=elsewhere.customer)

    assert "moved" not in client.get(url(vm)).text


def test_a_deleted_machine_still_shows_its_snapshots(client: Client, vm: VirtualMachine) -> None:
    VMSnapshotFactory(vm=vm, name="the last one")
    VirtualMachine.objects.update(deleted_at=vm.created_at)

    page = client.get(url(vm)).text

    assert "This instance is gone" in page and "the last one" in page
    assert take_url(vm) not in page


def test_a_machine_without_disks_offers_no_snapshot(client: Client, project: Project) -> None:
    vm = VirtualMachineFactory(project=project)

    page = client.get(url(vm)).text

    assert "This instance has no disk" in page
    assert take_url(vm) not in page


def test_the_button_leads_to_the_name_of_the_snapshot(client: Client, vm: VirtualMachine) -> None:
    response = client.post(take_url(vm))

    draft = Draft.objects.get()
    assert (draft.kind, draft.vm) == (Kind.VM, vm)
    assert response["Location"] == reverse("snapshots:wizard", args=[draft.pk, "name"])


def test_the_page_polls_while_an_operation_is_active(client: Client, vm: VirtualMachine) -> None:
    OperationFactory(snapshot=VMSnapshotFactory(vm=vm), running=True)

    response = client.get(url(vm))
    version = response.context["version"]

    assert f"?seen={version}" in response.text
    assert 'id="machine"' not in client.get(f"{url(vm)}?seen={version}", headers=HTMX).text
    assert 'id="machine"' in client.get(f"{url(vm)}?seen=older", headers=HTMX).text


def test_a_vm_snapshot_is_found_by_its_machine(client: Client, vm: VirtualMachine) -> None:
    VMSnapshotFactory(vm=vm, name="nightly")
    VMSnapshotFactory(vm__project=vm.project, name="of another one")

    for query in ("q=db-01", f"vm={vm.pk}"):
        assert names(client.get(f"/snapshots/vm/?{query}")) == ["nightly"], query
