"""The portal's Block Storage answers as Cinder does, except where docs/api.md lists a difference."""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any
from uuid import uuid4

import openstack
import pytest
from django.conf import settings as django_settings

from billing.models import ServiceKind
from cng_portal.accounts.models import Customer
from cng_portal.inventory.models import Location, Volume
from tests.factories import (
    CREDENTIAL_SECRET,
    ApplicationCredentialFactory,
    LocationFactory,
    MembershipFactory,
    VirtualMachineFactory,
)
from tests.lab.openstack.lab import wait_until
from tests.lab.openstack.reference import STEPS, Peer, compare
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


class Cinder(Peer):
    def __init__(self) -> None:
        self.admin = openstack.connect(cloud="admin")
        self.cloud = openstack.connect(cloud="other")
        unused = self.admin.block_storage.find_type("__DEFAULT__")
        if unused:  # The portal has one type.
            self.admin.block_storage.delete_type(unused)
        super().__init__(self.cloud.block_storage, zone="nova", volume_type="ceph")

    def set_quota(self, **limits: int) -> None:
        self.admin.block_storage.update_quota_set(self.cloud.current_project_id, **limits)

    def attach(self, name: str) -> None:
        body = {"os-attach": {"instance_uuid": str(uuid4()), "mountpoint": "/dev/vda"}}
        assert self.admin.block_storage.post(f"/volumes/{self.ids[name]}/action", json=body).ok

    def clear(self) -> None:
        """Delete everything."""
        for snapshot in self.storage.snapshots():
            self.storage.delete_snapshot(snapshot)
        assert wait_until(lambda: not list(self.storage.snapshots()), seconds=60)
        for volume in self.storage.volumes():
            if volume.status == "in-use":
                assert self.admin.block_storage.post(f"/volumes/{volume.id}/action", json={"os-detach": {}}).ok
            self.storage.delete_volume(volume)
        assert wait_until(lambda: not list(self.storage.volumes()), seconds=60)


class Portal(Peer):
    def __init__(self, url: str, location: Location) -> None:
        self.engine = location.driver
        self.member = MembershipFactory(project__customer__postpaid=True)
        credential = ApplicationCredentialFactory(user=self.member.user, project=self.member.project)
        cloud = openstack.connect(
            auth_type="v3applicationcredential",
            auth={
                "auth_url": f"{url}/identity/v3",
                "application_credential_id": credential.pk.hex,
                "application_credential_secret": CREDENTIAL_SECRET,
            },
            region_name=location.pk,
            load_yaml_config=False,
            load_envvars=False,
        )
        super().__init__(cloud.block_storage, zone=location.pk, volume_type="standard")

    def set_quota(self, **limits: int) -> None:
        names = {"snapshots": "snapshot_quota", "volumes": "volume_quota", "gigabytes": "volume_gb_quota"}
        Customer.objects.update(**{names[name]: limit for name, limit in limits.items()})

    def attach(self, name: str) -> None:
        row = Volume.objects.get(pk=self.ids[name])
        Volume.objects.filter(pk=row.pk).update(
            vm=VirtualMachineFactory(project=row.project, location=row.location), position=0
        )


@pytest.fixture(scope="module")
def reference() -> Iterator[dict[str, dict[str, str]]]:
    peer = Cinder()
    peer.clear()
    try:
        yield peer.run(STEPS)
    finally:
        peer.clear()


@pytest.fixture(params=["local", "cinder"])
def portal(request: pytest.FixtureRequest, live_server: Any, cinder: Any, worker: None) -> Portal:
    location = LocationFactory(driver=request.param)
    sell_everywhere()
    sell_everywhere(rate_micro=100_000, kind=ServiceKind.BLOCK_STORAGE)
    return Portal(live_server.url, location)


def test_the_answers_differ_from_cinders_as_documented(reference: dict[str, dict[str, str]], portal: Portal) -> None:
    differences = compare(reference, portal.run(STEPS))
    documented = read_table(portal.engine)
    new = [f"| {' | '.join(row)} | | in “{calls[0]}” |" for row, calls in differences.items() if row not in documented]
    gone = [f"| {' | '.join(row)} |" for row in documented if row not in differences]
    assert not new and not gone, "\n".join(["Not in docs/api.md:", *new, "No longer so:", *gone])


def read_table(engine: str) -> list[tuple[str, ...]]:
    """Return the documented differences of an engine: (call or field, Cinder's, the portal's)."""
    text = (django_settings.BASE_DIR / "docs" / "api.md").read_text()
    lines = text.partition("| call or field | Cinder | here |")[2].splitlines()[2:]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in takewhile(bool, lines)]
    assert all(row[4] for row in cells), "a difference without its reason"
    return [tuple(row[:3]) for row in cells if row[3] in ("", engine)]
