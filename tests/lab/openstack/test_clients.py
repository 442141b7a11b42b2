"""OpenStack's clients against the portal in front of a real Cinder."""

import pytest

from cng_portal.inventory.models import Volume
from tests.factories import LocationFactory, MembershipFactory, VolumeFactory
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.api.clients import ClientContract
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.storage.contract import new_volume

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def volume(store: CinderStore, cinder_storage: None) -> Volume:
    ref = new_volume(store)
    member, location = MembershipFactory(project__customer__postpaid=True), LocationFactory(driver="cinder")
    sell_everywhere()
    return VolumeFactory(
        pk=ref.uuid, project=member.project, location=location, backend_ref=ref.backend_ref, name="data 1"
    )


class TestClients(ClientContract):
    """With the `worker` of this folder's conftest."""
